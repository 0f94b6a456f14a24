"""`train` and `replay`: the loop, and a look at why it diverged."""

import argparse
import contextlib
import functools
import gc
import logging
import os
import sys

from seer_jax.commands import logs, process
from seer_jax.commands.parser import Command, option
from seer_jax.runtime import errors, files

_log = logging.getLogger(__name__)


def _add_arguments(parser):
  option(
    parser, "--workdir", "DIR", "folder of the run; the same one resumes it"
  )
  several = parser.add_argument_group(
    "several processes",
    "Detected under SLURM, Open MPI, Kubernetes and on Cloud TPUs.",
  )
  add = functools.partial(option, several)
  add("--coordinator", "HOST:PORT", "where the first process listens")
  add("--processes", "N", "how many there are", kind=int)
  add("--process", "I", "index of this one, from 0", kind=int)
  add("--patience", "SECONDS", "how long to wait for the others", 300.0)


def _add_training(parser):
  parser.add_argument(
    "--compile-only",
    action="store_true",
    help="compile the run's programs into the cache, without training: once,"
    " before many processes that share the cache start",
  )
  _add_arguments(parser)


def _train(options: argparse.Namespace) -> None:
  process.keep_memory()
  process.collect_seldom()
  with _ending_together():
    config, workdir = _begin(options, needs_workdir=not options.compile_only)
    from seer_jax.training import run

    if options.compile_only:
      for line in run.compile_only(config, workdir):
        print(line)
      return
    try:
      run.run(config, workdir)
    except errors.UserError:
      if os.path.isdir(workdir / "divergence"):
        _report(workdir, 0)
      raise
    _report(workdir, config.report.images)


def _report(workdir, images):
  """Writes `report.html`; a failure is only a warning, since the run counts."""
  import jax

  from seer_jax.apps.report import report
  from seer_jax.runtime import distributed

  if not distributed.is_primary():
    return
  # The network runs in one process; of several, the others have ended.
  alone = jax.process_count() == 1
  gc.collect()  # Arrays of the run on the devices.
  path = workdir / report.NAME
  try:
    (verdict,) = report.write([workdir], path, images if alone else 0)
    print(f"{verdict.title}: see {report.NAME} in the workdir")
  except Exception as error:
    _log.warning(
      "the report could not be written: %s; seer-jax report tries again", error
    )
    _log.debug("the report failed", exc_info=True)


def _replay(options: argparse.Namespace) -> None:
  with _ending_together():
    config, workdir = _begin(options)
    from seer_jax.training import run

    for line in run.replay(config, workdir):
      print(line)


def _begin(options, needs_workdir=True):
  """Reads the config and joins the other processes, if there are any."""
  from seer_jax.config import from_flags

  config = from_flags.read(options.config, options.overrides)
  if not options.workdir and needs_workdir:
    raise errors.UserError("no --workdir is given; name a folder for the run")
  import jax

  from seer_jax.runtime import distributed

  logs.show()
  process.keep_compiled()
  rank = distributed.find_rank(
    os.environ, options.coordinator, options.processes, options.process
  )
  distributed.start(rank, options.patience)
  if not distributed.is_primary():
    logs.show_less(jax.process_index())
  return config, files.user_path(options.workdir) if options.workdir else None


@contextlib.contextmanager
def _ending_together():
  """When one of several processes fails, ends all, with its message."""
  from seer_jax.runtime import abort

  try:
    yield
  except (errors.UserError, errors.Lost) as error:
    abort.fail(error.STATUS, str(error))
  except errors.Stopped as stop:
    abort.print_exit_message(str(stop))
    sys.exit(stop.STATUS)
  except KeyboardInterrupt:
    abort.fail(
      errors.INTERRUPTED,
      "interrupted; what was not saved is lost, and the same command resumes"
      " from the newest checkpoint",
    )
  except Exception as error:
    abort.crash(error)
    raise


TRAIN = Command(
  "Pre-trains on images; run again, it resumes where it stopped.",
  (
    "seer-jax train --config configs/digits.py --workdir runs/digits",
    "seer-jax train --config configs/folder.py --workdir runs/photos"
    " --config.data.train.path=~/photos",
  ),
  _add_training,
  _train,
  has_config=True,
)
REPLAY = Command(
  "Repeats the step at which a run diverged, and looks for the cause.",
  (
    "seer-jax replay --config configs/digits.py --workdir runs/digits",
    "seer-jax replay --config configs/folder.py --workdir runs/photos"
    " --config.data.train.path=~/photos",
  ),
  _add_arguments,
  _replay,
  has_config=True,
)
