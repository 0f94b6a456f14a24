"""A config file, with keys set on the command line."""

import re
import traceback
from collections.abc import Sequence

from absl import flags
from ml_collections import config_flags

from seer_jax.config import keys, resolved
from seer_jax.runtime import errors


def read(path: str | None, overrides: Sequence[str] = ()) -> keys.ConfigDict:
  """The config of a file, with overrides.

  Raises UserError if there is no file, it fails, or a key does not exist.

  Args:
    path: of a file with a function `get_config`; text after a colon is its
      argument ("configs/seer_rg256.py:v100").
    overrides: "--config.swav.epsilon=0.04", or a value in the next item.
  """
  if not path:
    raise errors.UserError(
      "no --config is given; name a file, such as configs/digits.py"
    )
  argv = ["seer-jax", f"--config={path}", *overrides]
  values = flags.FlagValues()
  config = config_flags.DEFINE_config_file(
    "config", None, "", flag_values=values, sys_argv=argv
  )
  try:
    values(argv)
    # The file is read with the first key.
    _ = config.value.seed
    return config.value
  except OSError as error:
    name = config_flags.get_config_filename(values["config"])
    raise errors.UserError(f"cannot read the config file {name}") from error
  except (SyntaxError, ImportError) as error:
    raise errors.UserError(f"the config file does not load: {error}") from error
  except (AttributeError, KeyError) as error:
    raise errors.UserError(_unknown_key(overrides, error)) from error
  except (flags.Error, TypeError, ValueError) as error:
    # An error in a config file comes as a traceback; its last line tells it.
    words = str(error).strip().splitlines()
    if "takes 0 positional arguments" in words[-1]:
      words = ["this config takes no argument: remove the colon and the rest"]
    if any("Traceback" in line for line in words):
      words = [words[0].split(": Error")[0], words[-1]]
    raise errors.UserError(" ".join(" ".join(words).split())) from error
  except errors.UserError:
    raise
  except Exception as error:
    # Of the user's config file.
    at = traceback.extract_tb(error.__traceback__)[-1]
    raise errors.UserError(
      f"the config file fails at {at.filename}:{at.lineno}:"
      f" {type(error).__name__}: {error}"
    ) from error


def _unknown_key(overrides, error):
  given = [
    re.sub(r"^--(no)?config\.", "", each).split("=")[0]
    for each in overrides
    if each.startswith("--")
  ]
  known = {name for name, _ in keys.flatten(keys.base())}
  for key in given:
    if key in resolved.RENAMED:
      return f"config.{key} is now called config.{resolved.RENAMED[key]}"
    if key not in known:
      near = keys.nearest_key(keys.base(), key)
      hint = f"; did you mean config.{near}?" if near else ""
      return f"there is no key config.{key}{hint}"
  return " ".join(str(error).split())
