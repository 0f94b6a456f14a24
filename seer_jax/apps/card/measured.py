"""What `seer-jax eval` measured of a run and of what it was compared with."""

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping, Sequence

from seer_jax.apps import results, subjects
from seer_jax.runtime import files


@dataclasses.dataclass(frozen=True)
class Measured:
  """Figures of the run and of baselines."""

  figures: Mapping[str, Mapping[str, float]]  # Subject -> name -> value.
  images: Mapping[str, str]  # Evaluation -> on which images.

  @property
  def subjects(self) -> Sequence[str]:
    """The run, which is first, and the baselines."""
    return tuple(self.figures)

  @property
  def run(self) -> Mapping[str, float]:
    """Figures of the run itself."""
    return next(iter(self.figures.values()))

  def of(self, subject: str, name: str) -> float | None:
    """One figure, if it was measured."""
    return self.figures[subject].get(name)


@dataclasses.dataclass(frozen=True)
class Split:
  """A figure by the groups of a column."""

  figure: str
  column: str
  groups: Sequence[str]  # By their names.

  def name(self, group: str) -> str:
    """The name of a group's figure."""
    return f"{self.figure}/{self.column}={group}"


def read(
  workdir: pathlib.Path, evals: pathlib.Path | None, name: str
) -> Measured:
  """Reads `evals.jsonl` of the workdir, and of `evals`.

  Other runs in the file are left out.

  Args:
    name: of the run, for tables.
  """
  figures: dict[str, dict[str, float]] = {name: {}}
  images: dict[str, str] = {}
  for folder in filter(None, (workdir / "evals", evals)):
    for line in results.read_lines(folder / "evals.jsonl"):
      subject = _subject(line["what"], workdir, name)
      if subject:
        figures.setdefault(subject, {}).update(line["figures"])
        images[line["eval"].partition("#")[0]] = line["on"]
  return Measured(figures, images)


def _subject(what, workdir, name):
  if what in (subjects.UNTRAINED, *subjects.WITHOUT_TRUNK):
    return what
  path = files.user_path(what)
  return name if path.resolve() == workdir.resolve() else None


def splits(figures: Mapping[str, float]) -> Iterator[Split]:
  """The figures that are split, each by each column, in order."""
  found: dict[tuple[str, str], list[str]] = {}
  for name in figures:
    label = name.removesuffix("/n")
    figure, _, last = label.rpartition("/")
    column, is_group, group = last.partition("=")
    if name != label and is_group and f"{figure}/n" in figures:
      found.setdefault((figure, column), []).append(group)
  for (figure, column), groups in found.items():
    yield Split(figure, column, groups)
