"""`seer-jax labels`: how many labels a representation saves.

For shares of the labels, it compares the accuracy of a probe and of
fine-tuning,
of the same network trained from scratch on the same labels, and of raw pixels.
The share at which the curve from scratch reaches the accuracy of the
representation gives the factor of labels saved.
"""

import functools
import math
from collections.abc import Sequence
from typing import IO, NamedTuple

import numpy as np

from seer_jax.apps import evaluate, subjects

SCRATCH, PROBE, FINETUNE = "from scratch", "probe", "fine-tune"
PIXELS = "pixels"


class Curve(NamedTuple):
  """Accuracies of a method."""

  name: str
  accuracy_SxR: np.ndarray  # For S shares and R seeds; NaN where not measured.

  @property
  def mean(self) -> np.ndarray:
    """Over seeds."""
    return np.nanmean(self.accuracy_SxR, axis=1)

  @property
  def std(self) -> np.ndarray:
    """Over seeds; 0 for one."""
    if self.accuracy_SxR.shape[1] < 2:
      return np.zeros(len(self.accuracy_SxR))
    return np.nanstd(self.accuracy_SxR, axis=1, ddof=1)


def measured(
  evaluation: evaluate.Evaluation,
  ours: subjects.Subject,
  pixels: subjects.Subject,
  shares: Sequence[float],
  seeds: int,
  trained_seeds: int,
) -> list[Curve]:
  """The four curves, that from scratch first.

  Args:
    pixels: the other baseline.
    shares: of the labels, rising.
    seeds: of the probe; each draws other labels.
    trained_seeds: of everything else, which takes longer.
  """

  def curve(name, measure, seeds):
    rows = [
      [measure(share=share, seed=seed) for seed in range(seeds)]
      for share in shares
    ]
    return Curve(name, np.array(rows))

  def trained(name):
    return functools.partial(evaluation.trained_with, ours, name)

  def logistic(subject):
    return functools.partial(evaluation.logistic, subject)

  return [
    curve(SCRATCH, trained("scratch"), trained_seeds),
    curve(FINETUNE, trained("finetune"), trained_seeds),
    curve(PROBE, logistic(ours), seeds),
    curve(PIXELS, logistic(pixels), trained_seeds),
  ]


class Saving(NamedTuple):
  """N of "matches supervised with N times fewer labels"."""

  times: float  # N, of the mean curves.
  low: float  # The smallest over seeds.
  high: float  # The largest over seeds.
  # The curve from scratch never gets that far, so N is a lower bound.
  is_bound: bool
  share: float  # Of the labels, at which N was found.
  median: float  # Of the ratios at all shares, of which N is the largest.


def saving(ours: Curve, scratch: Curve, shares: Sequence[float]) -> Saving:
  """How many times fewer labels `ours` needs than training from scratch.

  At each share of ours, the curve from scratch is searched, linearly in the
  logarithm of the labels, for the share at which it reaches the same accuracy.
  The figure is the largest ratio of the two shares. If the curve from scratch
  never gets that far, or begins above, the ratio is a bound.
  """
  means = _ratios(ours.mean, scratch.mean, shares)
  times, is_bound, at = max(means, key=lambda each: each[0])
  # Every seed of one against every seed of the other.
  there = [
    _ratios(ours_S, scratch_S, shares)[at][0]
    for ours_S in ours.accuracy_SxR.T
    for scratch_S in scratch.accuracy_SxR.T
  ]
  median = float(np.median([ratio for ratio, _, _ in means]))
  return Saving(times, min(there), max(there), is_bound, shares[at], median)


def _ratios(ours_S, scratch_S, shares):
  """(ratio, whether it is only a bound, index of the share) for each share."""
  # More labels never hurt in expectation: a dip is noise of a seed.
  scratch_S = np.maximum.accumulate(scratch_S)
  found = []
  for at, (share, accuracy) in enumerate(zip(shares, ours_S, strict=True)):
    if accuracy > scratch_S[-1]:
      found.append((shares[-1] / share, True, at))
    elif accuracy <= scratch_S[0]:
      found.append((min(1.0, shares[0] / share), True, at))
    else:
      # The first share at which the curve from scratch gets that far.
      k = int(np.argmax(scratch_S >= accuracy))
      low, high = scratch_S[k - 1], scratch_S[k]
      along = (accuracy - low) / (high - low)
      logs = np.log(shares[k - 1]), np.log(shares[k])
      needed = math.exp(logs[0] + along * (logs[1] - logs[0]))
      found.append((needed / share, False, at))
  return found


def sentence(name: str, it: Saving) -> str:
  """A saving in words, with its interval over seeds."""
  if it.times <= 1:
    return f"{name}: needs as many labels as training from scratch, or more"
  least = "at least " if it.is_bound else ""
  interval = ""
  if it.high > it.low:
    interval = f" ({it.low:.1f} to {it.high:.1f} over seeds)"
  return (
    f"{name}: matches supervised with {least}{it.times:.1f} times fewer"
    f" labels{interval}, at {100 * it.share:g} % of them; {it.median:.1f} times"
    " in the median over shares"
  )


def sentences(curves: Sequence[Curve], shares: Sequence[float]) -> list[str]:
  """A sentence for each use of the representation."""
  scratch, *others = curves
  return [
    sentence(curve.name, saving(curve, scratch, shares))
    for curve in others
    if curve.name != PIXELS
  ]


def rows(
  curves: Sequence[Curve], shares: Sequence[float], images: int
) -> list[list[str]]:
  """A table with a row per share and a column per method."""
  table = [["labels", *(curve.name for curve in curves)]]
  for at, share in enumerate(shares):
    cells = [_cell(curve, at) for curve in curves]
    count = round(share * images)
    table.append([f"{100 * share:g} % ({count:,})", *cells])
  return table


def _cell(curve, at):
  if np.isnan(curve.accuracy_SxR[at]).all():
    return "-"
  text = f"{100 * curve.mean[at]:.1f}"
  if curve.accuracy_SxR.shape[1] > 1:
    text += f" ± {100 * curve.std[at]:.1f}"
  return text


# Of marks and lines, in the order of the curves: distinct in grey and to
# people who do not tell red from green (Okabe and Ito 2008).
_STYLES = (
  ("#0072b2", "o", "-"),
  ("#009e73", "s", "-"),
  ("#d55e00", "^", "--"),
  ("#7f7f7f", "v", ":"),
)


def plot(
  curves: Sequence[Curve],
  shares: Sequence[float],
  images: int,
  title: str,
  file: IO[bytes],
  kind: str,
) -> None:
  """Draws the curves into a file, as "png" or "svg"."""
  import matplotlib.figure
  import matplotlib.ticker

  figure = matplotlib.figure.Figure(figsize=(7, 4.5), layout="constrained")
  axes = figure.subplots()
  counts = [share * images for share in shares]
  for curve, (color, mark, line) in zip(curves, _STYLES, strict=False):
    axes.errorbar(
      counts,
      100 * curve.mean,
      yerr=100 * curve.std if curve.std.any() else None,
      label=curve.name,
      color=color,
      marker=mark,
      linestyle=line,
      capsize=3,
    )
  axes.set_xscale("log")
  axes.set_xticks(
    counts,
    [
      f"{count:,.0f}\n{100 * share:g} %"
      for count, share in zip(counts, shares, strict=True)
    ],
  )
  axes.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
  axes.set_xlabel("labels")
  axes.set_ylabel("top-1 accuracy (%)")
  axes.set_title(title)
  axes.grid(alpha=0.3)
  axes.legend()
  figure.savefig(file, format=kind, dpi=150)
