"""What a source holds: sizes, labels, unusable and equal images; its speed."""

import collections
import hashlib
import os
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import tqdm

from seer_jax import crops, errors, outage, processes, sources

# SwAV's crops, for the time they take, of so many images.
_GROUPS = (
  crops.CropGroup(2, 224, (0.14, 1.0)),
  crops.CropGroup(4, 96, (0.05, 0.14)),
)
_RATIO = 3 / 4, 4 / 3
_TIMED = 64
_AT_ONCE = 256
_SHOWN = 20


class _Scan:
  """Looks at a range of images, in a process of its own."""

  def __init__(self, source: sources.Source, max_pixels: int):
    self._source, self._max_pixels = source, max_pixels

  def __len__(self) -> int:
    return -(-len(self._source) // _AT_ONCE)

  def __call__(self, part: int) -> dict[str, Any]:
    last = min(len(self._source), (part + 1) * _AT_ONCE)
    found = {"bad": [], "sizes": [], "bytes": [], "labels": [], "hashes": []}
    found |= {"excluded": 0, "first": part * _AT_ONCE}
    found["numbers"] = []
    for number in range(part * _AT_ONCE, last):
      processes.stop_if_asked()
      try:
        example = outage.read(self._source, number)
        found["bytes"].append(len(example["image"]))
        shape = crops.decode(example["image"], self._max_pixels).shape
      except errors.Excluded:
        found["excluded"] += 1
        continue
      except (OSError, errors.BadImage) as error:
        words = getattr(error, "strerror", None) or str(error)
        found["bad"].append((self._source.id_of(number), words))
        continue
      digest = hashlib.sha256(example["image"]).digest()[:8]
      found["sizes"].append(shape[:2])
      found["labels"].append(example["label"])
      found["hashes"].append(int.from_bytes(digest, "big"))
      found["numbers"].append(number)
    return found


def report(
  source: sources.Source, max_pixels: int, workers: int
) -> Iterator[str]:
  """Lines about the images of a source; all of them are decoded for it.

  Args:
    source: of the images.
    max_pixels: as for `crops.decode`.
    workers: how many processes look.
  """
  scan, founds = _Scan(source, max_pixels), []
  with tqdm.tqdm(total=len(source), unit=" images") as bar:
    for found in processes.each(scan, range(len(scan)), workers):
      founds.append(found)
      bar.update(len(found["numbers"]) + len(found["bad"]) + found["excluded"])
  founds.sort(key=lambda found: found["first"])

  def all_of(key):
    return [each for found in founds for each in found[key]]

  sizes, sums = np.array(all_of("sizes")).reshape(-1, 2), all_of("bytes")
  bad, excluded = all_of("bad"), sum(each["excluded"] for each in founds)
  yield (
    f"{len(source)} images, {sum(sums) / 2**20:,.1f} MiB: {len(sizes)} usable,"
    f" {len(bad)} not, {excluded} excluded"
  )
  for name, words in bad[:_SHOWN]:
    yield f"  {name}: {words}"
  if len(bad) > _SHOWN:
    yield f"  and {len(bad) - _SHOWN} more"
  if not len(sizes):
    return
  for words, sides in (("shorter", sizes.min(1)), ("longer", sizes.max(1))):
    low, middle, high = np.percentile(sides, (5, 50, 95)).astype(int)
    yield (
      f"{words} side: {sides.min()} to {sides.max()} px, half of them up to"
      f" {middle}, nine in ten from {low} to {high}"
    )
  yield _labels(source, all_of("labels"))
  yield from _equal(source, all_of("hashes"), all_of("numbers"))
  yield _speed(source, all_of("numbers"), max_pixels)


def _labels(source, labels):
  counts = collections.Counter(labels)
  none = counts.pop(sources.UNLABELLED, 0)
  if not counts:
    return "labels: none"
  rest = f"; {none} images have none" * bool(none)
  return (
    f"labels: {len(counts)}, with {min(counts.values())} to"
    f" {max(counts.values())} images each{rest}"
  )


def _equal(source, hashes, numbers):
  """Files of the very same bytes."""
  _, first, counts = np.unique(
    np.array(hashes, np.uint64), return_index=True, return_counts=True
  )
  more = int((counts - 1).sum())
  yield (
    f"equal files: {more} are copies of another"
    if more
    else ("equal files: none")
  )
  for place in first[np.argsort(-counts, kind="stable")][:5]:
    same = [
      n for n, h in zip(numbers, hashes, strict=True) if h == hashes[place]
    ]
    if len(same) > 1:
      names = ", ".join(source.id_of(number) for number in same[:3])
      yield f"  {len(same)} times: {names}{', ...' * (len(same) > 3)}"


def _speed(source, numbers, max_pixels):
  """How long an epoch takes at least, as far as images are concerned."""
  rng = np.random.default_rng(0)
  some = rng.choice(numbers, min(_TIMED, len(numbers)), replace=False)
  began = time.perf_counter()
  for number in some.tolist():
    data = source[number]["image"]
    crops.multi_crop_bytes(data, rng, _GROUPS, _RATIO, max_pixels)
  rate = len(some) / (time.perf_counter() - began)
  cores = os.cpu_count() or 1
  hours = len(numbers) / rate / cores / 3600
  return (
    f"reading, decoding and cropping (2 x 224, 4 x 96): {rate:.0f} images a"
    f" second and core; an epoch takes {_hours(hours)} at least on the {cores}"
    " core(s) here, whatever computes. For the rest: --mode=plan --topology=..."
  )


def _hours(hours):
  if hours < 1 / 60:
    return f"{hours * 3600:.1f} seconds"
  return f"{hours * 60:.1f} minutes" if hours < 1 else f"{hours:.1f} hours"
