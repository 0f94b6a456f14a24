"""What a value of a config must be, as `keys.KEYS` says of each."""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from seer_jax.models import heads


class Check(NamedTuple):
  """A condition, and how an error says it: "it must {must}"."""

  holds: Callable[[Any], bool]
  must: str

  def passes(self, value: Any) -> bool:
    """Whether a value is of the right kind and holds."""
    try:
      return bool(self.holds(value))
    except (TypeError, ValueError):
      return False


def one_of(*words: str) -> Check:
  """A choice of words."""
  listed = f"{', '.join(words[:-1])} or {words[-1]}"
  return Check(lambda v: v in words, f"be {listed}")


def between(low: float, high: float) -> Check:
  """A number within these bounds."""
  return Check(lambda v: low <= v <= high, f"be from {low:g} to {high:g}")


def some_of(*words: str) -> Check:
  """A tuple of at least one of these words."""
  listed = f"{', '.join(words[:-1])} and {words[-1]}"
  return Check(lambda v: bool(v) and set(v) <= {*words}, f"be some of {listed}")


def or_empty(check: Check) -> Check:
  """A tuple that may be empty."""
  return Check(lambda v: v == () or check.holds(v), f"{check.must}, or ()")


def tuple_of(holds: Callable[[Any], bool], what: str) -> Check:
  """A tuple of at least one value, for each of which a condition holds."""
  return Check(
    lambda v: bool(v) and all(map(holds, v)), f"be a tuple of {what}"
  )


def _is_pair(value):
  return isinstance(value, tuple) and len(value) == 2


def _is_count(value):
  return isinstance(value, int) and value > 0


def _rises(value):
  return list(value) == sorted(value)


def _differ(value):
  return len(set(value)) == len(value)


FLAG = Check(lambda v: isinstance(v, bool), "be True or False")
TEXT = Check(lambda v: isinstance(v, str), "be a string")
SEQUENCE = Check(lambda v: isinstance(v, tuple | list), "be a tuple")
CLASSES = Check(
  lambda v: v == 0 or v > 1, "be 2 or more, or 0 for those of the data"
)
AXIS = Check(lambda v: v == -1 or v > 0, "be a count, or -1 for all devices")
STEP = Check(lambda v: v >= -1, "be a step, or -1 for none")
METRICS = some_of("cosine", "dot", "euclidean")
NAMES = tuple_of(lambda v: isinstance(v, str), "names")
POSITIVE = Check(lambda v: v > 0, "be positive")
AT_LEAST_0 = Check(lambda v: v >= 0, "be 0 or more")
SHARE = between(0, 1)
BELOW_1 = Check(lambda v: 0 <= v < 1, "be 0 or more, and below 1")
WITHIN_1 = Check(lambda v: 0 < v < 1, "be between 0 and 1")
UP_TO_1 = Check(lambda v: 0 < v <= 1, "be above 0, and 1 at most")
COUNTS = tuple_of(_is_count, "counts")
SEVERITIES = tuple_of(lambda v: v in (1, 2, 3, 4, 5), "strengths, 1 to 5")
POSITIVES = tuple_of(lambda v: v > 0, "positive numbers")
TAPS = tuple_of(heads.tap, "taps (heads.tap)")
PAIR = Check(
  lambda v: _is_pair(v) and 0 < v[0] <= v[1], "be a pair, 0 < low <= high"
)
AREAS = tuple_of(
  lambda v: _is_pair(v) and 0 < v[0] <= v[1] <= 1,
  "pairs of areas, 0 < low <= high <= 1",
)
CROPS = Check(
  lambda v: bool(v) and min(v) >= 0 and _differ(v),
  "be a tuple of different crops, counted from 0",
)
FACTORS = Check(
  lambda v: POSITIVES.holds(v) and _differ(v),
  "be a tuple of different positive factors",
)
FLAGS = Check(
  lambda v: set(v) in ({True}, {False}, {True, False}),
  "be (True,), (False,) or (True, False)",
)
SHARES = Check(
  lambda v: all(0 < each <= 1 for each in v),
  "be a tuple of shares, above 0 and 1 at most",
)
MILESTONES = Check(
  lambda v: all(0 < each < 1 for each in v) and _rises(v),
  "be rising shares of the run",
)
COLORS = Check(lambda v: len(v) == 3, "have 3 channels")
DEVIATIONS = Check(lambda v: len(v) == 3 and min(v) > 0, "have 3, positive")
STRIDES = tuple_of(lambda v: v in (1, 2), "1 and 2")
PROTOTYPES = tuple_of(lambda v: _is_count(v) and v > 1, "counts above 1")
REGNET = Check(lambda v: len(v) in (0, 5), "be (), or five numbers")
REMAT = Check(
  lambda v: bool(re.fullmatch(r"none|first-\d{1,4}|block|group", v)),
  "be none, block, group, or first-N for the first N blocks",
)
REMAT_GROUPS = Check(
  lambda v: all(map(COUNTS.holds, v)), "be a tuple of counts for each stage"
)
