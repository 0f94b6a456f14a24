"""Changes of the recipe that `learning.py` compares: those that won and others.

What a config can say is said in keys. What no config offers, because it was not
worth it, is a task here.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class Change(NamedTuple):
  """One row of the table.

  Attributes:
    why: what to expect, and from where.
    config: keys and values in place of the recipe's.
    task: (config) -> Task, in place of `tasks.create`.
  """

  why: str
  config: Mapping[str, Any] = {}
  task: Callable[[Any], Any] | None = None


CHANGES = {
  "recipe": Change("configs/cifar10.py as it is"),
}
