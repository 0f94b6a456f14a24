"""The way of images from a source to the devices.

Training reads one endless, numbered sequence of samples: the source's images
shuffled anew each epoch, each cropped by a generator seeded with its number.
Step t takes samples t B to (t + 1) B - 1. So the position of a run is its step
count, the same for any number of processes, workers or devices, and a resumed
run sees exactly what it would have seen.
"""

import dataclasses
import logging
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import grain
import jax
import ml_collections
import numpy as np

from seer_jax import crops, errors, sources
from seer_jax import mesh as mesh_lib

_log = logging.getLogger(__name__)

# A batch in which this many draws in a row are unusable says that the folder
# is not what it seems.
_ATTEMPTS = 8


class BadImages:
  """Which images could not be used: each logged once, counted, limited."""

  def __init__(
    self,
    source: sources.Source,
    workdir: pathlib.Path,
    max_share: float,
    max_pixels: int,
  ):
    self._source = source
    self._path = workdir / "bad_images.txt"
    self._limit = max_share * len(source)
    self._max_pixels = max_pixels
    self._known = set()
    if self._path.exists():
      self._known.update(self._path.read_text().splitlines())

  def __len__(self) -> int:
    return len(self._known)

  def record(self, indices: np.ndarray) -> None:
    """Takes the indices of unusable images; negative ones mean none.

    Raises:
      UserError: more images are bad than the config allows.
    """
    for index in np.unique(indices[indices >= 0]):
      self._record_one(int(index))
    if len(self) > self._limit:
      raise errors.UserError(
        f"{len(self)} of {len(self._source)} images are unusable, more than"
        f" config.data.max_bad allows; they are listed in {self._path}."
        " Mend them, or allow more"
      )

  def _record_one(self, index):
    # Workers report indices; id and reason are found again here, once.
    name, reason = _describe(self._source, index, self._max_pixels)
    if name in self._known:
      return
    self._known.add(name)
    with self._path.open("a") as file:
      file.write(name + "\n")
    _log.warning("unusable image %s: %s", name, reason)


def _describe(source, index, max_pixels):
  try:
    sample = source[index]
  except OSError as error:
    return str(error.filename), error.strerror
  try:
    crops.decode(sample["image"], max_pixels)
  except errors.BadImage as error:
    return sample["id"], str(error)
  return sample["id"], "unusable when it was drawn"


@dataclasses.dataclass(frozen=True)
class _MultiCrop:
  """(number of the sample, index of its image) -> crops. Runs in workers."""

  source: sources.Source
  groups: tuple[crops.CropGroup, ...]
  ratio: tuple[float, float]
  seed: int
  max_pixels: int

  def __call__(self, number: int, index: int) -> dict[str, Any]:
    rng = np.random.default_rng((self.seed, number))
    bad = np.full(_ATTEMPTS, -1, np.int64)
    for attempt in range(_ATTEMPTS):
      try:
        image = crops.decode(self.source[index]["image"], self.max_pixels)
      except (OSError, errors.BadImage):
        bad[attempt] = index
        # The stand-in is drawn from the sample's own generator: the same one
        # in every run, wherever the bad file is met.
        index = int(rng.integers(len(self.source)))
      else:
        views = crops.multi_crop(image, rng, self.groups, self.ratio)
        return {"crops": views, "bad": bad}
    raise errors.UserError(
      f"{_ATTEMPTS} images drawn one after the other are unusable, among them"
      f" {_describe(self.source, int(bad[0]), self.max_pixels)}. Is this a"
      " folder of images?"
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
  start_step: int,
  bad_images: BadImages,
) -> Iterator[dict[str, Any]]:
  """Endless batches {"crops": uint8 BxVxHxWx3 for each resolution}, on devices.

  Args:
    source: the images.
    config: resolved.
    mesh: where the batches go.
    start_step: the step whose batch comes first.
    bad_images: told of every unusable image met.
  """
  process, processes = jax.process_index(), jax.process_count()
  samples = (
    grain.MapDataset.range(len(source))
    .shuffle(seed=config.seed)
    .repeat()
    .map_with_index(
      _MultiCrop(
        source,
        crop_groups(config.crops),
        tuple(config.crops.ratio),
        config.seed,
        config.data.max_pixels,
      )
    )
  )
  first = start_step * config.batch_size + process
  batches = samples[first::processes].batch(config.batch_size // processes)
  threads = config.data.workers == 0
  loader = batches.to_iter_dataset(
    grain.ReadOptions(num_threads=2 if threads else 1, prefetch_buffer_size=4)
  )
  if not threads:
    options = grain.MultiprocessingOptions(num_workers=config.data.workers)
    loader = loader.mp_prefetch(options)

  def to_devices(batch):
    bad_images.record(batch.pop("bad"))
    return mesh_lib.to_global(mesh, batch)

  return iter(
    grain.experimental.ThreadPrefetchIterDataset(
      loader.map(to_devices), prefetch_buffer_size=2
    )
  )


@dataclasses.dataclass(frozen=True)
class _CleanView:
  """Index of an image, or -1 for padding -> its clean view. Runs in workers."""

  source: sources.Source
  resize: int
  size: int
  max_pixels: int

  def __call__(self, index: int) -> dict[str, Any]:
    blank = np.zeros((self.size, self.size, 3), np.uint8)
    if index < 0:
      return {"image": blank, "label": -1, "mask": False}
    try:
      sample = self.source[index]
      image = crops.decode(sample["image"], self.max_pixels)
    except (OSError, errors.BadImage):
      return {"image": blank, "label": -1, "mask": False}
    view = crops.center_crop(image, self.resize, self.size)
    return {"image": view, "label": sample["label"], "mask": True}


def clean_batches(
  source: sources.Source,
  indices: Sequence[int],
  config: ml_collections.ConfigDict,
  mesh: jax.sharding.Mesh,
) -> Iterator[dict[str, jax.Array]]:
  """Batches {"image": uint8 BxHxWx3, "label": B, "mask": B} of chosen images.

  Every image once, in order; the last batch is filled up with rows whose mask
  is False, as are rows of unusable images.
  """
  batch, devices = config.eval.batch_size, mesh.size
  batch = -(-batch // devices) * devices
  padded = np.full(-(-len(indices) // batch) * batch, -1, np.int64)
  padded[: len(indices)] = indices
  view = _CleanView(
    source, config.eval.resize, config.eval.size, config.data.max_pixels
  )
  process, processes = jax.process_index(), jax.process_count()
  loader = (
    grain.MapDataset.source(padded[process::processes])
    .map(view)
    .batch(batch // processes)
    .to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=4))
  )
  for local in loader:
    yield mesh_lib.to_global(mesh, local)
