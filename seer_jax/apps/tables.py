"""Figures of several subjects side by side, for a terminal and as Markdown."""

import re
from collections.abc import Iterable, Mapping, Sequence

# name of the figure -> subject -> value
Figures = Mapping[str, Mapping[str, float]]


def collect(results: Iterable[tuple[str, str, float]]) -> dict:
  """Groups results (what, name, value) by name and then by subject."""
  found: dict[str, dict[str, float]] = {}
  for what, name, value in results:
    found.setdefault(name, {})[what] = value
  return found


def cells(figures: Figures, columns: Sequence[str]) -> list[list[str]]:
  """A header and a row per figure; with several seeds "0.951 ± 0.004".

  A figure with an interval is "0.951 (0.940 to 0.961)", and its row has the
  number of images, or of households or people. Groups that are too small have
  only the number. Of a probe's heads only the chosen ones are shown; the file
  has all of them.
  """
  rows = [["", *columns]]
  for name, values in figures.items():
    above, _, last = name.rpartition("/")
    of_head = above and "@" in last and not re.match(r"(precision|mP)@\d", last)
    if of_head or "/choice/" in name:
      continue
    if last == "n" and above not in figures:
      number = _number(values)
      rows.append([f"{above} (n = {number}: too few)", *("-" for _ in columns)])
    elif last not in _BESIDE or above not in figures:
      rows.append([name + _count(name, figures), *_row(name, figures, columns)])
  return rows


# Figures that are shown in the cell of another.
_BESIDE = ("std", "low", "high", "n")


def _row(name, figures, columns):
  beside = [figures.get(f"{name}/{last}", {}) for last in _BESIDE[:3]]
  return [
    _cell(figures[name].get(one), *(each.get(one) for each in beside))
    for one in columns
  ]


def _count(name, figures):
  found = figures.get(f"{name}/n")
  return f" (n = {_number(found)})" if found else ""


def _number(values):
  numbers = sorted({int(each) for each in values.values()})
  return " to ".join(f"{each:,}" for each in {*numbers[:1], *numbers[-1:]})


def _cell(value, spread, low, high):
  if value is None:
    return "-"
  digits = 3 if abs(value) < 10 else 1
  text = f"{value:.{digits}f}"
  if low is not None and high is not None:
    return f"{text} ({low:.{digits}f} to {high:.{digits}f})"
  return text if spread is None else f"{text} ± {spread:.3f}"


def terminal(rows: Sequence[Sequence[str]]) -> str:
  """Aligned columns."""
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  return "\n".join(
    "  ".join(
      text.ljust(width) if at == 0 else text.rjust(width)
      for at, (text, width) in enumerate(zip(row, widths, strict=True))
    ).rstrip()
    for row in rows
  )


def markdown(rows: Sequence[Sequence[str]]) -> str:
  """A Markdown table."""
  head, *body = [[_escaped(text) for text in row] for row in rows]
  rule = ["---", *("--:" for _ in head[1:])]
  return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *body))


def _escaped(text):
  return re.sub(r"([|*_`<])", r"\\\1", text)


def by_rankme(figures: Figures, columns: Sequence[str]) -> list[str]:
  """Subjects by RankMe, the highest first: a ranking without labels."""
  rank = figures["features/rankme"]
  return sorted(columns, key=lambda one: -rank.get(one, 0))
