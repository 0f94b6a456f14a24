"""python -m seer_jax.main --config configs/digits.py --workdir runs/digits

Pre-trains on a pile of images and says whether it learned. Started again with
the same command, a run goes on where it stopped. Any key of the config can be
set on the command line, for example --config.data.train.path=~/photos.

Exit status: 0 done, 2 a mistake you can mend (one line says how), 75 stopped
by a signal with everything saved.
"""

import logging
import os
import pathlib
import re
import sys

import jax
from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from seer_jax import config as config_lib
from seer_jax import errors, train

_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "The experiment, a file of configs/."
)
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Where the run is kept; the same folder resumes it."
)
# Not a signal's own status: schedulers requeue on it (sysexits' EX_TEMPFAIL).
_STOPPED = 75


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise errors.UserError(f"what is {argv[1]!r}? Options start with --")
  if _WORKDIR.value is None:
    raise errors.UserError("give --workdir, the folder to keep the run in")
  _keep_compiled()
  _tell_ours()
  train.run(_CONFIG.value, pathlib.Path(_WORKDIR.value).expanduser())


def cli() -> None:
  """Parses flags and runs, with mistakes told in one line."""
  try:
    app.run(main, flags_parser=_parse)
  except errors.UserError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)
  except train.Stopped as stop:
    print(stop, file=sys.stderr)
    sys.exit(_STOPPED)


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
    raise errors.UserError(" ".join(str(error).split())) from error


def _unknown_key(argv, error):
  given = [
    arg.lstrip("-").removeprefix("config.").split("=")[0]
    for arg in argv
    if re.match(r"--?config\.", arg)
  ]
  known = {name for name, _ in config_lib.flatten(config_lib.base())}
  for key in given:
    if key not in known:
      nearest = config_lib.nearest_key(config_lib.base(), key)
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


def _keep_compiled():
  """Compiled programs survive the process, in the user's cache folder."""
  cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
  folder = pathlib.Path(cache).expanduser() / "seer_jax" / "xla"
  jax.config.update("jax_compilation_cache_dir", str(folder))


if __name__ == "__main__":
  cli()
