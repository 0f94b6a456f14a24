"""Checks the values of a config, each by itself and together."""

import math

import ml_collections

from seer_jax.config import keys
from seer_jax.runtime import errors


def check_each(config: ml_collections.ConfigDict) -> None:
  """Refuses values that are invalid whatever the others are.

  Raises UserError with the key, its value, and what it must be.
  """
  for key, value in keys.flatten(config):
    if not all(map(_is_usual, _numbers(value))):
      raise errors.UserError(
        f"config.{key} is {value!r}; numbers must be finite in float32, and"
        " integers below 2^31"
      )
    # Python's booleans are integers.
    if isinstance(value, bool) and keys.kind(key) in (int, float):
      raise errors.UserError(f"config.{key} is {value!r}; it must be a number")
    check = keys.KEYS[key].check
    if value is not None and not check.passes(value):
      raise errors.UserError(f"config.{key} is {value!r}; it must {check.must}")


def _numbers(value):
  """All numbers in a value."""
  if isinstance(value, tuple | list):
    for each in value:
      yield from _numbers(each)
  elif isinstance(value, int | float):
    yield value


def _is_usual(number):
  most = 2.0**31 if isinstance(number, int) else 3e38
  return math.isfinite(number) and abs(number) < most


def check_together(config: ml_collections.ConfigDict) -> None:
  """Refuses values that contradict each other, once every key is resolved.

  Raises UserError with the key, its value, and what it must be.
  """
  crops, batch = config.crops, config.batch_size
  groups = len(crops.counts)
  part = batch // config.accumulate
  own = _of_swav if config.task == "swav" else _of_labels
  for key, value, fine, must in (
    *own(config),
    ("steps", config.steps, config.steps < 2**31, "be below 2^31; see epochs"),
    (
      "crops.sizes",
      crops.sizes,
      len(crops.sizes) == groups,
      f"have one entry for each of counts={crops.counts}",
    ),
    (
      "crops.scales",
      crops.scales,
      len(crops.scales) == groups,
      f"have one pair for each of counts={crops.counts}",
    ),
    (
      "model.bn_groups",
      config.model.bn_groups,
      part % config.model.bn_groups == 0,
      f"divide the {part} images of a norm (batch_size={batch} /"
      f" accumulate={config.accumulate})",
    ),
    (
      "model.scan",
      config.model.scan,
      not (config.model.scan and config.model.remat == "group"),
      'be False with model.remat="group": a loop recomputes blocks one by one',
    ),
    (
      "profile",
      config.profile,
      config.profile <= max(-1, config.steps - 3),
      f"leave three steps to trace, of steps={config.steps}",
    ),
    (
      "eval.resize",
      config.eval.resize,
      config.eval.resize >= config.eval.size,
      f"be at least eval.size={config.eval.size}",
    ),
  ):
    if not fine:
      raise errors.UserError(f"config.{key} is {value!r}; it must {must}")


def _of_swav(config):
  swav, counts = config.swav, config.crops.counts
  views, batch = sum(counts), config.batch_size
  yield "crops.counts", counts, views > 1, "make at least two crops"
  yield (
    "swav.assign_crops",
    swav.assign_crops,
    max(swav.assign_crops) < views,
    f"name crops from 0 to {views - 1}",
  )
  yield (
    "swav.instance_weight",
    swav.instance_weight,
    swav.instance_weight == 0 or len(swav.assign_crops) > 1,
    f"be 0 where one crop assigns (swav.assign_crops={swav.assign_crops})",
  )
  yield (
    "swav.queue_length",
    swav.queue_length,
    swav.queue_length % batch == 0,
    f"be 0 or a multiple of batch_size={batch}",
  )


def _of_labels(config):
  yield (
    "crops.counts",
    config.crops.counts,
    config.crops.counts == (1,),
    f"be (1,) for task={config.task}; config.labelled() begins with it",
  )
  mixes = config.finetune.mixup > 0 or config.finetune.cutmix > 0
  part = config.batch_size // config.accumulate
  yield (
    "batch_size",
    config.batch_size,
    not mixes or part % 2 == 0,
    "give an even number of images at once, for mixup and CutMix",
  )
