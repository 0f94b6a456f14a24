"""A figure split by groups of images: rates, intervals, and the gap.

A figure is a mean over units: images or, if a column names them, households or
people, whose images are averaged first (as Dollar Street's indicator does).
Intervals are percentiles of the bootstrap (Efron 1979) over units, each group
resampled by itself; of rates of 0 and 1 they are exact binomial ones.
"""

import logging
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

import ml_collections
import numpy as np

from seer_jax.evals import features
from seer_jax.evals.groups import attributes
from seer_jax.runtime import errors

_log = logging.getLogger(__name__)

# Images whose cell is empty. Their rate is given, but they are no group.
UNKNOWN = "unknown"
_COVERAGE = 0.95
# A column with more values is one of numbers or names.
_MOST_GROUPS = 200
# Numbers drawn at once.
_AT_ONCE = 2**24


class Split(Protocol):
  """Figures of groups, from those of single images."""

  def __call__(
    self,
    name: str,
    index_N: np.ndarray,
    value_N: np.ndarray,
    lower_is_better: bool = False,
  ) -> Iterator[tuple[str, float]]:
    """Yields figures named after `name`, for images by index and values."""
    ...


def no_split(
  name: str,
  index_N: np.ndarray,
  value_N: np.ndarray,
  lower_is_better: bool = False,
) -> Iterator[tuple[str, float]]:
  """Splits nothing."""
  del name, index_N, value_N, lower_is_better
  yield from ()


class Rate(NamedTuple):
  """A mean over units, and its interval."""

  value: float
  low: float
  high: float
  count: int  # Units.


class Gap(NamedTuple):
  """The highest rate less the lowest, and the interval of the difference."""

  highest: str
  lowest: str
  value: float
  low: float
  high: float


class Groups:
  """Splits figures of a set of images by columns of a table."""

  def __init__(
    self,
    table: attributes.Attributes,
    by: Sequence[str],
    unit: str,
    smallest: int,
    resamples: int,
  ):
    """Takes the columns `by`, each a name or several joined by `*`.

    Args:
      unit: column of what is sampled, such as households; "" for images.
      smallest: fewest units of a group that a rate is given for.
      resamples: of the bootstrap.
    """
    self._table, self._by, self._unit = table, tuple(by), unit
    self._smallest, self._resamples = smallest, resamples
    self._warned: set[str] = set()

  def __call__(
    self,
    name: str,
    index_N: np.ndarray,
    value_N: np.ndarray,
    lower_is_better: bool = False,
  ) -> Iterator[tuple[str, float]]:
    """Yields figures of the whole and of each group.

    `NAME/COLUMN=VALUE`, with `/low`, `/high` and `/n`; of a group that is too
    small only `/n`. `NAME/COLUMN/worst` and `NAME/COLUMN/gap` with its interval
    follow if two groups can be measured. Raises UserError if no group of a
    column can be.
    """
    units = self._table.of(self._unit, index_N) if self._unit else None
    yield from self._whole(name, value_N, units)
    for column in self._by:
      groups = _fit_for_names(self._table.of(column, index_N))
      found = rates(
        value_N, groups, units, self._smallest, self._resamples, name + column
      )
      self._check(column, found)
      for group, rate in sorted(found.items()):
        label = f"{name}/{column}={group}"
        if rate.count >= self._smallest:
          yield label, rate.value
          yield f"{label}/low", rate.low
          yield f"{label}/high", rate.high
        yield f"{label}/n", float(rate.count)
      gap = widest(
        value_N, groups, units, self._smallest, self._resamples, name + column
      )
      if gap:
        worst = gap.highest if lower_is_better else gap.lowest
        yield f"{name}/{column}/worst", found[worst].value
        yield f"{name}/{column}/gap", gap.value
        yield f"{name}/{column}/gap/low", gap.low
        yield f"{name}/{column}/gap/high", gap.high

  def _whole(self, name, value_N, units):
    rate = rates(
      value_N, ["all"] * len(value_N), units, 1, self._resamples, name
    )["all"]
    yield f"{name}/low", rate.low
    yield f"{name}/high", rate.high
    yield f"{name}/n", float(rate.count)

  def _check(self, column, found):
    known = {name: rate for name, rate in found.items() if name != UNKNOWN}
    if not known:
      raise errors.UserError(
        f"column {column} is empty for all images that were evaluated; name"
        " another in config.eval.by"
      )
    if len(known) > _MOST_GROUPS:
      raise errors.UserError(
        f"column {column} has {len(known)} different values, more than"
        f" {_MOST_GROUPS}; give a column of groups, such as ranges of an age"
      )
    largest = max(rate.count for rate in known.values())
    if largest < self._smallest:
      raise errors.UserError(
        f"column {column}: its largest group has {largest} of the"
        f" {self._smallest} units that a rate needs; give more images, or"
        " reduce config.eval.smallest_group"
      )
    small = [name for name, r in known.items() if r.count < self._smallest]
    if small and column not in self._warned:
      self._warned.add(column)
      _log.warning(
        "column %s: no rate for %s, with fewer than %d units",
        column,
        ", ".join(small[:5]) + ", ..." * (len(small) > 5),
        self._smallest,
      )


def _fit_for_names(groups):
  """Groups without the `/` that divides names of figures."""
  return [group.replace("/", "|") for group in groups]


