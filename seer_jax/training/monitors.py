"""Signs, without labels, that a run does not learn or waits for images."""

from collections.abc import Mapping
from typing import NamedTuple

import ml_collections

# Waiting for longer than this share of the time, over so many steps, is slow.
_STARVED, _SETTLED = 0.1, 200


class Collapse(NamedTuple):
  """A sign that nothing is learned."""

  what: str  # Is wrong, in words.
  # (what to do, flags) that may help, the likeliest first.
  tries: tuple[tuple[str, str], ...]


def collapse(
  found: Mapping[str, float], options: ml_collections.ConfigDict
) -> Collapse | None:
  """Whether metrics late in a run show a collapse, and what to try then.

  Args:
    found: `prototypes/max_share`, `loss_over_lnk`.
  """
  share = found.get("prototypes/max_share", 0)
  over_lnk = found.get("loss_over_lnk", 0)
  if share > 0.5:
    what = f"one prototype takes {share:.0%} of the crops"
  elif over_lnk > 0.99:
    what = f"the loss is still {over_lnk:.3f} of ln K, that of guessing"
  else:
    return None
  return Collapse(what, tuple(_tries(options, one_for_all=share > 0.5)))


def _tries(options, one_for_all):
  """(what to do, flags), the likeliest help first."""
  swav, count = options.swav, max(options.model.prototypes)
  if swav.iterations == 0:
    yield (
      "balance the codes (swav.iterations is 0, SwAV's is 3)",
      "--config.swav.iterations=3",
    )
  sharper = _sharper(swav.epsilon)
  # SwAV's authors sharpen first, and no published value exceeds their 0.05.
  if not one_for_all or swav.epsilon > 0.05:
    yield sharper
    yield from _rate(options.optim, one_for_all)
  else:
    yield from _rate(options.optim, one_for_all)
    yield sharper
  yield (
    f"hold the prototypes for longer (now {swav.freeze_steps} steps)",
    f"--config.swav.freeze_steps={max(20, 2 * swav.freeze_steps)}",
  )
  if count > 16:
    yield (
      f"use fewer prototypes (now {count})",
      f"--config.model.prototypes='({max(16, count // 2)},)'",
    )
  yield (
    f"use a larger batch (now {options.batch_size})",
    f"--config.batch_size={2 * options.batch_size}",
  )


def _sharper(epsilon):
  # What SwAV's authors advise for a loss at ln K, and SEER's 10B was given.
  advised = 0.03
  return (
    f"sharpen the codes (swav.epsilon is {epsilon:g}, SwAV's 0.05, or {advised}"
    " where runs stay at ln K)",
    f"--config.swav.epsilon={min(advised, 0.6 * epsilon):.3g}",
  )


def _rate(optim, one_for_all):
  lr, warmup = optim.lr, optim.warmup_fraction
  if not one_for_all:
    yield (
      f"raise the learning rate (now {lr:g})",
      f"--config.optim.lr={2 * lr:.3g}",
    )
    return
  yield (
    f"lower the learning rate (now {lr:g})",
    f"--config.optim.lr={lr / 3:.3g}",
  )
  yield (
    f"warm up for longer (now {warmup:.1%} of the steps)",
    f"--config.optim.warmup_fraction={2 * warmup:.3g}",
  )


class CollapseMonitor:
  """Watches the metrics for a collapse, and warns once.

  Training that will succeed also starts at loss = ln K, for the first 60 to 100
  steps on digits and for longer on harder data: so it waits for `patience`
  steps.
  """

  def __init__(self, options: ml_collections.ConfigDict):
    """Takes the config of the run, resolved."""
    self._options, self._warned = options, False

  def advice(self, step: int, metrics: Mapping[str, float]) -> str | None:
    """A sentence the first time a late step looks collapsed, else None."""
    if self._warned or step < patience(self._options.steps):
      return None
    found = collapse(metrics, self._options)
    if found is None:
      return None
    self._warned = True
    tries = "; ".join(f"{what}, {flag}" for what, flag in found.tries)
    return (
      f"Training looks collapsed at step {step}: {found.what}. Try, one at a"
      f" time: {tries}"
    )


def patience(steps: int) -> int:
  """Steps for which a loss of ln K says nothing."""
  # 100 steps pass at ln K on the easiest data; more on longer runs.
  return max(300, steps // 5)


class InputStallMonitor:
  """Watches whether steps wait for images, and advises once.

  The first reading is ignored, since programs compile and buffers fill; advice
  waits for 200 more steps.
  """

  def __init__(self, workers: int, cores: int):
    """Takes how many processes decode (0: threads do), on how many cores."""
    self._workers, self._cores = workers, cores
    self._first = self._last = None
    self._waited, self._warned = 0.0, False

  def advice(self, step: int, data_wait: float) -> str:
    """What to change, once; "" while all is well.

    Args:
      data_wait: share of the time since the last one that steps waited.
    """
    if self._first is None:
      self._first = self._last = step
      return ""
    self._waited += data_wait * (step - self._last)
    self._last = step
    steps = step - self._first
    share = self._waited / max(steps, 1)
    if self._warned or steps < _SETTLED or not is_starved(share):
      return ""
    self._warned = True
    return (
      f"steps wait for images {share:.0%} of the time."
      f" {feeding(self._workers, self._cores)}"
    )


def is_starved(share: float) -> bool:
  """Whether steps wait for images for too large a share of the time."""
  return share > _STARVED


def feeding(workers: int, cores: int) -> str:
  """Advice on how to make images come faster.

  Args:
    workers: processes that decode; 0: threads do.
    cores: of the host.
  """
  if cores - max(1, workers) > 1:
    return f"{cores} cores could decode: --config.data.workers={cores - 1}"
  return (
    f"all {cores} cores decode already: pack the images at the size that is"
    " needed, seer-jax pack SRC DST --side=512 (shorter sides, pixels); or give"
    " a machine with more cores a device"
  )
