"""The size of the batch, and the keys that depend on it.

The learning rate follows the batch (Goyal et al. 2017, section 2.1), norms use
groups of its images, the queue has whole batches.
"""

import copy
import math
from collections.abc import Iterator, Mapping
from typing import Any

import ml_collections

from seer_jax.config import keys, validate
from seer_jax.runtime import errors

Changes = Mapping[str, Any]


def peak_rate(optim: ml_collections.ConfigDict, batch_size: int) -> float:
  """Linear scaling: the rate of `optim.lr_batch` images, for `batch_size`."""
  return optim.lr * batch_size / optim.lr_batch


def resized(
  config: ml_collections.ConfigDict, batch: int, devices: int
) -> dict[str, Any]:
  """Values of the keys that change with another batch, by dotted key."""
  changes = {"batch_size": batch}
  changes |= _groups(config, batch // config.accumulate, devices)
  if config.swav.queue_length and config.swav.queue_length % batch:
    length = max(1, config.swav.queue_length // batch) * batch
    changes["swav.queue_length"] = length
  return changes


def in_parts(
  config: ml_collections.ConfigDict, accumulate: int, devices: int
) -> dict[str, Any]:
  """Values of the keys that change if the batch is split into parts.

  Groups of norms are divided too, so that a norm sees as many images as before;
  if a part has fewer, it is one group.
  """
  groups = _groups(config, config.batch_size // accumulate, devices)
  return {"accumulate": accumulate} | groups


def _groups(config, images, devices):
  """Groups of norms for so many images at once, as before if possible.

  A group has all images of some devices, or some of one device: one that begins
  in the middle of a device would gather all activations.
  """
  before = _normalized(config)
  possible = [
    n
    for n in range(1, images + 1)
    if images % n == 0 and (devices % n == 0 or n % devices == 0)
  ]
  # Nearest in size; of two, the larger group.
  groups = min(possible, key=lambda n: (abs(math.log(images / n / before)), n))
  return {} if groups == config.model.bn_groups else {"model.bn_groups": groups}


def _normalized(config):
  """Images of a norm."""
  return config.batch_size / config.accumulate / config.model.bn_groups


def changed(
  config: ml_collections.ConfigDict, changes: Changes
) -> ml_collections.ConfigDict:
  """A copy with other values."""
  config = copy.deepcopy(config)
  for key, value in changes.items():
    keys.put(config, key, value)
  return config


def is_possible(config: ml_collections.ConfigDict, changes: Changes) -> bool:
  """Whether the changed values still fit together."""
  try:
    validate.check_together(changed(config, changes))
  except errors.UserError:
    return False
  return True


def flags(changes: Changes) -> str:
  """Changes as command-line flags."""
  return " ".join(f"--config.{key}={value}" for key, value in changes.items())


def effects(
  config: ml_collections.ConfigDict, trial: ml_collections.ConfigDict
) -> Iterator[str]:
  """How the recipe changes from one config to another, a phrase each."""
  if trial.batch_size != config.batch_size:
    before, after = (
      peak_rate(each.optim, each.batch_size) for each in (config, trial)
    )
    yield f"{trial.batch_size:,} images a step instead of {config.batch_size:,}"
    yield (
      f"a peak rate of {after:.4g} instead of {before:.4g} (optim.lr_batch)"
    )
    steps = math.ceil(config.steps * config.batch_size / trial.batch_size)
    yield f"--config.steps={steps} for the same number of images"
  if _normalized(trial) != _normalized(config):
    yield (
      f"norms over {_normalized(trial):g} images instead of"
      f" {_normalized(config):g}"
    )
  if trial.swav.queue_length != config.swav.queue_length:
    yield (
      f"a queue of {trial.swav.queue_length:,} instead of"
      f" {config.swav.queue_length:,}"
    )
