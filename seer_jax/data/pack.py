"""Packs images into ArrayRecord shards: only pixels, a label and an id.

The same command resumes an unfinished pack. To train on the shards:
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
from seer_jax.runtime import errors, files
from seer_jax.runtime.parallel import process_pool

_PARTS, _PLAN = "parts", "plan.json"
_LISTS = "ids", "bad", "labels", "originals"
_BAD = "bad_images.txt"
_SHARDS = "array_record", "tar"
# Images per shard; fewer for small collections, to get this many shards.
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
          f"{path} has both images and .{kind} shards; choose with"
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
    """The report on a shard, which exists once the shard is complete."""
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
      reason = getattr(error, "strerror", None) or str(error)
      report["bad"].append([self._source.id_of(number), reason])
      return None
    report["ids"].append(example["id"])
    report["labels"].append(example["label"])
    report["originals"].append(self._digest(number, example["image"]))
    report["bytes"] += len(image)
    return example | {"image": image}

  def _digest(self, number, data):
    """The hash of the owner's file, by which it may be excluded later."""
    before = getattr(self._source, "digest", lambda _: None)(number)
    return before.hex() if before else files.fingerprint(data)


def pack(
  source: sources.Source,
  target: pathlib.Path,
  *,
  shard: int | None,
  side: int,
  max_pixels: int,
  pool: process_pool.Pool,
) -> str:
  """Packs all shards that do not exist yet; returns a summary.

  `shard` is the number of images in each, None for that of an unfinished pack
  or `shard_of`; shorter sides are shrunk to `side` pixels, 0 for never; `pool`
  packs one shard a task, and its machines share the folder. Raises
  UserError if the folder has other contents or cannot be written to, Lost if
  the disk is full, and Stopped if `process_pool.stop` was called.
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
    return _pack(packer, plan, source, target, pool)


def shard_of(images: int) -> int:
  """Images per shard: few enough that all cores have work."""
  return min(_SHARD, max(_SMALLEST, -(-images // _FEWEST)))


def _begun(target):
  """Images per shard of an unfinished pack; None without one."""
  with contextlib.suppress(OSError, ValueError, AttributeError):
    return json.loads((target / _PARTS / _PLAN).read_text()).get("shard")


def _pack(packer, plan, source, target, pool):
  done = _begin(target, plan)
  if done:
    return f"{target} is packed already: {done}"
  missing = [s for s in range(len(packer)) if not packer.report_of(s).exists()]
  there = (len(packer) - len(missing)) * plan["shard"]
  if there:
    print(f"resuming: {len(packer) - len(missing)} shards are done already")
  with tqdm.tqdm(
    total=len(source), initial=min(there, len(source)), unit=" images"
  ) as bar:
    for _ in pool.each(packer, missing, bar.update):
      pass
  return _finish(target, packer, source)


@contextlib.contextmanager
def _alone(target):
  """Refuses to run twice at once, on the same files."""
  lock = target / _PARTS / "lock"
  with errors.writing(target):
    lock.parent.mkdir(parents=True, exist_ok=True)
    file = lock.open("w")
  with file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise errors.UserError(
        f"another process is packing into {target}; wait for it, or give"
        " another folder"
      ) from None
    except OSError:
      pass  # Some network file systems have no locks.
    try:
      yield
    finally:
      if not (target / _PARTS / _PLAN).exists():  # It was refused.
        with contextlib.suppress(OSError):
          lock.unlink()
          lock.parent.rmdir()


@contextlib.contextmanager
def _full_disk(target):
  """Names what ArrayRecord's errors do not: the disk."""
  try:
    yield
  except (errors.UserError, errors.Lost, errors.Stopped):
    raise
  except (OSError, RuntimeError) as error:
    reason = getattr(error, "strerror", "") or errors.one_line(error)
    raise errors.Lost(
      f"cannot write {target}: {reason}; make room, and the command resumes"
    ) from error


def _begin(target, plan):
  """Starts or resumes in a folder; says what it has, if it is complete."""
  about, path = target / array_record.ABOUT, target / _PARTS / _PLAN
  try:
    with errors.writing(target):
      (target / _PARTS).mkdir(parents=True, exist_ok=True)
      others = [p.name for p in target.iterdir() if p.name != _PARTS]
      if others and not path.exists():
        raise errors.UserError(
          f"{target} is not empty: it has {sorted(others)[0]}; name a new one"
        )
      if not path.exists():
        files.write_text(path, json.dumps(plan))
      theirs = json.loads(path.read_text())
  except ValueError:
    raise errors.UserError(
      f"{target} was being packed, but {path} is damaged; give a new folder"
    ) from None
  for key, ours in plan.items():
    if theirs.get(key) != ours:
      was = (
        "its images, their labels or what is excluded were different"
        if key == "source"
        else f"{key} was {theirs.get(key)!r}, is {ours!r}"
      )
      raise errors.UserError(
        f"{target} has a pack of something else: {was}; give a new folder"
      )
  if about.exists():
    return f"{json.loads(about.read_text())['images']} images"
  return ""


def _finish(target, packer, source):
  """Writes the files beside the shards, from the reports, one at a time."""
  shards, sums = {}, collections.Counter()
  parts = [target / f"{each}.part" for each in _LISTS]
  ids, bad, labels, originals = parts
  with contextlib.ExitStack() as opened:
    id_file, bad_file, label_file, original_file = (
      opened.enter_context(path.open("wb")) for path in parts
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
      for name, reason in report["bad"]:
        bad_file.write(array_record.escaped(name) + b"\t")
        bad_file.write(reason.encode(errors="replace") + b"\n")
      np.array(report["labels"], np.int32).tofile(label_file)
      original_file.write(bytes.fromhex("".join(report["originals"])))
      sums.update(
        images=len(report["ids"]),
        bad=len(report["bad"]),
        excluded=report["excluded"],
        bytes=report["bytes"],
      )
  if not sums["images"]:
    raise errors.UserError(f"no image could be packed; {bad} gives the reasons")
  ids.rename(target / array_record.IDS)
  bad.rename(target / _BAD)
  count = sums["images"]
  _save(labels, target / array_record.LABELS, np.int32, (count,))
  _save(originals, target / array_record.ORIGINALS, np.uint8, (count, 32))
  about = {
    "images": count,
    "label_names": list(source.label_names),
    "shards": shards,
    "unusable": sums["bad"],
    "excluded": sums["excluded"],
    "bytes": sums["bytes"],
  }
  # Last, since it says that all the others are complete.
  files.write_text(
    target / array_record.ABOUT, json.dumps(about, indent=1) + "\n"
  )
  for path in (target / _PARTS).glob("[0-9]*.json"):
    path.unlink()
  files.remove_parts(target)
  files.remove_parts(target / _PARTS)
  left_out = f"{sums['bad']} unusable images are listed in {target / _BAD}"
  excluded = f", {sums['excluded']} were excluded" * bool(sums["excluded"])
  return (
    f"{sums['images']} images in {len(shards)} shards,"
    f" {sums['bytes'] / 2**20:,.1f} MiB; {left_out}{excluded}"
  )


def _save(raw, path, dtype, shape):
  """Saves a file of numbers as NumPy's, by a memory map."""
  if shape[0]:
    np.save(path, np.memmap(raw, dtype, "r", shape=shape))
  raw.unlink()
