"""What the values of a config must be, each by itself and together."""

import math
import re
from collections.abc import Callable
from typing import Any

import ml_collections

from seer_jax.config import keys
from seer_jax.models import heads
from seer_jax.runtime import errors


def _pair(value: Any) -> bool:
  return isinstance(value, tuple) and len(value) == 2


def _counts(value: Any) -> bool:
  """Whole numbers from 1 on, at least one."""
  return bool(value) and all(isinstance(n, int) and n > 0 for n in value)


def _share(value: Any) -> bool:
  return 0 <= value <= 1


# What each value must be by itself. Keys left open (None) pass.
_RULES: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
  (
    "task",
    lambda v: v in ("swav", "probe", "finetune"),
    "be swav, probe or finetune",
  ),
  ("classes", lambda v: v == 0 or v > 1, "be 2 or more, or 0 for the data's"),
  ("seed", lambda v: v >= 0, "be 0 or more"),
  ("epochs", lambda v: v > 0, "be positive"),
  ("steps", lambda v: v > 0, "be positive"),
  ("batch_size", lambda v: v > 0, "be positive"),
  ("accumulate", lambda v: v > 0, "be positive"),
  (
    "precision",
    lambda v: v in ("fp32", "bf16", "fp16"),
    "be fp32, bf16 or fp16",
  ),
  ("loss_scale.first", lambda v: v > 0, "be positive"),
  ("loss_scale.growth_steps", lambda v: v > 0, "be positive"),
  ("mesh.data", lambda v: v == -1 or v > 0, "be a count, or -1 for all"),
  ("mesh.fsdp", lambda v: v > 0, "be positive"),
  ("data.workers", lambda v: v >= 0, "be 0 or more"),
  ("data.reads", lambda v: 0 < v <= 1024, "be from 1 to 1024"),
  ("data.max_pixels", lambda v: v > 0, "be positive"),
  ("data.max_bad", lambda v: 0 <= v <= 1, "be a share from 0 to 1"),
  ("crops.counts", _counts, "be a tuple of counts"),
  ("crops.sizes", _counts, "be a tuple of pixels"),
  (
    "crops.scales",
    lambda v: all(_pair(each) and 0 < each[0] <= each[1] <= 1 for each in v),
    "be a tuple of pairs of areas, 0 < low <= high <= 1",
  ),
  (
    "crops.ratio",
    lambda v: _pair(v) and 0 < v[0] <= v[1],
    "be a pair, low > 0",
  ),
  ("augment.flip", _share, "be a probability"),
  ("augment.jitter", _share, "be a probability"),
  ("augment.grey", _share, "be a probability"),
  ("augment.blur", _share, "be a probability"),
  ("augment.strength", lambda v: v >= 0, "be 0 or more"),
  ("augment.brightness", lambda v: v >= 0, "be 0 or more"),
  ("augment.contrast", lambda v: v >= 0, "be 0 or more"),
  ("augment.saturation", lambda v: v >= 0, "be 0 or more"),
  ("augment.hue", lambda v: 0 <= v <= 0.5, "be from 0 to 0.5"),
  ("augment.mean", lambda v: len(v) == 3, "have 3 channels"),
  ("augment.std", lambda v: len(v) == 3 and min(v) > 0, "have 3, positive"),
  ("augment.randaugment", lambda v: 0 <= v <= 8, "be from 0 to 8"),
  ("augment.magnitude", lambda v: 0 <= v <= 10, "be from 0 to 10"),
  (
    "eval.interpolation",
    lambda v: v in ("bilinear", "bicubic", "area"),
    "be bilinear, bicubic or area",
  ),
  ("model.se_ratio", _share, "be a share from 0 to 1"),
  ("model.stem_width", lambda v: v > 0, "be positive"),
  ("model.stem_stride", lambda v: v in (1, 2), "be 1 or 2"),
  (
    "model.strides",
    lambda v: _counts(v) and max(v) <= 2,
    "be a tuple of 1 and 2",
  ),
  ("model.bn_groups", lambda v: v > 0, "be positive"),
  (
    "model.remat",
    lambda v: bool(re.fullmatch(r"none|first-\d{1,4}|block|group", v)),
    "be none, block, group, or first-N for the first N blocks",
  ),
  (
    "model.remat_groups",
    lambda v: all(map(_counts, v)),
    "be a tuple of counts for each stage",
  ),
  (
    "model.prototypes",
    lambda v: _counts(v) and min(v) > 1,
    "be a tuple of counts above 1",
  ),
  (
    "model.head.hidden",
    lambda v: v == () or _counts(v),
    "be a tuple of widths",
  ),
  ("model.head.out", lambda v: v > 0, "be positive"),
  ("swav.temperature", lambda v: v > 0, "be positive"),
  ("swav.epsilon", lambda v: v > 0, "be positive"),
  ("swav.iterations", lambda v: v >= 0, "be 0 or more"),
  (
    "swav.assign_crops",
    lambda v: _counts([n + 1 for n in v]) and len(set(v)) == len(v),
    "be a tuple of different crops, counted from 0",
  ),
  ("swav.instance_weight", lambda v: v >= 0, "be 0 or more"),
  ("swav.instance_temperature", lambda v: v > 0, "be positive"),
  ("swav.freeze_steps", lambda v: v >= 0, "be 0 or more"),
  ("swav.queue_start", lambda v: v >= 0, "be 0 or more"),
  ("swav.queue_length", lambda v: v >= 0, "be 0 or more"),
  ("online.lr", lambda v: v >= 0, "be 0 or more"),
  ("probe.taps", lambda v: all(map(heads.tap, v)), "name taps"),
  (
    "probe.norms",
    lambda v: set(v) in ({True}, {False}, {True, False}),
    "be (True,), (False,) or (True, False)",
  ),
  (
    "probe.rates",
    lambda v: bool(v) and min(v) > 0 and len(set(v)) == len(v),
    "be a tuple of different positive factors",
  ),
  ("probe.held_out", lambda v: 0 <= v < 1, "be in [0, 1)"),
  ("finetune.head", lambda v: v in ("linear", "swav"), "be linear or swav"),
  ("finetune.head_rate", lambda v: v > 0, "be positive"),
  ("finetune.head_decay", lambda v: v >= 0, "be 0 or more"),
  ("finetune.layer_decay", lambda v: 0 < v <= 1, "be in (0, 1]"),
  ("finetune.drop_path", lambda v: 0 <= v < 1, "be in [0, 1)"),
  ("finetune.smoothing", lambda v: 0 <= v < 1, "be in [0, 1)"),
  ("finetune.mixup", lambda v: v >= 0, "be 0 or more"),
  ("finetune.cutmix", lambda v: v >= 0, "be 0 or more"),
  ("finetune.ema", lambda v: 0 <= v < 1, "be in [0, 1)"),
  (
    "optim.name",
    lambda v: v in ("larc", "lars", "sgd", "adamw"),
    "be larc, lars, sgd or adamw",
  ),
  ("optim.lr", lambda v: v > 0, "be positive"),
  ("optim.warmup_start", _share, "be a share of the peak"),
  ("optim.end", _share, "be a share of the peak"),
  (
    "optim.milestones",
    lambda v: all(0 < each < 1 for each in v) and list(v) == sorted(v),
    "be rising shares of the run",
  ),
  ("optim.step_factor", lambda v: 0 < v < 1, "be in (0, 1)"),
  ("optim.momentum", lambda v: 0 <= v < 1, "be in [0, 1)"),
  ("optim.weight_decay", lambda v: v >= 0, "be 0 or more"),
  ("optim.trust", lambda v: v > 0, "be positive"),
  ("optim.lr_batch", lambda v: v > 0, "be positive"),
  ("optim.warmup_fraction", lambda v: 0 <= v < 1, "be in [0, 1)"),
  ("eval.every", lambda v: v >= 0, "be 0 or more"),
  ("eval.max_images", lambda v: v > 0, "be positive"),
  ("eval.batch_size", lambda v: v > 0, "be positive"),
  ("eval.resize", lambda v: v > 0, "be pixels"),
  ("eval.size", lambda v: v > 0, "be pixels"),
  ("eval.knn_k", _counts, "be a tuple of counts"),
  (
    "eval.knn_metric",
    lambda v: bool(v) and set(v) <= {"cosine", "dot", "euclidean"},
    "be a tuple of cosine, dot and euclidean",
  ),
  (
    "eval.knn_temperature",
    lambda v: bool(v) and min(v) > 0,
    "be a tuple of positive numbers",
  ),
  ("eval.taps", lambda v: bool(v) and all(map(heads.tap, v)), "name taps"),
  (
    "eval.shares",
    lambda v: all(0 < each <= 1 for each in v),
    "be a tuple of shares, above 0",
  ),
  ("eval.shots", lambda v: v == () or _counts(v), "be a tuple of counts"),
  ("eval.seeds", lambda v: v > 0, "be positive"),
  ("eval.held_out", lambda v: 0 < v < 1, "be a share between 0 and 1"),
  ("log.every", lambda v: v > 0, "be positive"),
  ("profile", lambda v: v >= -1, "be a step, or -1"),
  ("report.images", lambda v: v >= 0, "be 0 or more"),
  ("checkpoint.every", lambda v: v > 0, "be positive"),
  ("checkpoint.keep", lambda v: v > 0, "be positive"),
  ("checkpoint.keep_every", lambda v: v >= 0, "be 0 or more"),
  ("checkpoint.best", lambda v: v >= 0, "be 0 or more"),
  ("checkpoint.risk", lambda v: v > 0, "be positive"),
  ("rollback.after", lambda v: v >= 0, "be 0 or more"),
  ("watchdog", lambda v: v >= 0, "be seconds, 0 for none"),
)


def check_each(config: ml_collections.ConfigDict) -> None:
  """Refuses values that could never work, whatever the others are.

  Raises:
    UserError: says which key, its value, and what it must be.
  """
  values = dict(keys.flatten(config))
  for key, value in values.items():
    if not all(map(_is_usual, _numbers(value))):
      raise errors.UserError(
        f"config.{key} is {value!r}; numbers must be finite in float32, whole"
        " ones below 2^31"
      )
    # To Python they are numbers.
    if isinstance(value, bool) and keys.kind(key) in (int, float):
      raise errors.UserError(f"config.{key} is {value!r}; it must be a number")
  for key, fine, must in _RULES:
    if values[key] is not None and not _passes(fine, values[key]):
      raise errors.UserError(f"config.{key} is {values[key]!r}; it must {must}")


def _passes(fine, value):
  try:
    return fine(value)
  except (TypeError, ValueError):  # Not even of the right kind.
    return False


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

  Raises:
    UserError: says which key, its value, and what it must be.
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
      f"divide the {part} images normalised at once (batch_size={batch} /"
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
