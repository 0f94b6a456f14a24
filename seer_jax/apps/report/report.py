"""Turns workdirs into one self-contained HTML page."""

import dataclasses
import datetime
import pathlib
from collections.abc import Sequence
from importlib import resources
from typing import NamedTuple

import jinja2

import seer_jax
from seer_jax.apps.report import (
  charts,
  cost,
  facts,
  first_batch,
  history,
  pictures,
  sample,
  verdict,
)
from seer_jax.apps.report import worth as worth_lib
from seer_jax.apps.report.checks import percent
from seer_jax.apps.report.history import History
from seer_jax.config import keys
from seer_jax.runtime import errors, files

NAME = "report.html"
# Most bytes of a page, so that it can be mailed; libraries and frame, and the
# curves and tables of each run, take some of them.
LARGEST = 5_000_000
_FRAME, _A_RUN = 600_000, 150_000
# Rows of pictures on the page of a single run.
_NEIGHBOURS, _PROTOTYPES, _CROPS = 8, 4, 4
_BAD_SHOWN = 20


@dataclasses.dataclass(frozen=True)
class Pictures:
  """What is shown of a run's network."""

  neighbours: pictures.Neighbours | None = None  # Of some queries.
  prototypes: pictures.Prototypes | None = None  # None for a network without.
  map: pictures.Map | None = None  # Of features; None for very few images.
  crops: Sequence[pictures.Strip] = ()  # Of the first batch.
  images: int = 0  # Number of images looked at.
  # Of features compared with pixels; None without labels.
  worth: worth_lib.Worth | None = None
  why_not: str = ""  # Why the above is missing, or "".
  why_no_crops: str = ""  # Why crops are missing, or "".


class Run(NamedTuple):
  """A run on the page."""

  history: History
  verdict: verdict.Verdict
  pictures: Pictures
  scores: list[list[str]]
  facts: list[tuple[str, str]]
  energy: cost.Energy
  settings: list[tuple[str, str, str]]


def write(
  workdirs: Sequence[pathlib.Path],
  out: pathlib.Path,
  images: int | None = None,
  evals: pathlib.Path | None = None,
) -> list[verdict.Verdict]:
  """Writes the report of one run, or of several side by side.

  Raises UserError if a workdir has no run, or the file cannot be written, and
  Lost if the disk is full.

  Args:
    images: how many of each run to look at for pictures; 0 for no pictures;
      None for the number in its config.
    evals: the folder that `seer-jax eval` wrote to, if any.

  Returns:
    The verdict on each run.
  """
  histories = history.read(workdirs, evals)
  runs, room = [], LARGEST - _FRAME - _A_RUN * len(histories)
  for each in histories:
    wanted = each.config.report.images if images is None else images
    shown = _pictures(each, wanted, len(histories) ** -0.5)
    size = _size(shown)
    if size > room:
      shown = Pictures(
        images=shown.images,
        worth=shown.worth,
        why_not="Left out to keep the page small. The page of this run alone"
        f" has pictures: seer-jax report {each.workdir}",
      )
      size = 0
    room -= size
    runs.append(_run(each, shown))
  files.write_text(out, _page(runs, charts.of(histories)))
  return [run.verdict for run in runs]


def _run(each, shown):
  return Run(
    each,
    verdict.judge(each, shown.worth),
    shown,
    facts.scores(each),
    facts.facts(each),
    cost.energy(each),
    facts.settings(each),
  )


def _pictures(each, images, scale):
  """Pictures, or the reason why there are none."""
  if not images:
    return Pictures(
      why_not="This page was made without pictures. With them: seer-jax report"
      f" {each.workdir} --images {keys.base().report.images}"
    )
  crops, why_no_crops = (), ""
  try:
    first = first_batch.first_batch(each, max(1, round(_CROPS * scale)))
    crops = pictures.crops(first)
  except (errors.UserError, errors.Lost) as error:
    why_no_crops = f"No crops to show: {error}"
  try:
    found = sample.take(each, images)
  except (errors.UserError, errors.Lost) as error:
    return Pictures(
      crops=crops,
      why_not=f"No pictures of the features: {error}",
      why_no_crops=why_no_crops,
    )
  return Pictures(
    neighbours=pictures.neighbours(found, max(3, round(_NEIGHBOURS * scale))),
    prototypes=pictures.prototypes(found, max(1, round(_PROTOTYPES * scale))),
    map=pictures.feature_map(found, scale),
    crops=crops,
    images=len(found.bank) + len(found.query),
    worth=worth_lib.measure(found),
    why_no_crops=why_no_crops,
  )


def _size(shown):
  """The approximate size of pictures on the page, in bytes."""
  return len(repr(dataclasses.astuple(shown)))


def _page(runs, curves):
  environment = jinja2.Environment(
    loader=jinja2.PackageLoader("seer_jax.apps.report", "page"),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
  )
  folder = resources.files("seer_jax.apps.report") / "page"
  environment.globals |= {
    "inlined": lambda name: (folder / name).read_text(),
    "percent": percent,
    "shown": facts.shown,
    "flat": keys.flatten,
  }
  return environment.get_template("report.html").render(
    runs=runs,
    charts=curves,
    differences=facts.differences([run.history for run in runs]),
    data=_data(runs, curves),
    version=seer_jax.__version__,
    made=f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC",
    bad_shown=_BAD_SHOWN,
    marks={"good": "\u2713", "unsure": "!", "bad": "\u2717"},
  )


def _data(runs, curves):
  """What the page's script draws."""
  return {
    "charts": [
      {
        "key": chart.key,
        "title": chart.title,
        "percent": chart.percent,
        "log": chart.log,
        "rules": chart.rules,
        "series": [each._asdict() for each in chart.series],
      }
      for chart in curves
    ],
    "maps": [
      {"key": f"map-{at}", "points": run.pictures.map.points}
      for at, run in enumerate(runs)
      if run.pictures.map and run.pictures.map.points
    ],
  }
