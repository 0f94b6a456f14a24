"""Images into ArrayRecord shards: pixels, a label and an id each, no more.

Packed again, it goes on where it was stopped. To train on the shards:
--config.data.train.kind=array_record --config.data.train.path=DST.
"""

import collections
import contextlib
import fcntl
import json
import os
import pathlib

import numpy as np
import tqdm

from seer_jax.data import sources, strip_metadata
from seer_jax.data.sources import array_record
from seer_jax.data.storage import filesystem, retry, tf_example
from seer_jax.runtime import errors, files, process_pool

_PARTS, _PLAN = "parts", "plan.json"
_BAD = "bad_images.txt"
_SHARDS = "array_record", "tar"
# Images a shard; of small collections fewer, for so many shards.
_SHARD, _SMALLEST, _FEWEST = 4096, 64, 64


def kind_of(path: str) -> str:
  """The kind of source that a path looks like."""
  name = path.rstrip("/").rpartition("/")[2]
  if name.endswith((".txt", ".tsv", ".csv", ".npy", ".parquet")):
    return "list"
  for kind in _SHARDS:
    if filesystem.is_shard(name, f".{kind}"):
      return kind
  names = os.listdir(path) if os.path.isdir(path) else []
  for kind in _SHARDS:
    if any(filesystem.is_shard(each, f".{kind}") for each in names):
      if any(each.lower().endswith(sources.EXTENSIONS) for each in names):
        raise errors.UserError(
          f"{path} holds images and .{kind} shards; say which are meant:"
          f" --kind=folder or --kind={kind}"
        )
      return kind
  return "folder"


