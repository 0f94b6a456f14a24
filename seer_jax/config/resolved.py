"""The resolved config of a run: `config.json` of its workdir."""

import contextlib
import json
import logging
import os
import pathlib

from seer_jax.config import keys
from seer_jax.config.keys import ConfigDict
from seer_jax.runtime import errors, files

_log = logging.getLogger(__name__)

# Keys of older runs, and what they are called today.
RENAMED = {"model.numbers": "model.regnet"}


def load(workdir: pathlib.Path, config: ConfigDict) -> None:
  """Sets open keys to what an earlier start in this workdir chose.

  Choices depend on the data and the hardware; a run that resumes on other
  hardware keeps those that it began with.
  """
  for key, value in _of_checkpoints(workdir).items():
    if key in keys.KEYS and keys.get(config, key) is None:
      keys.put(config, key, _tuples(value))


def of_run(workdir: pathlib.Path) -> ConfigDict:
  """The config of an earlier run; keys that it lacks have their defaults.

  Raises UserError if its `config.json` cannot be read.
  """
  config = keys.base()
  with config.ignore_type():
    for key, value in _read(workdir).items():
      if key in keys.KEYS:
        keys.put(config, key, _tuples(value))
  return config


def write(
  workdir: pathlib.Path, config: ConfigDict, primary: bool = True
) -> None:
  """Writes a resolved config, or compares it with that of the workdir's run.

  Raises UserError if the workdir belongs to a run with another config.

  Args:
    primary: whether to write it, if there is none yet.
  """
  ours = json.loads(json.dumps(dict(keys.flatten(config))))
  theirs = _of_checkpoints(workdir)
  if not theirs:
    if primary:
      text = json.dumps(ours, indent=2) + "\n"
      files.write_text(workdir / "config.json", text)
    return
  # A key that is newer than the run had the effect of its default.
  theirs = json.loads(json.dumps(dict(keys.flatten(keys.base())))) | theirs
  free = {key for key, each in keys.KEYS.items() if each.free}
  differing = [
    f"{key} was {theirs.get(key)!r}, is {ours.get(key)!r}"
    for key in sorted((ours.keys() | theirs.keys()) - free)
    if ours.get(key) != theirs.get(key)
  ]
  if differing:
    raise errors.UserError(
      f"{workdir} holds a run with another config: {'; '.join(differing)}."
      " Restore these values, or give another --workdir"
    )


def _of_checkpoints(workdir):
  """The config of the run whose checkpoints are here; empty without any."""
  with _reading(workdir):
    # Not glob, which finds nothing in a folder that is not readable.
    names = os.listdir(workdir / "checkpoints")
    if any(name[0].isdigit() for name in names):
      return _read(workdir)
  return {}


def _read(workdir):
  """The keys of `config.json`, by today's names; empty without one."""
  path = workdir / "config.json"
  with _reading(workdir):
    try:
      found = json.loads(path.read_text())
    except ValueError as error:
      raise _damaged(path, error) from error
    if not isinstance(found, dict):
      raise _damaged(path, "not an object")
    for former, key in RENAMED.items():
      if former in found:
        found[key] = found.pop(former)
        _log.info("%s: %s is now called %s", path, former, key)
    temperature = "eval.knn_temperature"
    if isinstance(found.get(temperature), float):
      found[temperature] = [found[temperature]]
    return found
  return {}


@contextlib.contextmanager
def _reading(workdir):
  """Passes over what does not exist; refuses what cannot be read."""
  try:
    yield
  except (FileNotFoundError, NotADirectoryError):
    pass
  except OSError as error:
    raise errors.UserError(
      f"cannot read {error.filename or workdir}: {error.strerror}; give this"
      " user read and write access to the whole workdir, or give another"
      " --workdir"
    ) from error


def _damaged(path, reason):
  return errors.UserError(
    f"{path} is damaged ({reason}); restore it, or give another --workdir"
  )


def _tuples(value):
  return tuple(map(_tuples, value)) if isinstance(value, list) else value
