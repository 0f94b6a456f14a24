"""Curves of runs: which to draw, how to read each, and how to describe it."""

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from seer_jax.apps.report.checks import named
from seer_jax.apps.report.history import Curve, History
from seer_jax.evals.groups import rates

# Points of a line that the page draws, and rows of its table of numbers.
_POINTS, _ROWS = 400, 12


class Series(NamedTuple):
  """A line: its name, its points, and a description."""

  name: str
  points: Curve
  words: str


class Chart(NamedTuple):
  """A chart of one metric."""

  key: str  # Unique on the page.
  title: str
  about: str  # How to read it.
  series: list[Series]  # One per line.
  rules: list[tuple[float, str]]  # Levels to compare with: (value, name).
  percent: bool  # Whether values are shares.
  log: bool  # Whether the axis is logarithmic.

  @property
  def rows(self) -> Iterator[tuple[int, list[float | None]]]:
    """A table of some steps: (step, a value for each series)."""
    steps = sorted({step for each in self.series for step, _ in each.points})
    lines = [dict(each.points) for each in self.series]
    for step in _thinned(steps, _ROWS):
      yield step, [line.get(step) for line in lines]

  def shown(self, value: float | None) -> str:
    """A value as text."""
    if value is None:
      return ""
    if self.percent:
      return f"{100 * value:.1f} %"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


class _Kind(NamedTuple):
  metrics: tuple[str, ...]
  title: str
  about: str
  rules: tuple[tuple[float, str], ...] = ()
  percent: bool = False
  log: bool = False


_KINDS = (
  _Kind(
    ("loss_over_lnk",),
    "Loss over ln K",
    "What the network learns to lower. Guessing scores 1; a run that learns"
    " leaves it after some hundred steps.",
    ((1.0, "guessing"),),
  ),
  _Kind(
    ("online/accuracy",),
    "Accuracy of the linear classifier trained beside",
    "It reads the features, and changes nothing in the network.",
    percent=True,
  ),
  _Kind(
    ("prototypes/entropy",),
    "Evenness of the prototypes",
    "Entropy of how images fall on prototypes, over ln K: 1 is even, 0 is one"
    " prototype for all images.",
  ),
  _Kind(
    ("prototypes/max_share",),
    "Share of the largest prototype",
    "Above 50 % the run has collapsed.",
    percent=True,
  ),
  _Kind(
    ("features/rank",),
    "Effective rank of the features",
    "In how many directions features of different images differ; near 1 they"
    " are all the same.",
  ),
  _Kind(
    ("grad_norm",),
    "Norm of the gradient",
    "Single peaks are usual; a steady rise comes before divergence.",
    log=True,
  ),
  _Kind(("lr",), "Learning rate", "Warm-up, then a cosine."),
  _Kind(
    ("images_per_second",),
    "Images per second",
    "Of training alone, without evaluations and saving.",
  ),
  _Kind(
    ("data_wait",),
    "Waiting for images",
    "Share of the time in which the devices were idle because no batch was"
    " ready. Above 10 % the input is too slow.",
    ((0.1, "too slow"),),
    percent=True,
  ),
)


def of(histories: Sequence[History]) -> list[Chart]:
  """The charts of some runs, each shared by all."""
  found = [_accuracy(histories)]
  for kind in _KINDS:
    found.append(_chart(kind, histories))
  # Losses of different tasks are not to be compared.
  labelled = [each for each in histories if not each.is_pretraining]
  loss = _Kind(("loss",), "Loss", "What a classifier learns to lower.")
  found.append(_chart(loss, labelled))
  # First what was learned: the loss, then accuracies.
  found = [chart for chart in found if chart.series]
  found.sort(key=lambda chart: not chart.key.startswith("loss"))
  return found


def _accuracy(histories):
  """The score of each run; for a single run, all scores of the same kind."""
  lines = [(each, each.score) for each in histories if each.score]
  if len(histories) == 1 and lines and "/" in lines[0][1]:
    history, score = lines[0]
    kind = score.split("/")[0]
    names = {
      name
      for line in history.lines
      for name in rates.whole(line)
      if name.split("/")[0] == kind and not name.endswith(("/top5", "/std"))
    }
    lines = [
      (history, name) for name in sorted(names, key=lambda name: name != score)
    ]
  kind = _Kind(
    tuple(metric for _, metric in lines),
    "Accuracy on labelled images",
    "Of images that the run did not learn from. The first point is from before"
    " training.",
    percent=True,
  )
  return _of_lines(kind, lines, several=len(histories) > 1)


def _chart(kind, histories):
  lines = list(itertools.product(histories, kind.metrics))
  return _of_lines(kind, lines, several=len(histories) > 1)


def _of_lines(kind, lines, several):
  """A chart of (run, metric), with names that tell them apart."""
  chart = Chart(
    "-".join(kind.metrics[:1]).replace("/", "-").replace("=", "-"),
    kind.title,
    kind.about,
    [],
    list(kind.rules),
    kind.percent,
    kind.log,
  )
  metrics = len({metric for _, metric in lines})
  for history, metric in lines:
    if points := history.curve(metric):
      names = [history.name] * several + [named(metric)] * (metrics > 1)
      words = _words(chart, points)
      name = ", ".join(names)
      chart.series.append(Series(name, _thinned(points, _POINTS), words))
  return chart


def _words(chart, points):
  """A description of a line, for screen readers."""
  (first, before), (last, after) = points[0], points[-1]
  low, high = min(y for _, y in points), max(y for _, y in points)
  return (
    f"{chart.shown(before)} at step {first:,}, {chart.shown(after)} at step"
    f" {last:,}; lowest {chart.shown(low)}, highest {chart.shown(high)}."
  )


def _thinned(values, most):
  """At most so many values, evenly spaced, including the first and the last."""
  if len(values) <= most:
    return values
  step = (len(values) - 1) / (most - 1)
  return [values[round(at * step)] for at in range(most)]
