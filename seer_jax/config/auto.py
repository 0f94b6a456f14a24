"""Chooses the keys that a config leaves open, from data and hardware.

Each choice has a reason, for the log. Keys that are set stay.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import ml_collections
import numpy as np

from seer_jax.config import batch as batch_lib
from seer_jax.config import keys, remat
from seer_jax.data import crops, sources
from seer_jax.runtime import errors

_FEWEST = 8
# Runs on fewer images in all are short: 200 epochs of CIFAR-10.
_SHORT = 10_000_000
# Key, value in short runs, published value, and why they differ.
_IN_SHORT_RUNS = (
  ("augment.strength", 0.5, 1.0, "strong color jitter delays it"),
  ("swav.epsilon", 0.03, 0.05, "sharper codes leave ln K sooner"),
  ("swav.instance_weight", 4.0, 0.0, "images separate before clusters do"),
)
# Values of open keys that are not None.
_OPEN = {"classes": 0}


class Choice(NamedTuple):
  """The choice for a key that was open."""

  key: str
  value: Any
  reason: str


@dataclasses.dataclass(frozen=True)
class RunContext:
  """What choices depend on."""

  images: int
  side: int  # Median shorter side of the images, in pixels.
  devices: int  # In the mesh, over all hosts.
  platform: str  # Of the devices, as JAX names it.
  precision: tuple[str, str]  # `mesh.native_precision`.
  cores: int  # Of this host.
  labels: int = 0
  memory: int = 0  # Bytes of a device; 0 if it is the host's.

  @property
  def accelerated(self) -> bool:
    """Whether the devices are GPUs or TPUs."""
    return self.platform != "cpu"


def median_side(
  source: sources.Source, max_pixels: int, sample: int = 200
) -> int:
  """Median shorter side of images spread evenly over the source.

  Raises UserError if none of them can be read.
  """
  sides = []
  for index in np.linspace(0, len(source) - 1, sample).astype(int).tolist():
    try:
      data = source[index]["image"]
      # Formats without a simple header are decoded.
      size = crops.image_size(data) or crops.decode(data, max_pixels).shape[:2]
    except (OSError, errors.BadImage):
      continue
    sides.append(min(size))
  if not sides:
    raise errors.UserError(
      f"none of {min(sample, len(source))} sampled files is a readable image;"
      f" check, for example, {source.id_of(0)!r}"
    )
  return int(np.median(sides))


def complete(
  config: ml_collections.ConfigDict, here: RunContext
) -> list[Choice]:
  """Sets every open key; returns the choices, in order.

  Raises UserError if the batch is larger than the data, or cannot be split
  evenly over the devices.
  """
  if here.images < _FEWEST:
    raise errors.UserError(
      f"there are only {here.images} images; give at least {_FEWEST}"
    )
  made = []
  of_task = {"swav": (_length, _short, _swav, _optim)}
  for rule in (
    _precision,
    _classes,
    _crops,
    _trunk,
    _batch,
    _loss_scale,
    *of_task.get(config.task, (_labelled, _short)),
    _remat,
    _workers,
  ):
    for choice in rule(config, here):
      if keys.get(config, choice.key) in (None, _OPEN.get(choice.key)):
        keys.put(config, choice.key, choice.value)
        made.append(choice)
  _refuse_batch(config, here)
  return made


def _precision(config, here) -> Iterator[Choice]:
  del config
  yield Choice("precision", *here.precision)
  tpu = here.platform == "tpu"
  reason = "TPUs compile large trunks" if tpu else "compiles quickly"
  reason += " block by block for hours" if tpu else " enough, runs faster"
  yield Choice("model.scan", tpu, reason)


def _classes(config, here) -> Iterator[Choice]:
  if config.task != "swav" or config.online.lr:
    yield Choice("classes", here.labels, "the labels of the images")


def _labelled(config, here) -> Iterator[Choice]:
  if config.steps is None:
    usual = {"probe": 28.0, "finetune": 30.0}[config.task]
    yield Choice("epochs", usual, "VISSL's for ImageNet")
    per_epoch = here.images / config.batch_size
    steps = max(1, round(config.epochs * per_epoch))
    yield Choice("steps", steps, f"{config.epochs:g} epochs of {per_epoch:.1f}")
  yield Choice(
    "optim.lr",
    {"probe": 0.01, "finetune": 0.1}[config.task],
    f"VISSL's, for a batch of {config.optim.lr_batch}",
  )


def _crops(config, here) -> Iterator[Choice]:
  most = 224 if here.accelerated else 96
  large = min(most, max(16, here.side // 8 * 8))
  small = max(8, round(large * 96 / 224 / 8) * 8)
  reason = f"images have a median side of {here.side} px"
  if here.side > most:
    reason += "; SEER's size" if here.accelerated else "; no accelerator"
  groups = len(config.crops.counts)
  sizes = (large,) + (small,) * (groups - 1)
  yield Choice("crops.sizes", sizes, reason)
  size = config.crops.sizes[0]
  yield Choice("eval.size", size, "the large crop's")
  size = config.eval.size
  whole = here.side <= size * 8 // 7
  resize = size if whole else size * 8 // 7
  reason = "small images are used whole" if whole else "256 for 224, scaled"
  yield Choice("eval.resize", resize, reason)


def _trunk(config, here) -> Iterator[Choice]:
  if config.model.regnet or config.model.depths:
    pass  # They take precedence over a name.
  elif not here.accelerated:
    yield Choice("model.trunk", "regnety_200mf", "no accelerator")
  elif here.images < 1_000_000:
    yield Choice("model.trunk", "regnety_4.0gf", "under a million images")
  else:
    yield Choice("model.trunk", "regnety_16gf", "a million images or more")
  size = config.crops.sizes[0]
  reason = f"crops of {size} px"
  yield Choice("model.stem_stride", 1 if size < 96 else 2, reason)
  strides = (1, 2, 2, 2) if size <= 40 else (2, 2, 2, 2)
  yield Choice("model.strides", strides, reason)


def _batch(config, here) -> Iterator[Choice]:
  if here.accelerated:
    each = 256 if config.crops.sizes[0] <= 64 else 64
    most, reason = each * here.devices, f"{each} a device"
  else:
    most, reason = 64, "no accelerator"
  quarter = here.images // 4
  if quarter < most:
    most, reason = quarter, f"a quarter of {here.images} images at most"
  each = 2 ** int(math.log2(max(1, most // here.devices)))
  yield Choice("batch_size", each * here.devices, reason)


def _loss_scale(config, here) -> Iterator[Choice]:
  """2^16 is usual for a mean over the 32 images of one GPU.

  Ours is a mean over all images, with smaller gradients.
  """
  del here
  scale = 2.0 ** round(11 + math.log2(config.batch_size))
  reason = "2^16 for 32 images of a batch; of use in fp16"
  yield Choice("loss_scale.first", scale, reason)


def _length(config, here) -> Iterator[Choice]:
  per_epoch = here.images / config.batch_size
  if config.steps is None and config.epochs is None:
    most = 100_000_000 if here.accelerated else 300_000
    epochs = float(min(max(1, most // here.images), 200))
    yield Choice(
      "epochs",
      epochs,
      f"{here.images} images, at most {most:,} views of them and 200 epochs",
    )
  if config.epochs is not None:
    steps = max(1, round(config.epochs * per_epoch))
    yield Choice("steps", steps, f"{config.epochs:g} epochs of {per_epoch:.1f}")


def _short(config, here) -> Iterator[Choice]:
  """Values with which short pre-training learns more (docs/learning.md)."""
  del here
  images = config.steps * config.batch_size
  short = config.task == "swav" and images < _SHORT
  for key, in_short_runs, published, reason in _IN_SHORT_RUNS:
    if not short:
      yield Choice(key, published, "as published")
    elif key == "swav.instance_weight" and len(config.swav.assign_crops) == 1:
      yield Choice(key, 0.0, "a single crop assigns")
    else:
      yield Choice(key, in_short_runs, f"a short run: {reason}")


def _swav(config, here) -> Iterator[Choice]:
  if here.images >= 50_000_000:
    count = 16_000
  else:
    count = min(3000, 2 ** round(math.log2(max(16, here.images / 64))))
  reason = f"about one for 64 of {here.images} images, from 16 to SwAV's 3000,"
  reason += " SEER's 16000 from 50 million"
  yield Choice("model.prototypes", (count,), reason)
  batch, count = config.batch_size, max(config.model.prototypes)
  length = min(-(-5 * count // 4 // batch), here.images // 2 // batch) * batch
  if batch >= count:
    length, reason = 0, f"a batch of {batch} is enough for {count} prototypes"
  elif not length:
    reason = "few images"
  else:
    reason = f"a batch of {batch} is too small for {count} prototypes"
  yield Choice("swav.queue_length", length, reason)
  yield Choice("swav.queue_start", config.steps // 7, "a seventh of the run")
  freeze = min(313, config.steps // 20)
  yield Choice("swav.freeze_steps", freeze, "5 % of the run, 313 at most")


def _optim(config, here) -> Iterator[Choice]:
  del here
  if config.batch_size >= 1024:
    yield Choice("optim.lr", 0.3, "SwAV's for large batches")
  elif config.steps >= 5000:
    yield Choice("optim.lr", 0.6, "SwAV's for small batches")
  else:
    # LARC's progress is steps times rate (docs/results.md, digits).
    lr = 0.8 * config.optim.lr_batch / config.batch_size
    yield Choice("optim.lr", lr, f"a peak of 0.8 for only {config.steps} steps")


def _remat(config, here) -> Iterator[Choice]:
  if config.model.remat is None:
    found = remat.least(config, here.devices, here.memory)
    yield Choice("model.remat", *found)


def _workers(config, here) -> Iterator[Choice]:
  del config
  if here.cores <= 4:
    yield Choice("data.workers", 0, f"{here.cores} cores: threads are enough")
  else:
    yield Choice("data.workers", min(here.cores - 2, 32), f"{here.cores} cores")


def _refuse_batch(config, here):
  batch = config.batch_size
  if here.images < here.devices:
    raise errors.UserError(
      f"there are fewer images ({here.images}) than devices ({here.devices});"
      f" give --config.mesh.data={here.images}"
    )
  if batch > here.images:
    raise errors.UserError(
      f"config.batch_size is {batch}, but there are only {here.images} images;"
      f" give at most --config.batch_size={here.images}"
    )
  share = here.devices * config.accumulate
  if batch % share:
    fitting = batch_lib.resized(
      config, max(share, batch // share * share), here.devices
    )
    trial = batch_lib.changed(config, fitting)
    parts = f" in {config.accumulate} parts" if config.accumulate > 1 else ""
    raise errors.UserError(
      f"config.batch_size is {batch}, which cannot be split evenly over"
      f" {here.devices} devices{parts}; try {batch_lib.flags(fitting)}, which"
      f" changes the recipe: {', '.join(batch_lib.effects(config, trial))}"
    )
