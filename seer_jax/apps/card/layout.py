"""What a card is made of."""

import dataclasses
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Table:
  """A table; the first cell of a row names it."""

  caption: str
  head: Sequence[str]
  rows: Sequence[Sequence[str]]


@dataclasses.dataclass(frozen=True)
class Section:
  """A part of the card."""

  title: str
  texts: Sequence[str] = ()
  points: Sequence[str] = ()
  tables: Sequence[Table] = ()
  details: Sequence[Table] = ()  # Folded on the page.
