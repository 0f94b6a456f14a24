"""Keys that make a step fit, compiled before they are advised.

What a step needs besides its state is roughly proportional to the images that a
device holds at once, so one compiled program suggests into how many parts to
split the batch. A trial that does not fit improves the next estimate.
"""

import dataclasses
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
_SPLIT_FROM = 1 / 4


class Needs(NamedTuple):
  """Memory of a device for a step, in bytes."""

  parameters: int  # Float32; accumulated gradients take as much.
  held: int  # Between steps, the batch included.
  temporary: int  # Activations and other temporaries.

  @property
  def total(self) -> int:
    return self.held + self.temporary


class Advice(NamedTuple):
  """A config that fits."""

  changes: batch.Changes
  total: int  # Bytes of a device, as compiled.
  effects: tuple[str, ...]  # On the recipe, a phrase each; not rounding.


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
  """Configs that fit: the smallest change, then perhaps a smaller batch.

  Args:
    config: resolved; it does not fit.
    needs: of its program.
    room: bytes of a device.
    devices: in the mesh.
    per_host: devices of a host, among which kernels may be split.
    precision: the native one of the hardware.
    measure: compiles the step of a config. May raise UserError.
  """
  exact = config
  for changes in _exact(config, needs, room, devices, per_host, precision):
    exact = batch.changed(exact, changes)
  search = _Search(config, room, devices, measure)
  found: list[Advice] = []
  try:
    if exact != config:
      needs, advice = search.compile(exact)
      if needs.total <= room:
        return [advice]
    for smaller in (_in_parts, _smaller_batch):
      found += search.reduce(smaller, exact, needs)
  except errors.UserError as error:
    _log.info("the compiler failed: %s", error)
  return found


@dataclasses.dataclass(frozen=True)
class _Search:
  config: ml_collections.ConfigDict  # The one that does not fit.
  room: int
  devices: int
  measure: Callable[[ml_collections.ConfigDict], Needs]

  def compile(self, trial):
    """(needs of a trial, the advice to use it)."""
    changes = _difference(self.config, trial)
    _log.info("compiling a candidate: %s", batch.flags(changes))
    needs = self.measure(trial)
    effects = tuple(batch.effects(self.config, trial))
    return needs, Advice(changes, needs.total, effects)

  def reduce(self, smaller, trial, needs):
    """Compiles with fewer images at once until a trial fits, a few times."""
    fixed = needs.parameters
    for _ in range(_TRIES):
      most = _images_at_once(trial, needs, fixed, self.room, self.devices)
      changes = smaller(self.devices, trial, most)
      if changes is None:
        return []
      before, had = needs, _each(trial, self.devices)
      trial = batch.changed(trial, changes)
      needs, advice = self.compile(trial)
      if needs.total <= self.room:
        return [advice]
      # The part that two programs have in common does not depend on images.
      has = _each(trial, self.devices)
      fixed = needs.temporary - has * (before.temporary - needs.temporary) / (
        had - has
      )
    return []


def _exact(
  config, needs, room, devices, per_host, precision
) -> Iterator[batch.Changes]:
  """Changes that affect results only by rounding."""
  if config.model.remat != "block":
    yield {"model.remat": "block"}
  if config.precision == "fp32" and precision != "fp32":
    yield {"precision": precision}
  split = config.mesh.fsdp == 1 and devices % per_host == 0 and per_host > 1
  if split and needs.held > room * _SPLIT_FROM:
    data = {"mesh.data": devices // per_host} if config.mesh.data > 0 else {}
    yield {"mesh.fsdp": per_host} | data


def _each(config, devices):
  """Images of a device at once."""
  return config.batch_size // devices // config.accumulate


def _images_at_once(config, needs, fixed, room, devices):
  """The most images of a device at once; fewer than did not fit.

  A part of the temporaries is fixed, the rest proportional to the images.
  """
  each = _each(config, devices)
  fixed = min(max(fixed, 0), needs.temporary)
  spare = max(0, room * _MARGIN - needs.held - fixed)
  return min(int(each * spare / max(1, needs.temporary - fixed)), each - 1)


def _in_parts(devices, config, most) -> batch.Changes | None:
  """Splits the batch into more parts, of at most so many images."""
  each = _each(config, devices)
  for parts in range(2, each + 1):
    if each % parts == 0 and each // parts <= most:
      changes = batch.in_parts(config, config.accumulate * parts, devices)
      if batch.is_possible(config, changes):
        return changes
  return None


def _smaller_batch(devices, config, most) -> batch.Changes | None:
  """The largest batch with so many images of a device at once."""
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
