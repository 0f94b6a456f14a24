"""What a source contains: sizes, labels, unusable images, copies; its speed.

Parts of an unfinished survey are kept in the user's cache: the same command
resumes. A finished one leaves nothing there, since images may change.
"""

import collections
import hashlib
import json
import os
import pathlib
import shutil
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import tqdm

from seer_jax.data import crops, pack, sources
from seer_jax.data.storage import retry
from seer_jax.runtime import errors, files
from seer_jax.runtime.parallel import process_pool

# SwAV's crops, and on how many images they are timed.
_GROUPS = (
  crops.CropGroup(2, 224, (0.14, 1.0)),
  crops.CropGroup(4, 96, (0.05, 0.14)),
)
_RATIO = 3 / 4, 4 / 3
_TIMED = 64
_SHOWN = 20
_KEPT = 1000  # Names of unusable images, which are sorted at the end.


class _Part(NamedTuple):
  """What a range of images contains; a hash of 0 marks an unusable image."""

  first: int
  hashes: np.ndarray
  shorter: collections.Counter[int]
  longer: collections.Counter[int]
  labels: collections.Counter[int]
  bad: list[tuple[str, str]]
  excluded: int
  bytes: int

  def write(self, path: pathlib.Path) -> None:
    """Writes a file that `read` reads."""
    rest = self._replace(hashes=None)._asdict()
    for name in _COUNTS:
      rest[name] = list(rest[name].items())
    with files.whole_file(path) as file:
      np.savez(file, hashes=self.hashes, rest=np.array(json.dumps(rest)))

  @classmethod
  def read(cls, path: pathlib.Path) -> "_Part":
    """Raises OSError or ValueError if the file is damaged."""
    with np.load(path) as arrays:
      rest = json.loads(str(arrays["rest"])) | {"hashes": arrays["hashes"]}
    counts = {name: collections.Counter(dict(rest[name])) for name in _COUNTS}
    bad = [(name, reason) for name, reason in rest["bad"]]
    return cls(**(rest | counts | {"bad": bad}))


_COUNTS = "shorter", "longer", "labels"


