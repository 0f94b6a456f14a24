"""What the tables of keys are made of."""

from typing import Any, NamedTuple

from seer_jax.config import checks


class Key(NamedTuple):
  """The default of a key, and what each value must be.

  A free key may change between two starts of a run: it affects no result. An
  open one has the type of its values (`kind`) instead of a default.
  """

  default: Any
  check: checks.Check
  free: bool = False
  kind: type | None = None


def Open(kind: type, check: checks.Check, free: bool = False) -> Key:  # noqa: N802
  """A key that is chosen from the data when the run starts."""
  return Key(None, check, free, kind)
