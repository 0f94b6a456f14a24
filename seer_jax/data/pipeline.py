"""Images from a source to the devices.

Training reads one endless, numbered sequence of samples: the source's images in
a new order each epoch, each cropped by a generator seeded with its number. Each
step takes the next B. So the position of a run is one number, whatever the
number of processes, workers or devices, and a resumed run sees exactly what it
would have seen.
"""

import contextlib
import dataclasses
import functools
import logging
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain
import jax
import ml_collections
import numpy as np
from absl import flags

from seer_jax.data import crops, shuffle, sources, workers
from seer_jax.data.preprocessing import View
from seer_jax.data.storage import read_ahead, retry
from seer_jax.runtime import errors
from seer_jax.runtime import mesh as mesh_lib

_log = logging.getLogger(__name__)

# After this many unusable draws in a row, the folder cannot be one of images;
# with half of all files bad it does not happen.
_ATTEMPTS = 64
# Threads that decode; OpenCV releases Python's lock.
_THREADS = 2
_STEPS = 2**40  # Endless.


class BadImages:
  """Unusable images: each listed once, counted, and limited.

  The list, `bad_images.txt`, is for people; it outlives the process. The limit
  counts what this process met, so that repaired files do not count.
  """

  def __init__(
    self,
    source: sources.Source,
    workdir: pathlib.Path,
    max_share: float,
    max_pixels: int,
  ):
    self._source = source
    # Each process lists what it met.
    process = jax.process_index()
    name = f"bad_images.{process}.txt" if process else "bad_images.txt"
    self._path = workdir / name
    self._limit = max_share * len(source)
    self._max_pixels = max_pixels
    self._met: set[int] = set()
    self._listed: set[str] = set()
    with errors.reading(self._path), contextlib.suppress(FileNotFoundError):
      self._listed.update(os.fsdecode(self._path.read_bytes()).split("\n"))

  def record(self, indices: np.ndarray) -> None:
    """Takes the indices of unusable images, -1 for none.

    Raises UserError if more images are bad than the config allows.
    """
    for index in set(indices[indices >= 0].tolist()) - self._met:
      self._met.add(index)
      self._list(index)
    if len(self._met) > self._limit:
      raise errors.UserError(
        f"{len(self._met)} of {len(self._source)} images are unusable, more"
        f" than config.data.max_bad allows; {self._path} lists them. Repair"
        " them, or raise config.data.max_bad"
      )

  def _list(self, index):
    # Workers report indices; the reason is determined again here, once.
    name, reason = describe(self._source, index, self._max_pixels)
    if name not in self._listed:
      self._listed.add(name)
      try:
        with self._path.open("ab") as file:
          file.write(os.fsencode(name) + b"\n")
      except OSError as error:
        _log.warning("cannot write %s: %s", self._path, error.strerror)
      _log.warning("unusable image %r: %s", name, reason)


def describe(
  source: sources.Source, index: int, max_pixels: int
) -> tuple[str, str]:
  """The id of an unusable image, and why it is unusable."""
  try:
    crops.decode(source[index]["image"], max_pixels)
  except OSError as error:
    return source.id_of(index), str(error.strerror)
  except errors.BadImage as error:
    return source.id_of(index), str(error)
  return source.id_of(index), "unusable when it was drawn"


@dataclasses.dataclass(frozen=True)
class _Numbers:
  """Numbers of the samples that one process reads, step by step.

  The batches are those of a single process: each process takes the rows that
  its devices need.
  """

  first: int
  batch: int
  rows: np.ndarray

  def __call__(self, step: int) -> list[int]:
    return (self.first + step * self.batch + self.rows).tolist()


@dataclasses.dataclass(frozen=True)
class _MultiCrop:
  """Number of a sample -> crops of its image. Runs in workers."""

  source: sources.Source
  order: shuffle.Order
  groups: tuple[crops.CropGroup, ...]
  ratio: tuple[float, float]
  seed: int
  max_pixels: int
  with_label: bool

  def read(self, number: int) -> sources.Example:
    """The image that is drawn first."""
    return retry.read(self.source, self.order[number])

  def __call__(
    self, number: int, read: Callable[[], sources.Example]
  ) -> dict[str, Any]:
    index = self.order[number]
    rng = np.random.default_rng((self.seed, number))
    bad = np.full(_ATTEMPTS, -1, np.int64)
    for attempt in range(_ATTEMPTS):
      try:
        views = crops.multi_crop_bytes(
          read()["image"], rng, self.groups, self.ratio, self.max_pixels
        )
      except (OSError, errors.BadImage) as error:
        if not isinstance(error, errors.Excluded):
          bad[attempt] = index
        # The replacement is drawn from the sample's own generator, so that it
        # is the same in every run, and from the same part of a mixture, so that
        # its weights hold.
        index = self.order.another(index, rng)
        read = functools.partial(retry.read, self.source, index)
      else:
        replaced = np.float32(attempt > 0)
        labels = {}
        if self.with_label:
          labels["label"] = np.int32(self.source.label_of(index))
        return labels | {"crops": views, "replacements": replaced, "bad": bad}
    if bad.max() < 0:
      raise errors.UserError(
        f"{_ATTEMPTS} images drawn in a row are excluded, the last"
        f" {self.source.id_of(index)!r}; check the lists of config.data"
      )
    name, reason = describe(self.source, int(bad.max()), self.max_pixels)
    raise errors.UserError(
      f"{_ATTEMPTS} images drawn in a row are unusable, among them {name!r}"
      f" ({reason}); check that config.data.train.path has images"
    )


def crop_groups(
  options: ml_collections.ConfigDict,
) -> tuple[crops.CropGroup, ...]:
  """The multi-crop layout of `config.crops`."""
  return tuple(
    crops.CropGroup(count, size, tuple(scale))
    for count, size, scale in zip(
      options.counts, options.sizes, options.scales, strict=True
    )
  )


