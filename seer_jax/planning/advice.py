"""Keys that make a step fit that does not: compiled before they are advised.

What a step needs besides its state is roughly proportional to the images that a
device holds at once, so one compiled program suggests how many parts the batch
needs. The compiler has the last word: a try that does not fit improves the next
estimate.
"""

import functools
import logging
from collections.abc import Callable, Iterator
from typing import NamedTuple

import ml_collections

from seer_jax.config import batch, keys
from seer_jax.runtime import errors

_log = logging.getLogger(__name__)

_TRIES = 3  # Each compiles a program.
_MARGIN = 0.97  # Of the room, in estimates.
# Splitting kernels pays where the state takes more than this share of the room.
_WORTH = 1 / 4


class Needs(NamedTuple):
  """What a device must hold for a step, in bytes."""

  parameters: int  # In float32, and once more as sums of the parts' gradients.
  held: int  # From step to step, the batch included.
  fleeting: int  # Activations and other temporaries.

  @property
  def total(self) -> int:
    """All of it."""
    return self.held + self.fleeting


class Advice(NamedTuple):
  """A config that fits."""

  changes: batch.Changes  # The keys that are others.
  total: int  # Bytes of a device, as compiled.
  # What changes of the result, a phrase each; none where nothing does but
  # rounding.
  effects: tuple[str, ...]


def find(
  config: ml_collections.ConfigDict,
  needs: Needs,
  *,
  room: int,
  devices: int,
  per_host: int,
  precision: str,
  measure: Callable[[ml_collections.ConfigDict], Needs],
) -> list[Advice]:
  """What fits: the gentlest change, then perhaps a smaller batch.

  Args:
    config: resolved; it does not fit.
    needs: of its program.
    room: bytes that a device has.
    devices: in the mesh.
    per_host: devices of a host, among which kernels may be split.
    precision: that the hardware is made for.
    measure: compiles the step of a config. May raise UserError.

  Returns:
    Nothing where nothing was found.
  """
  exact = config
  for changes in _exact(config, needs, room, devices, per_host, precision):
    exact = batch.changed(exact, changes)

  def tried(trial):
    changes = _difference(config, trial)
    _log.info("compiling what may fit: %s", batch.flags(changes))
    needs = measure(trial)
    effects = tuple(batch.effects(config, trial))
    return needs, Advice(changes, needs.total, effects)

  def search(smaller, needs):
    trial, fixed = exact, needs.parameters
    for _ in range(_TRIES):
      most, before = _images_at_once(trial, needs, fixed, room, devices), needs
      changes = smaller(trial, most)
      if changes is None:
        return []
      had, trial = _each(trial, devices), batch.changed(trial, changes)
      needs, advice = tried(trial)
      if needs.total <= room:
        return [advice]
      # What two programs have in common does not depend on the images.
      slope = (before.fleeting - needs.fleeting) / (had - _each(trial, devices))
      fixed = needs.fleeting - slope * _each(trial, devices)
    return []

  found: list[Advice] = []
  try:
    if exact != config:
      needs, advice = tried(exact)
      if needs.total <= room:
        return [advice]
    for smaller in (_in_parts, _smaller_batch):
      found += search(functools.partial(smaller, devices), needs)
  except errors.UserError as error:
    _log.info("the compiler gave up: %s", error)
  return found


def _exact(
  config, needs, room, devices, per_host, precision
) -> Iterator[batch.Changes]:
  """What changes no result but for rounding."""
  if config.model.remat != "block":
    yield {"model.remat": "block"}
  if config.precision == "fp32" and precision != "fp32":
    yield {"precision": precision}
  split = config.mesh.fsdp == 1 and devices % per_host == 0 and per_host > 1
  if split and needs.held > room * _WORTH:
    data = {"mesh.data": devices // per_host} if config.mesh.data > 0 else {}
    yield {"mesh.fsdp": per_host} | data


def _each(config, devices):
  """Images that a device has at once."""
  return config.batch_size // devices // config.accumulate


def _images_at_once(config, needs, fixed, room, devices):
  """How many a device may have; never as many as did not fit.

  Of what comes and goes so much is fixed, and the rest a multiple of them.
  """
  each = _each(config, devices)
  fixed = min(max(fixed, 0), needs.fleeting)
  spare = max(0, room * _MARGIN - needs.held - fixed)
  return min(int(each * spare / max(1, needs.fleeting - fixed)), each - 1)


def _in_parts(devices, config, most) -> batch.Changes | None:
  """The batch in more parts, of so many images at most."""
  each = _each(config, devices)
  for parts in range(2, each + 1):
    if each % parts == 0 and each // parts <= most:
      changes = batch.in_parts(config, config.accumulate * parts, devices)
      if batch.is_possible(config, changes):
        return changes
  return None


def _smaller_batch(devices, config, most) -> batch.Changes | None:
  """The largest batch with so many images a device at once."""
  for count in range(most, 0, -1):
    images = count * devices * config.accumulate
    changes = batch.resized(config, images, devices)
    if batch.is_possible(config, changes):
      return changes
  return None


def _difference(config, trial):
  before = dict(keys.flatten(config))
  return {
    key: value for key, value in keys.flatten(trial) if value != before[key]
  }
