"""`report`: a page that says whether a run worked; a model card."""

import argparse
import functools
import pathlib

from seer_jax.commands import logs, process
from seer_jax.commands.parser import Command, option
from seer_jax.runtime import errors, files


def _add_arguments(parser):
  add = functools.partial(option, parser)
  parser.add_argument(
    "workdirs",
    metavar="WORKDIR",
    nargs="+",
    help="of a run; several are compared on one page",
  )
  add(
    "--out",
    "FILE",
    "the page (WORKDIR/report.html; of several runs, report.html here)",
  )
  add(
    "--images",
    "N",
    "images of each run to look at, 0 for no pictures (by default, as in the"
    " run's config)",
    kind=int,
  )
  add(
    "--evals",
    "DIR",
    "what seer-jax eval wrote, for its figures (WORKDIR/evals)",
  )

  parser.add_argument(
    "--card",
    action="store_true",
    help="write a model card instead (WORKDIR/card.html and card.md)",
  )


def _report(options: argparse.Namespace) -> None:
  if options.card:
    _card(options)
    return
  from seer_jax.apps.report import report

  if options.images is not None and options.images < 0:
    raise errors.UserError(
      f"--images is {options.images}; it must be 0 or more"
    )
  logs.show()
  process.keep_compiled()
  workdirs = [files.user_path(each) for each in options.workdirs]
  out = workdirs[0] / report.NAME
  if len(workdirs) > 1:
    out = pathlib.Path(report.NAME)
  if options.out:
    out = files.user_path(options.out)
  evals = files.user_path(options.evals) if options.evals else None
  found = report.write(workdirs, out, options.images, evals)
  for workdir, verdict in zip(options.workdirs, found, strict=True):
    print(f"{workdir}: {verdict.title}. {verdict.sentence}")
  print(out)


def _card(options):
  from seer_jax.apps.card import card

  if len(options.workdirs) > 1:
    raise errors.UserError(
      f"--card is of one run, but {len(options.workdirs)} are given; give one"
    )
  logs.show()
  workdir = files.user_path(options.workdirs[0])
  out = files.user_path(options.out) if options.out else workdir / card.NAME
  evals = files.user_path(options.evals) if options.evals else None
  for path in card.write(workdir, out, evals):
    print(path)


REPORT = Command(
  "Makes a page that says whether runs worked, with curves and pictures.",
  (
    "seer-jax report runs/photos",
    "seer-jax report runs/photos runs/longer --out compared.html",
  ),
  _add_arguments,
  _report,
)
