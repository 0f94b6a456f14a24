"""Is it learning? Signs that need no labels, and a verdict in words."""

# Waiting longer than this share of the time, over so many steps, is told.
_HUNGRY, _SETTLED = 0.1, 200


class Sentinel:
  """Watches the log for collapse and says so once.

  Training that will succeed also starts at loss = ln K, for the first 60 to
  100 steps on digits and for longer on harder data: a verdict waits until
  `patience` steps have passed.
  """

  def __init__(self, patience: int, epsilon: float, freeze_steps: int):
    self._patience = patience
    self._epsilon = epsilon
    self._freeze_steps = freeze_steps
    self._said = False

  def verdict(self, step: int, metrics: dict[str, float]) -> str | None:
    """A sentence the first time a late step looks collapsed, else None."""
    if self._said or step < self._patience:
      return None
    if metrics.get("prototypes/max_share", 0) > 0.5:
      what = (
        f"one prototype takes {metrics['prototypes/max_share']:.0%} of the"
        " crops"
      )
      tries = "a lower optim.lr, longer optim.warmup_fraction"
    elif metrics.get("loss_over_lnk", 0) > 0.99:
      what = (
        f"the loss is still {metrics['loss_over_lnk']:.3f} of ln K, that of"
        " guessing"
      )
      tries = "optim.name=larc with a higher optim.lr"
    else:
      return None
    self._said = True
    return (
      f"Training looks collapsed at step {step}: {what}. Try, one at a time:"
      f" {tries}; swav.epsilon={self._epsilon * 0.6:.3g} (now"
      f" {self._epsilon:g}); swav.freeze_steps={2 * self._freeze_steps} (now"
      f" {self._freeze_steps}); fewer model.prototypes; a larger batch_size or"
      " a swav.queue_length."
    )


class Supply:
  """Watches whether steps wait for images, and says once what would help.

  Compiling and filling the first buffers are no sign of anything: the first
  reading does not count, and a verdict waits for `_SETTLED` steps.
  """

  def __init__(self, workers: int, cores: int):
    """Takes how many processes decode (0: threads do), on how many cores."""
    self._workers, self._cores = workers, cores
    self._first = self._last = None
    self._waited, self._told = 0.0, False

  def verdict(self, step: int, data_wait: float) -> str:
    """What to change; "" while all is well, or when it was said.

    Args:
      step: of the reading.
      data_wait: share of the time since the last one that steps waited.
    """
    if self._first is None:
      self._first = self._last = step
      return ""
    self._waited += data_wait * (step - self._last)
    self._last = step
    steps = step - self._first
    if self._told or steps < _SETTLED:
      return ""
    share = self._waited / steps
    if share <= _HUNGRY:
      return ""
    self._told = True
    spare = self._cores - max(1, self._workers)
    if spare > 1:
      mend = (
        f"{self._cores} cores could decode:"
        f" --config.data.workers={self._cores - 1}"
      )
    else:
      mend = (
        f"all {self._cores} cores decode already: images packed at the size"
        " that is needed cost less, seer-jax pack SRC DST --side=512 (shorter"
        " sides, pixels); or give a machine with more"
        " cores a device"
      )
    return f"steps wait for images {share:.0%} of the time. {mend}"