class _Scan:
  """Surveys a range of images, in a process of its own."""

  def __init__(self, source: sources.Source, max_pixels: int):
    self._source, self._max_pixels = source, max_pixels
    self.size = pack.shard_of(len(source))

  def __len__(self) -> int:
    return -(-len(self._source) // self.size)

  def __call__(self, part: int) -> _Part:
    first = part * self.size
    last = min(len(self._source), first + self.size)
    hashes, bad, excluded, size = np.zeros(last - first, np.uint64), [], 0, 0
    shorter, longer, labels = (collections.Counter() for _ in range(3))
    for number in range(first, last):
      process_pool.stop_if_asked()
      process_pool.tick()
      try:
        example = retry.read(self._source, number)
        size += len(example["image"])
        shape = crops.decode(example["image"], self._max_pixels).shape
      except errors.Excluded:
        excluded += 1
        continue
      except (OSError, errors.BadImage) as error:
        reason = getattr(error, "strerror", None) or str(error)
        bad.append((self._source.id_of(number), reason))
        continue
      shorter[min(shape[:2])] += 1
      longer[max(shape[:2])] += 1
      labels[example["label"]] += 1
      digest = hashlib.sha256(example["image"]).digest()[:8]
      hashes[number - first] = int.from_bytes(digest, "big") or 1
    return _Part(first, hashes, shorter, longer, labels, bad, excluded, size)


def _parts(
  source: sources.Source,
  max_pixels: int,
  pool: process_pool.Pool,
  progress: Callable[[int], object],
) -> Iterator[_Part]:
  """All parts: those of an unfinished survey first."""
  scan, known = _Scan(source, max_pixels), (source.fingerprint, len(source))
  folder = files.cached("inspect", known, source.label_names, max_pixels)
  missing = []
  for number in range(len(scan)):
    try:
      part = _Part.read(folder / f"{number}.npz")
    except (OSError, ValueError, zipfile.BadZipFile):
      missing.append(number)
      continue
    progress(len(part.hashes))
    yield part
  for part in pool.each(scan, missing, progress):
    part.write(folder / f"{part.first // scan.size}.npz")
    yield part
  shutil.rmtree(folder, ignore_errors=True)


def report(
  source: sources.Source, max_pixels: int, pool: process_pool.Pool
) -> Iterator[str]:
  """Lines about the images of a source, all of which are decoded.

  Eight bytes per image are kept in a temporary file. Raises UserError, after
  the lines that give the reasons, if no image is usable.
  """
  bad, excluded, size = [], 0, 0
  shorter, longer, labels = (collections.Counter() for _ in range(3))
  with (
    tempfile.TemporaryFile() as file,
    tqdm.tqdm(total=len(source), unit=" images") as bar,
  ):
    file.truncate(8 * len(source))
    hashes = np.memmap(file, np.uint64, "r+", shape=(len(source),))
    for part in _parts(source, max_pixels, pool, bar.update):
      hashes[part.first : part.first + len(part.hashes)] = part.hashes
      shorter, longer = shorter + part.shorter, longer + part.longer
      labels.update(part.labels)
      bad, excluded = (
        bad + part.bad[: _KEPT - len(bad)],
        excluded + part.excluded,
      )
      size += part.bytes
    bar.close()
    usable = shorter.total()
    unusable = len(source) - usable - excluded
    yield (
      f"{len(source)} images, {size / 2**20:,.1f} MiB: {usable} usable,"
      f" {unusable} not, {excluded} excluded"
    )
    for name, words in sorted(bad)[:_SHOWN]:
      yield f"  {name}: {words}"
    if unusable > _SHOWN:
      yield f"  and {unusable - _SHOWN} more"
    if not usable:
      raise errors.UserError(
        f"none of the {len(source)} images is usable; repair them, or give"
        " other images"
      )
    for which, sides in (("shorter", shorter), ("longer", longer)):
      low, middle, high = _shares(sides, (0.05, 0.5, 0.95))
      yield (
        f"{which} side: {min(sides)} to {max(sides)} px, half of them up to"
        f" {middle}, nine in ten from {low} to {high}"
      )
    yield _labels(labels)
    yield from _equal(source, hashes)
    yield _speed(source, hashes, usable, max_pixels)


def _shares(counts, shares):
  """Values below which these shares of all lie."""
  values = np.array(sorted(counts))
  ends = np.cumsum([counts[value] for value in values.tolist()])
  return values[np.searchsorted(ends, np.array(shares) * ends[-1])].tolist()


def _labels(counts):
  none = counts.pop(sources.UNLABELLED, 0)
  if not counts:
    return "labels: none"
  rest = f"; {none} images have none" * bool(none)
  return (
    f"labels: {len(counts)}, with {min(counts.values())} to"
    f" {max(counts.values())} images each{rest}"
  )


def _equal(source, hashes):
  """Files with exactly the same bytes."""
  with tempfile.TemporaryFile() as file:
    file.truncate(hashes.nbytes)
    ordered = np.memmap(file, np.uint64, "r+", shape=hashes.shape)
    ordered[:] = hashes
    ordered.sort()
    starts = np.flatnonzero(ordered[1:] == ordered[:-1]) + 1
    repeated = ordered[starts]
    repeated = repeated[repeated != 0]
  yield (
    f"equal files: {len(repeated)} are copies of another"
    if len(repeated)
    else "equal files: none"
  )
  values, counts = np.unique(repeated, return_counts=True)
  for at in np.argsort(-counts, kind="stable")[:5].tolist():
    same = np.flatnonzero(hashes == values[at])[:3].tolist()
    more = ", ..." if counts[at] + 1 > 3 else ""
    names = ", ".join(source.id_of(number) for number in same)
    yield f"  {counts[at] + 1} times: {names}{more}"


def _speed(source, hashes, usable, max_pixels):
  """The least time of an epoch, as far as the input is concerned."""
  rng = np.random.default_rng(0)
  drawn = rng.integers(len(source), size=1000 * _TIMED)
  some = drawn[hashes[drawn] != 0][:_TIMED]
  if not len(some):
    some = np.flatnonzero(hashes)[:_TIMED]
  began = time.perf_counter()
  for number in some.tolist():
    data = source[number]["image"]
    crops.multi_crop_bytes(data, rng, _GROUPS, _RATIO, max_pixels)
  rate = len(some) / (time.perf_counter() - began)
  cores = os.cpu_count() or 1
  hours = usable / rate / cores / 3600
  return (
    f"input (2 x 224, 4 x 96): {rate:.0f} images a second and core; on the"
    f" {cores} core(s) here an epoch takes at least {_hours(hours)}, however"
    " fast the network is. seer-jax plan --topology=... estimates that"
  )


def _hours(hours):
  if hours < 1 / 60:
    return f"{hours * 3600:.1f} seconds"
  return f"{hours * 60:.1f} minutes" if hours < 1 else f"{hours:.1f} hours"
