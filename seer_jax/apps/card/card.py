"""Writes the card of a run, as a page and as Markdown."""

import datetime
import pathlib
from importlib import resources

import jinja2

import seer_jax
from seer_jax.apps import tables
from seer_jax.apps.card import about, figures, measured
from seer_jax.apps.report import history
from seer_jax.runtime import files

NAME = "card.html"


def write(
  workdir: pathlib.Path,
  out: pathlib.Path,
  evals: pathlib.Path | None = None,
) -> list[pathlib.Path]:
  """Writes the card of a run to `out`, and beside it with the ending `.md`.

  Raises UserError if the workdir has no run, or a file cannot be written, and
  Lost if the disk is full.

  Args:
    evals: the folder that `seer-jax eval` wrote to, beside WORKDIR/evals.

  Returns:
    The paths of the page and of the Markdown.
  """
  (run,) = history.read([workdir], evals)
  found = measured.read(workdir, evals, run.name)
  content = {
    "name": run.name,
    "summary": about.summary(run, found),
    "learned": about.learned(run),
    "sections": _sections(run, found),
    "version": seer_jax.__version__,
    "made": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}",
  }
  written = [out, out.with_suffix(".md")]
  for path, template in zip(written, ("card.html", "card.md"), strict=True):
    text = _environment().get_template(template).render(content)
    files.write_text(path, text)
  return written


def _sections(run, found):
  """All parts, in order; those without content are left out."""
  parts = [
    about.use(run),
    about.data(run),
    about.training(run),
    figures.quality(found),
    figures.groups(found),
    figures.robustness(found),
    figures.others(found),
    figures.missing(found),
    figures.glossary(found),
  ]
  return [part for part in parts if part]


def _environment():
  environment = jinja2.Environment(
    loader=jinja2.ChoiceLoader(
      [
        jinja2.PackageLoader(f"seer_jax.apps.{room}", "page")
        for room in ("card", "report")
      ]
    ),
    autoescape=jinja2.select_autoescape(("html",)),
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
  )
  style = resources.files("seer_jax.apps.report") / "page" / "report.css"
  environment.globals |= {
    "style": style.read_text(),
    "markdown": lambda it: tables.markdown([it.head, *it.rows]),
  }
  return environment