# Ends of names that belong to a split or an interval.
_DETAILS = frozenset({"low", "high", "n", "worst", "gap", "excess"})


def whole(names: Iterable[str]) -> list[str]:
  """The figures that are of all images: not of a group, gap or interval."""
  every = dict.fromkeys(names)
  found = []
  for name in every:
    above, _, last = name.rpartition("/")
    of_group = "=" in last and f"{above}/n" in every
    if not of_group and last not in _DETAILS:
      found.append(name)
  return found


def of_config(
  config: ml_collections.ConfigDict, images: features.ImageSet
) -> Split:
  """The split that `config.eval.by` asks for.

  The table is `config.eval.attributes`, or the list of the test images. Raises
  UserError if there is none, or a column is missing.
  """
  options = config.eval
  if not options.by:
    return no_split
  table = table_of(config, images)
  assert table is not None
  for column in (*options.by, *filter(None, [options.unit])):
    table.of(column, ())
  return Groups(
    table, options.by, options.unit, options.smallest_group, options.resamples
  )


def table_of(
  config: ml_collections.ConfigDict,
  images: features.ImageSet,
  needed: bool = True,
) -> attributes.Attributes | None:
  """The table with attributes of the test images.

  None, or if it is needed a UserError, if neither `config.eval.attributes` nor
  the list of the images is one.
  """
  path = config.eval.attributes
  test = config.data.test if config.data.test.kind else config.data.train
  is_table = test.path.endswith((".csv", ".parquet"))
  if not path and test.kind == "list" and is_table:
    path = test.path
  if not path:
    if not needed:
      return None
    raise errors.UserError(
      "groups need a table: set config.eval.attributes to a CSV or Parquet file"
      " with a row per image, or give one as the test set"
    )
  return attributes.Attributes(path, images.source)


def rates(
  value_N: np.ndarray,
  groups: Sequence[str],
  units: Sequence[str] | None = None,
  smallest: int = 1,
  resamples: int = 1000,
  seed: str = "",
) -> dict[str, Rate]:
  """The rate of each group.

  Groups below `smallest` have NaN and a count. An image without a unit is a
  unit of its own.
  """
  found = {}
  for group, x_U in _by_unit(value_N, groups, units).items():
    low = high = value = float("nan")
    if len(x_U) >= smallest:
      value = float(np.mean(x_U))
      low, high = interval(_resampled(x_U, resamples, seed + group), value)
    found[group] = Rate(value, low, high, len(x_U))
  return found


def widest(
  value_N: np.ndarray,
  groups: Sequence[str],
  units: Sequence[str] | None = None,
  smallest: int = 1,
  resamples: int = 1000,
  seed: str = "",
) -> Gap | None:
  """The gap between the groups with the highest and the lowest rate.

  None if fewer than two groups can be measured. The interval is that of the
  difference of these two groups; that they were chosen as the extremes is not
  in it.
  """
  parts = {
    group: x_U
    for group, x_U in _by_unit(value_N, groups, units).items()
    if group != UNKNOWN and len(x_U) >= smallest
  }
  if len(parts) < 2:
    return None
  means = {group: float(np.mean(x_U)) for group, x_U in sorted(parts.items())}
  high = max(means, key=means.get)
  low = min((group for group in means if group != high), key=means.get)
  drawn = [
    _resampled(parts[group], resamples, seed + group) for group in (high, low)
  ]
  value = means[high] - means[low]
  return Gap(high, low, value, *interval(drawn[0] - drawn[1], value))


def interval(means_R: np.ndarray, value: float) -> tuple[float, float]:
  """The central 95 % of resampled means, and what was found."""
  outside = (1 - _COVERAGE) / 2
  low, high = np.quantile(means_R, (outside, 1 - outside))
  return min(float(low), value), max(float(high), value)


def _by_unit(value_N, groups, units) -> Mapping[str, np.ndarray]:
  """The values of each group's units."""
  sums: dict[str, dict[object, list[float]]] = {}
  for at, (value, group) in enumerate(zip(value_N, groups, strict=True)):
    unit = (units[at] if units else "") or at
    sums.setdefault(group or UNKNOWN, {}).setdefault(unit, []).append(value)
  return {
    group: np.array([np.mean(values) for values in of_unit.values()])
    for group, of_unit in sums.items()
  }


def _resampled(x_U, resamples, seed):
  """Means of samples with replacement.

  How often each value is drawn is multinomial, so values that repeat, such as
  0 and 1, cost nothing: 0.3 ms for 10,000 images, where `scipy.stats.bootstrap`
  takes 133. If all are 0, or all 1, a resampled mean would never
  differ, although a rare event may only not have been seen; the mean is then
  drawn from Beta(1, n) at that end, whose interval is the exact binomial one
  (Clopper & Pearson 1934): up to about 3.7 / n.
  """
  rng = np.random.default_rng(zlib.crc32(seed.encode(errors="replace")))
  if np.all(x_U == x_U[0]) and x_U[0] in (0, 1):
    return np.abs(x_U[0] - rng.beta(1, len(x_U), resamples))
  values, counts = np.unique(x_U, return_counts=True)
  rows = max(1, min(resamples, _AT_ONCE // len(values)))
  parts = [
    rng.multinomial(len(x_U), counts / len(x_U), min(rows, resamples - first))
    @ values
    for first in range(0, resamples, rows)
  ]
  return np.concatenate(parts) / len(x_U)
