"""python -m seer_jax.main --config configs/digits.py --workdir runs/digits

Pre-trains on a pile of images and says whether it learned. Started again with
the same command, a run goes on where it stopped. Any key of the config can be
set on the command line, for example --config.data.train.path=~/photos.

With --mode=plan --topology=v100:64x8 (hosts x GPUs) or v5p:8x8x8 it compiles
the step for hardware that is not there, and says whether it fits.

Several processes find each other under SLURM, Open MPI, Kubernetes and on Cloud
TPUs (launch/README.md), or by --coordinator=HOST:PORT --processes=N
--process=I.

With --mode=replay it repeats the step at which a run gave up, and looks for the
cause.

Exit status: 0 done, 2 a mistake you can mend (one line says how), 70 something
that the run stood on is gone or stuck, 75 stopped by a signal with everything
saved. After 70 and 75 the same command resumes.
"""

import logging
import os
import pathlib
import re
import sys
import traceback

import jax
from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from seer_jax.config import keys
from seer_jax.planning import plan, plan_report
from seer_jax.runtime import abort, distributed, errors, host
from seer_jax.training import loop, run

_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "The experiment, a file of configs/."
)
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Where the run is kept; the same folder resumes it."
)
_MODE = flags.DEFINE_enum(
  "mode", "train", ["train", "plan", "replay"], "What to do."
)
_TOPOLOGY = flags.DEFINE_string(
  "topology", None, "The hardware to plan for, such as v100:64x8 or v5p:8x8x8."
)
_COORDINATOR = flags.DEFINE_string(
  "coordinator", None, "Of several processes: host:port of the first."
)
_PROCESSES = flags.DEFINE_integer("processes", None, "How many there are.")
_PROCESS = flags.DEFINE_integer("process", None, "Which this is, from 0.")
_PATIENCE = flags.DEFINE_float(
  "patience", 300, "Seconds to wait for the other processes."
)
# Not a signal's own status: schedulers requeue on it (sysexits' EX_TEMPFAIL).
_STOPPED = 75


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise errors.UserError(f"what is {argv[1]!r}? Options start with --")
  _tell_ours()
  if _MODE.value == "plan":
    _plan()
    return
  if _WORKDIR.value is None:
    raise errors.UserError("give --workdir, the folder to keep the run in")
  _keep_compiled()
  place = distributed.find(
    os.environ, _COORDINATOR.value, _PROCESSES.value, _PROCESS.value
  )
  distributed.start(place, _PATIENCE.value)
  if not distributed.is_lead():
    _tell_less()
  workdir = pathlib.Path(_WORKDIR.value).expanduser()
  if _MODE.value == "replay":
    for line in run.replay(_CONFIG.value, workdir):
      print(line)
    return
  run.run(_CONFIG.value, workdir)


def _plan():
  if _TOPOLOGY.value is None:
    raise errors.UserError(
      "give --topology, such as v100:64x8 (hosts x GPUs) or v5p:8x8x8"
    )
  report = plan.plan(_CONFIG.value, _TOPOLOGY.value)
  for line in plan_report.lines(report):
    print(line)


def cli() -> None:
  """Parses flags and runs, with mistakes told in one line."""
  try:
    app.run(main, flags_parser=_parse)
  except errors.UserError as error:
    abort.fail(2, str(error))
  except errors.Lost as error:
    abort.fail(errors.Lost.STATUS, str(error))
  except loop.Stopped as stop:
    abort.last_words(str(stop))
    sys.exit(_STOPPED)
  except (Exception, KeyboardInterrupt) as error:
    abort.crash(error)
    raise


def _parse(argv):
  """Flags, with ml_collections' complaints put into one line."""
  if not any(re.match(r"--?(config[=.]|config$|help)", arg) for arg in argv):
    raise errors.UserError("give --config, for example configs/digits.py")
  try:
    rest = flags.FLAGS(argv)
    # A file that cannot be read shows when its first key is.
    if _CONFIG.value is not None:
      _ = _CONFIG.value.seed
    return rest
  except OSError as error:
    path = config_flags.get_config_filename(flags.FLAGS["config"])
    raise errors.UserError(f"cannot read the config file {path}") from error
  except (SyntaxError, ImportError) as error:
    raise errors.UserError(f"the config file does not load: {error}") from error
  except (AttributeError, KeyError) as error:
    raise errors.UserError(_unknown_key(argv, error)) from error
  except (flags.Error, TypeError, ValueError) as error:
    # A config file's own failure comes as a traceback; its end says what.
    words = str(error).strip().splitlines()
    if "takes 0 positional arguments" in words[-1]:
      words = ["this config knows no hardware: leave out what follows its name"]
    if any("Traceback" in line for line in words):
      words = [words[0].split(": Error")[0], words[-1]]
    raise errors.UserError(" ".join(" ".join(words).split())) from error
  except errors.UserError:
    raise
  except Exception as error:
    # Of a config file, which is the user's.
    at = traceback.extract_tb(error.__traceback__)[-1]
    raise errors.UserError(
      f"the config file fails at {at.filename}:{at.lineno}:"
      f" {type(error).__name__}: {error}"
    ) from error


def _unknown_key(argv, error):
  given = [
    arg.lstrip("-").removeprefix("config.").split("=")[0]
    for arg in argv
    if re.match(r"--?config\.", arg)
  ]
  known = {name for name, _ in keys.flatten(keys.base())}
  for key in given:
    if key not in known:
      nearest = keys.nearest_key(keys.base(), key)
      hint = f"; did you mean config.{nearest}?" if nearest else ""
      return f"there is no key config.{key}{hint}"
  return " ".join(str(error).split())


def _tell_ours():
  """Our own messages, plainly; absl's, which orbax floods, stay at warnings."""
  absl_logging.set_verbosity(absl_logging.WARNING)
  log = logging.getLogger("seer_jax")
  log.setLevel(logging.INFO)
  log.propagate = False
  log.addHandler(logging.StreamHandler())


def _tell_less():
  """What is worth knowing of a process that is not the first, marked as its."""
  log = logging.getLogger("seer_jax")
  log.setLevel(logging.WARNING)
  for handler in log.handlers:
    handler.setFormatter(
      logging.Formatter(f"process {jax.process_index()}: %(message)s")
    )


def _keep_compiled():
  """Compiled programs survive the process, in the user's cache folder."""
  jax.config.update("jax_compilation_cache_dir", str(host.cache_folder()))


if __name__ == "__main__":
  cli()
