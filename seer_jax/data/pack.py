"""python -m seer_jax.data.pack SRC DST

Packs a folder, a list, tar shards or others into ArrayRecord shards, without
anything but the pixels, a label and an id for each image. Run again, it goes on
where it was stopped. To train on them: --config.data.train.kind=array_record
--config.data.train.path=DST.

python -m seer_jax.data.pack --check SRC only looks: sizes, labels, unusable and
equal images, and how long reading them takes.

Exit status: 0 done, 2 a mistake in the call, 75 stopped by a signal.
"""

import argparse
import collections
import contextlib
import fcntl
import hashlib
import json
import os
import pathlib
import signal
import sys

import numpy as np
import tqdm

from seer_jax.data import inspect, retry, sources, strip_metadata
from seer_jax.data.sources import array_record
from seer_jax.data.storage import files, tf_example
from seer_jax.runtime import arguments, errors, process_pool

_STOPPED = 75
_PARTS, _PLAN = "parts", "plan.json"
_BAD = "bad_images.txt"
_SHARDS = "array_record", "tar"
# Of a source, that the command line may set.
_KEYS = frozenset(sources.DEFAULTS) - {"kind", "path", "take_seed", "parts"}


def _parse(argv):
  parser = arguments.Parser(
    prog="python -m seer_jax.data.pack",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  add("source", metavar="SRC", help="folder, list, shards, or a URL of these")
  add("target", metavar="DST", nargs="?", help="folder for the shards")
  add("--check", action="store_true", help="only look, write nothing")
  add("--kind", choices=[k for k in sources.KINDS if k != "mix"])
  add("--split", default="", help="as config.data.train.split")
  add("--name", default="", help="of the TFDS data set")
  add("--labels", default="", help="of a list: .npy file of labels")
  add("--exclude", default="", help="file of ids, paths or hashes to leave out")
  add("--only", default="", help="file that names the images to take")
  add("--take", type=float, default=1.0, help="share or number to take")
  add("--skip", type=float, default=0.0, help="share or number to leave before")
  add("--balanced", action="store_true", help="as many of each class")
  add(
    "--side", type=int, default=0, help="shrink shorter sides to this, pixels"
  )
  add("--shard", type=int, default=4096, help="images a shard")
  add("--workers", type=int, default=os.cpu_count(), help="processes")
  add("--max_pixels", type=int, default=200_000_000)
  options = parser.parse_args(argv)
  if files.is_url(options.target or ""):
    raise errors.UserError(
      f"DST is {options.target}; shards are written to this machine's file"
      " systems only: give a folder, then copy it"
    )
  if bool(options.target) == options.check:
    raise errors.UserError(
      "give SRC and DST, or --check and SRC; --help tells more"
    )
  for key in ("shard", "workers", "max_pixels"):
    if getattr(options, key) < 1:
      raise errors.UserError(f"--{key} must be positive")
  if options.side < 0:
    raise errors.UserError("--side must be 0 or positive")
  return options


def kind_of(path: str) -> str:
  """The kind of source that a path looks like."""
  name = path.rstrip("/").rpartition("/")[2]
  if name.endswith((".txt", ".tsv", ".npy", ".parquet")):
    return "list"
  for kind in _SHARDS:
    if files.is_shard(name, f".{kind}"):
      return kind
  names = os.listdir(path) if os.path.isdir(path) else []
  for kind in _SHARDS:
    if any(files.is_shard(each, f".{kind}") for each in names):
      if any(each.lower().endswith(sources.EXTENSIONS) for each in names):
        raise errors.UserError(
          f"{path} holds images and .{kind} shards; say which are meant:"
          f" --kind=folder or --kind={kind}"
        )
      return kind
  return "folder"


def _open(options):
  return sources.open_source(
    {key: value for key, value in vars(options).items() if key in _KEYS}
    | {
      "kind": options.kind or kind_of(os.path.expanduser(options.source)),
      "path": options.source,
    }
  )


class Packer:
  """Packs one shard, in a process of its own."""

  def __init__(self, source: sources.Source, target: pathlib.Path, options):
    self._source, self._target = source, target
    self._size, self._side = options.shard, options.side
    self._max_pixels = options.max_pixels

  def __len__(self) -> int:
    return -(-len(self._source) // self._size)

  def report_of(self, shard: int) -> pathlib.Path:
    """Where it is told what a shard holds, once it is whole."""
    return self._target / _PARTS / f"{shard:06d}.json"

  def shard_of(self, shard: int) -> pathlib.Path:
    name = f"images-{shard:06d}-of-{len(self):06d}{array_record.ENDING}"
    return self._target / name

  def __call__(self, shard: int) -> int:
    """Writes a shard; returns how many images were looked at."""
    from array_record.python import array_record_module

    report = {"ids": [], "labels": [], "bad": [], "excluded": 0, "bytes": 0}
    report |= {"originals": [], "shard_bytes": 0}
    last = min(len(self._source), (shard + 1) * self._size)
    numbers = range(shard * self._size, last)
    path = self.shard_of(shard)
    part = path.with_name(path.name + ".part")
    part.unlink(missing_ok=True)
    writer = None
    try:
      for number in numbers:
        process_pool.stop_if_asked()
        example = self._example(number, report)
        if example is not None:
          if writer is None:
            # Groups of one: any image is one read.
            writer = array_record_module.ArrayRecordWriter(
              str(part), "group_size:1"
            )
          writer.write(tf_example.write(example))
    finally:
      if writer is not None:
        writer.close()
    if writer is not None:
      with part.open("rb+") as file:
        os.fsync(file.fileno())
      part.rename(path)
      report["shard_bytes"] = path.stat().st_size
    _write(self.report_of(shard), json.dumps(report))
    return len(numbers)

  def _example(self, number, report):
    try:
      example = retry.read(self._source, number)
      image = strip_metadata.strip(
        example["image"], self._max_pixels, self._side
      )
    except errors.Excluded:
      report["excluded"] += 1
      return None
    except (OSError, errors.BadImage) as error:
      words = getattr(error, "strerror", None) or str(error)
      report["bad"].append([self._source.id_of(number), words])
      return None
    report["ids"].append(example["id"])
    report["labels"].append(example["label"])
    report["originals"].append(self._digest(number, example["image"]))
    report["bytes"] += len(image)
    return example | {"image": image}

  def _digest(self, number, data):
    """Of the file as its owner has it, by which it may be excluded later."""
    before = getattr(self._source, "digest", lambda _: None)(number)
    return before.hex() if before else hashlib.sha256(data).hexdigest()


def pack(source: sources.Source, target: pathlib.Path, options) -> str:
  """Packs all shards that are not there yet; returns what was done.

  Raises:
    UserError: the folder holds something else, or cannot be written to.
  """
  with _alone(target), _full_disk(target):
    return _pack(source, target, options)


def _pack(source, target, options):
  packer = Packer(source, target, options)
  plan = {
    "source": source.fingerprint,
    "images": len(source),
    "shard": options.shard,
    "side": options.side,
    "max_pixels": options.max_pixels,
  }
  done = _begin(target, plan)
  if done:
    return f"{target} is packed already: {done}"
  missing = [s for s in range(len(packer)) if not packer.report_of(s).exists()]
  there = (len(packer) - len(missing)) * options.shard
  if there:
    print(f"going on: {len(packer) - len(missing)} shards are there already")
  with tqdm.tqdm(
    total=len(source), initial=min(there, len(source)), unit=" images"
  ) as bar:
    for looked_at in process_pool.each(packer, missing, options.workers):
      bar.update(looked_at)
  return _finish(target, packer, source)


@contextlib.contextmanager
def _alone(target):
  """Two at once would write the same files."""
  lock = target / _PARTS / "lock"
  try:
    lock.parent.mkdir(parents=True, exist_ok=True)
    file = lock.open("w")
  except OSError as error:
    raise errors.UserError(
      f"cannot write to {target}: {error.strerror}"
    ) from None
  with file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise errors.UserError(
        f"another process is packing into {target}; wait for it, or give"
        " another folder"
      ) from None
    except OSError:
      pass  # Some network file systems know no locks.
    try:
      yield
    finally:
      if not (target / _PARTS / _PLAN).exists():  # It was refused.
        with contextlib.suppress(OSError):
          lock.unlink()
          lock.parent.rmdir()


@contextlib.contextmanager
def _full_disk(target):
  """What writing shards fails with has no name; the disk says what it is."""
  try:
    yield
  except (errors.UserError, errors.Lost, process_pool.Stopped):
    raise
  except (OSError, RuntimeError) as error:
    words = " ".join(str(getattr(error, "strerror", "") or error).split())
    raise errors.Lost(
      f"cannot write to {target}: {words[:200]}; make room, and the same"
      " command goes on"
    ) from error


def _begin(target, plan):
  """Takes the folder; what it holds, if all is done there."""
  try:
    (target / _PARTS).mkdir(parents=True, exist_ok=True)
    about, path = target / array_record.ABOUT, target / _PARTS / _PLAN
    if not path.exists():
      others = [p.name for p in target.iterdir() if p.name != _PARTS]
      if others:
        raise errors.UserError(
          f"{target} is not empty: it holds {sorted(others)[0]}; give a new"
          " folder"
        )
      _write(path, json.dumps(plan))
    theirs = json.loads(path.read_text())
  except OSError as error:
    raise errors.UserError(
      f"cannot write to {target}: {error.strerror}"
    ) from None
  except ValueError:
    raise errors.UserError(
      f"{target} was being packed, but {path} is damaged; give a new folder"
    ) from None
  for key, ours in plan.items():
    if theirs.get(key) != ours:
      was = (
        "its images, their labels or what is excluded were others"
        if key == "source"
        else f"{key} was {theirs.get(key)!r}, is {ours!r}"
      )
      raise errors.UserError(
        f"{target} holds a pack of something else: {was}; give a new folder"
      )
  if about.exists():
    return f"{json.loads(about.read_text())['images']} images"
  return ""


def _finish(target, packer, source):
  """The files beside the shards, from what each shard tells."""
  shards, labels, sums = {}, [], collections.Counter()
  originals = []
  ids, bad = target / "ids.part", target / "bad.part"
  with ids.open("wb") as id_file, bad.open("wb") as bad_file:
    for shard in range(len(packer)):
      report = json.loads(packer.report_of(shard).read_text())
      if report["ids"]:
        shards[packer.shard_of(shard).name] = {
          "images": len(report["ids"]),
          "bytes": report["shard_bytes"],
        }
      for name in report["ids"]:
        id_file.write(array_record.escaped(name) + b"\n")
      for name, words in report["bad"]:
        bad_file.write(array_record.escaped(name) + b"\t")
        bad_file.write(words.encode(errors="replace") + b"\n")
      labels.append(np.array(report["labels"], np.int32))
      originals.append(bytes.fromhex("".join(report["originals"])))
      sums.update(
        images=len(report["ids"]),
        bad=len(report["bad"]),
        excluded=report["excluded"],
        bytes=report["bytes"],
      )
  if not sums["images"]:
    raise errors.UserError(f"not one image could be packed; see {bad}")
  ids.rename(target / array_record.IDS)
  bad.rename(target / _BAD)
  np.save(target / array_record.LABELS, np.concatenate(labels))
  digests = np.frombuffer(b"".join(originals), np.uint8).reshape(-1, 32)
  np.save(target / array_record.ORIGINALS, digests)
  about = {
    "images": sums["images"],
    "label_names": list(source.label_names),
    "shards": shards,
    "unusable": sums["bad"],
    "excluded": sums["excluded"],
    "bytes": sums["bytes"],
  }
  # Last: what stands in it is there.
  _write(target / array_record.ABOUT, json.dumps(about, indent=1) + "\n")
  for report in (target / _PARTS).glob("[0-9]*.json"):
    report.unlink()
  left_out = f"{sums['bad']} unusable images are listed in {target / _BAD}"
  excluded = f", {sums['excluded']} were excluded" * bool(sums["excluded"])
  return (
    f"{sums['images']} images in {len(shards)} shards,"
    f" {sums['bytes'] / 2**20:,.1f} MiB; {left_out}{excluded}"
  )


def _write(path, text):
  part = path.with_name(path.name + ".part")
  with part.open("w", encoding="utf-8") as file:
    file.write(text)
    file.flush()
    os.fsync(file.fileno())
  part.rename(path)


def _run(options):
  source = _open(options)
  print(source)
  if options.check:
    for line in inspect.report(source, options.max_pixels, options.workers):
      print(line)
    return
  print(pack(source, pathlib.Path(options.target).expanduser(), options))


def _stop(number, _):
  """The first signal asks for an orderly end, the second one has it."""
  if process_pool.asked():
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)
  process_pool.stop()


def main(argv: list[str] | None = None) -> int:
  """Packs or checks; returns the exit status."""
  with contextlib.ExitStack() as stack:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
      before = signal.signal(number, _stop)
      stack.callback(signal.signal, number, before)
    try:
      _run(_parse(argv))
    except errors.UserError as error:
      print(error, file=sys.stderr)
      return 2
    except errors.Lost as error:
      print(error, file=sys.stderr)
      return errors.Lost.STATUS
    except process_pool.Stopped:
      print("stopped; the same command goes on", file=sys.stderr)
      return _STOPPED
  return 0


if __name__ == "__main__":
  sys.exit(main())