class Packer:
  """Packs one shard, in a process of its own."""

  def __init__(
    self,
    source: sources.Source,
    target: pathlib.Path,
    shard: int,
    side: int,
    max_pixels: int,
  ):
    """See `pack`."""
    self._source, self._target = source, target
    self._size, self._side = shard, side
    self._max_pixels = max_pixels

  def __len__(self) -> int:
    return -(-len(self._source) // self._size)

  def report_of(self, shard: int) -> pathlib.Path:
    """Where it is told what a shard holds, once it is whole."""
    return self._target / _PARTS / f"{shard:06d}.json"

  def shard_of(self, shard: int) -> pathlib.Path:
    name = f"images-{shard:06d}-of-{len(self):06d}{array_record.ENDING}"
    return self._target / name

  def __call__(self, shard: int) -> None:
    """Writes a shard, and its report."""
    from array_record.python import array_record_module

    report = {"ids": [], "labels": [], "bad": [], "excluded": 0, "bytes": 0}
    report |= {"originals": [], "shard_bytes": 0}
    last = min(len(self._source), (shard + 1) * self._size)
    path = self.shard_of(shard)
    writer = None
    with contextlib.ExitStack() as stack:
      for number in range(shard * self._size, last):
        process_pool.stop_if_asked()
        process_pool.tick()
        example = self._example(number, report)
        if example is None:
          continue
        if writer is None:
          part = stack.enter_context(files.whole(path))
          # With groups of one image, each image is one read.
          writer = array_record_module.ArrayRecordWriter(
            str(part), "group_size:1"
          )
          stack.callback(writer.close)
        writer.write(tf_example.write(example))
    if writer is not None:
      report["shard_bytes"] = path.stat().st_size
    files.write_text(self.report_of(shard), json.dumps(report))

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
    return before.hex() if before else files.fingerprint(data)


def pack(
  source: sources.Source,
  target: pathlib.Path,
  *,
  shard: int | None,
  side: int,
  max_pixels: int,
  workers: int,
) -> str:
  """Packs all shards that are not there yet; returns what was done.

  Raises UserError if the folder holds something else, or cannot be written to,
  Lost if the disk is full, and Stopped if `process_pool.stop` was called.

  Args:
    shard: images in each; None for what was begun, or else `shard_of`.
    side: shorter sides are shrunk to so many pixels; 0 leaves them.
  """
  if shard is None:
    shard = _begun(target) or shard_of(len(source))
  packer = Packer(source, target, shard, side, max_pixels)
  plan = {
    "source": source.fingerprint,
    "images": len(source),
    "shard": shard,
    "side": side,
    "max_pixels": max_pixels,
  }
  with _alone(target), _full_disk(target):
    return _pack(packer, plan, source, target, workers)


def shard_of(images: int) -> int:
  """Images a shard: so few of a small collection that all cores have work."""
  return min(_SHARD, max(_SMALLEST, -(-images // _FEWEST)))


def _begun(target):
  """Images a shard of a pack that is under way; None where none is."""
  with contextlib.suppress(OSError, ValueError, AttributeError):
    return json.loads((target / _PARTS / _PLAN).read_text()).get("shard")


def _pack(packer, plan, source, target, workers):
  done = _begin(target, plan)
  if done:
    return f"{target} is packed already: {done}"
  missing = [s for s in range(len(packer)) if not packer.report_of(s).exists()]
  there = (len(packer) - len(missing)) * plan["shard"]
  if there:
    print(f"going on: {len(packer) - len(missing)} shards are there already")
  with tqdm.tqdm(
    total=len(source), initial=min(there, len(source)), unit=" images"
  ) as bar:
    for _ in process_pool.each(packer, missing, workers, bar.update):
      pass
  return _finish(target, packer, source)


@contextlib.contextmanager
def _alone(target):
  """Two at once would write the same files."""
  lock = target / _PARTS / "lock"
  try:
    lock.parent.mkdir(parents=True, exist_ok=True)
    file = lock.open("w")
  except OSError as error:
    raise errors.of_disk(
      error, f"cannot write to {target}: {error.strerror}"
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
  except (errors.UserError, errors.Lost, errors.Stopped):
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
      files.write_text(path, json.dumps(plan))
    theirs = json.loads(path.read_text())
  except OSError as error:
    raise errors.of_disk(
      error, f"cannot write to {target}: {error.strerror}"
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
  """The files beside the shards, from what each shard tells, one at a time."""
  shards, sums = {}, collections.Counter()
  ids, bad = target / "ids.part", target / "bad.part"
  labels, originals = target / "labels.part", target / "originals.part"
  with contextlib.ExitStack() as opened:
    id_file, bad_file, label_file, original_file = (
      opened.enter_context(path.open("wb"))
      for path in (ids, bad, labels, originals)
    )
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
      np.array(report["labels"], np.int32).tofile(label_file)
      original_file.write(bytes.fromhex("".join(report["originals"])))
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
  count = sums["images"]
  _save(labels, target / array_record.LABELS, np.int32, (count,))
  _save(originals, target / array_record.ORIGINALS, np.uint8, (count, 32))
  about = {
    "images": sums["images"],
    "label_names": list(source.label_names),
    "shards": shards,
    "unusable": sums["bad"],
    "excluded": sums["excluded"],
    "bytes": sums["bytes"],
  }
  # Last: what stands in it is there.
  files.write_text(
    target / array_record.ABOUT, json.dumps(about, indent=1) + "\n"
  )
  for each in (
    (target / _PARTS).glob("[0-9]*.json"),
    target.glob(f".*{files.PART}"),
  ):
    for path in each:
      path.unlink()
  left_out = f"{sums['bad']} unusable images are listed in {target / _BAD}"
  excluded = f", {sums['excluded']} were excluded" * bool(sums["excluded"])
  return (
    f"{sums['images']} images in {len(shards)} shards,"
    f" {sums['bytes'] / 2**20:,.1f} MiB; {left_out}{excluded}"
  )


def _save(raw, path, dtype, shape):
  """A file of numbers as NumPy's: mapped, so that none is held."""
  if shape[0]:
    np.save(path, np.memmap(raw, dtype, "r", shape=shape))
  raw.unlink()
