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

  Of a probe's heads only the chosen ones are shown; the file has all of them.
  """
  rows = [["", *columns]]
  for name, values in figures.items():
    above, _, last = name.rpartition("/")
    of_head = above and "@" in last
    if of_head or "/choice/" in name or (last == "std" and above in figures):
      continue
    spread = figures.get(f"{name}/std", {})
    rows.append(
      [name, *(_cell(values.get(one), spread.get(one)) for one in columns)]
    )
  return rows


def _cell(value, spread):
  if value is None:
    return "-"
  text = f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
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