def train_batches(
  source: sources.Source,
  config: ml_collections.ConfigDict,
  mesh: jax.sharding.Mesh,
  first: int,
  bad_images: BadImages,
) -> workers.Batches:
  """Endless batches of multi-crops, on the devices.

  Each is {"crops": uint8 BxVxHxWx3 for each resolution, "replacements": B, 1 if
  another image was used; and, if `has_labels`, "label": B, -1 for none}.
  `first` is the number of the first sample; `bad_images` records every unusable
  image met.
  """
  rows = mesh_lib.local_rows(mesh, config.batch_size)
  to_crops = _MultiCrop(
    source,
    _order(source, config),
    crop_groups(config.crops),
    tuple(config.crops.ratio),
    config.seed,
    config.data.max_pixels,
    has_labels(config),
  )
  batches = read_ahead.BatchReader(
    to_crops,
    _Numbers(first, config.batch_size, rows),
    _STEPS,
    reads=config.data.reads,
    makers=1 if config.data.workers else _THREADS,
    stride=max(1, config.data.workers),
  )
  loader = _loader(batches, _STEPS)
  if config.data.workers:
    # grain's workers read absl's flags, which a notebook never parses.
    if not flags.FLAGS.is_parsed():
      flags.FLAGS.mark_as_parsed()
    options = grain.MultiprocessingOptions(num_workers=config.data.workers)
    begin = functools.partial(workers.begin, workers.owner())
    loader = loader.mp_prefetch(options, worker_init_fn=begin)

  def to_devices(batch):
    bad_images.record(batch.pop("bad"))
    return mesh_lib.to_global(mesh, batch)

  ahead = iter(
    grain.experimental.ThreadPrefetchIterDataset(
      loader.map(to_devices), prefetch_buffer_size=2
    )
  )

  def close():
    batches.close()  # First: grain waits for what is under way.
    ahead.close()

  return workers.Batches(ahead, config.data.workers, close)


def _loader(batches, steps):
  """The steps in order; one thread requests them, a few ahead."""
  return (
    grain.MapDataset.range(steps)
    .map(batches)
    .to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4))
  )


def has_labels(config: ml_collections.ConfigDict) -> bool:
  """Whether training learns from labels, at least beside the task."""
  return config.task != "swav" or config.online.lr > 0


def _order(source, config):
  if isinstance(source, sources.Mixture):
    return shuffle.Order(source.sizes, source.weights, config.seed)
  return shuffle.Order((len(source),), (1.0,), config.seed)


def indices_of(
  source: sources.Source, config: ml_collections.ConfigDict, first: int
) -> list[int]:
  """The images of the batch of sample `first`, before replacements."""
  numbers = np.arange(first, first + config.batch_size)
  return _order(source, config).at(numbers).tolist()


def abstract_batch(
  config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh
) -> dict[str, Any]:
  """The shapes, dtypes and shardings of a training batch; reads no image."""
  batch = config.batch_size
  each = functools.partial(jax.ShapeDtypeStruct, sharding=mesh_lib.rows(mesh))
  labels = {"label": each((batch,), np.int32)} if has_labels(config) else {}
  return labels | {
    "crops": tuple(
      each((batch, group.count, group.size, group.size, 3), np.uint8)
      for group in crop_groups(config.crops)
    ),
    "replacements": each((batch,), np.float32),
  }


@dataclasses.dataclass(frozen=True)
class _CleanView:
  """Index of an image, or -1 for padding -> its view. Runs in threads."""

  source: sources.Source
  view: View
  max_pixels: int

  def read(self, index: int) -> sources.Example:
    if index < 0:
      return sources.Example(image=b"", label=sources.UNLABELLED, id="")
    return retry.read(self.source, index)

  def __call__(
    self, index: int, read: Callable[[], sources.Example]
  ) -> dict[str, Any]:
    nothing = {
      "image": np.zeros((*self.view.shape, 3), np.uint8),
      "index": index,
      "label": -1,
      "mask": False,
    }
    if index < 0:
      return nothing
    try:
      image = crops.decode(read()["image"], self.max_pixels)
    except (OSError, errors.BadImage):
      return nothing
    return {
      "image": self.view(image, index),
      "index": index,
      "label": self.source.label_of(index),
      "mask": True,
    }


def clean_batches(
  source: sources.Source,
  indices: Sequence[int],
  view: View,
  mesh: jax.sharding.Mesh,
  batch_size: int,
  max_pixels: int,
  reads: int = read_ahead.READS,
) -> Iterator[dict[str, jax.Array]]:
  """Batches of views: {"image": uint8 BxHxWx3, "index", "label", "mask"}.

  Every chosen image once, in order, H x W as `view.shape` says. The mask is
  False for unusable images and for the rows that fill up the last batch, whose
  index is -1. Pixels are not normalized. `batch_size`, of all devices together,
  is raised to a multiple of their number.
  """
  batch = -(-batch_size // mesh.size) * mesh.size
  padded = np.full(-(-len(indices) // batch) * batch, -1, np.int64)
  padded[: len(indices)] = indices
  seen = _CleanView(source, view, max_pixels)
  rows = mesh_lib.local_rows(mesh, batch)
  indices_SxB = padded.reshape(-1, batch)[:, rows]
  batches = read_ahead.BatchReader(
    seen,
    lambda step: indices_SxB[step].tolist(),
    len(indices_SxB),
    reads=reads,
    makers=_THREADS,
  )
  with contextlib.closing(batches):
    for local in _loader(batches, len(indices_SxB)):
      yield mesh_lib.to_global(mesh, local)
