"""The config that a run was resolved to: `config.json` of its workdir."""

import contextlib
import json
import os
import pathlib

from seer_jax.config.keys import ConfigDict, base, flatten, get, put
from seer_jax.runtime import errors, files

# What may change between two starts of one run: none of it touches a result.
FREE_KEYS = frozenset(
  {
    "data.workers",
    "data.reads",
    "data.max_bad",
    "checkpoint.every",
    "checkpoint.wait",
    "checkpoint.keep",
    "checkpoint.keep_every",
    "checkpoint.best",
    "checkpoint.best_metric",
    "checkpoint.risk",
    "profile",
    "report.images",
    "rollback.after",
    "watchdog",
  }
)


def recall(workdir: pathlib.Path, config: ConfigDict) -> None:
  """Takes over what an earlier start in this workdir chose for open keys.

  Choices depend on the data and the hardware; a run that goes on elsewhere
  goes on with the choices that it began with.
  """
  for key, value in _claimed(workdir).items():
    if key in dict(flatten(config)) and get(config, key) is None:
      put(config, key, _tuples(value))


def of_run(workdir: pathlib.Path) -> ConfigDict:
  """The config of a run that was; a key that is newer has its default.

  Raises:
    UserError: its `config.json` does not read.
  """
  config = base()
  known = dict(flatten(config))
  with config.ignore_type():
    for key, value in _written(workdir).items():
      if key in known:
        put(config, key, _tuples(value))
  return config


def claim(
  workdir: pathlib.Path, config: ConfigDict, write: bool = True
) -> None:
  """Writes the resolved config into a new workdir, or compares with the old.

  Args:
    workdir: of the run.
    config: resolved.
    write: whether to, if there is no old one: one process of several does.

  Raises:
    UserError: the workdir belongs to a run with another config.
  """
  path = workdir / "config.json"
  ours = json.loads(json.dumps(dict(flatten(config))))
  theirs = _claimed(workdir)
  if not theirs:
    if write:
      files.write_text(path, json.dumps(ours, indent=2) + "\n")
    return
  # A key that is younger than the run had its default's effect.
  theirs = json.loads(json.dumps(dict(flatten(base())))) | theirs
  differing = [
    f"{key} was {theirs.get(key)!r}, is {ours.get(key)!r}"
    for key in sorted(ours.keys() | theirs.keys())
    if key not in FREE_KEYS and ours.get(key) != theirs.get(key)
  ]
  if differing:
    raise errors.UserError(
      f"{workdir} holds a run with another config: {'; '.join(differing)}."
      " Take these values back, or give another --workdir"
    )


def _claimed(workdir):
  """The config of the run whose checkpoints are here; empty without any."""
  with _reading(workdir):
    # Not glob, for which a folder that is closed to us is an empty one.
    names = os.listdir(workdir / "checkpoints")
    if any(name[0].isdigit() for name in names):
      return _written(workdir)
  return {}


def _written(workdir):
  """The keys of `config.json`; empty without one."""
  path = workdir / "config.json"
  with _reading(workdir):
    try:
      found = json.loads(path.read_text())
    except ValueError as error:
      raise _damaged(path, error) from error
    if not isinstance(found, dict):
      raise _damaged(path, "no object")
    return _of_today(found)
  return {}


@contextlib.contextmanager
def _reading(workdir):
  """Leaves out what is not there; says what cannot be read."""
  try:
    yield
  except (FileNotFoundError, NotADirectoryError):
    pass
  except OSError as error:
    raise errors.UserError(
      f"cannot read {error.filename or workdir}: {error.strerror}; let this"
      " user read and write all of the workdir, or give another --workdir"
    ) from error


def _damaged(path, why):
  return errors.UserError(
    f"{path} is damaged ({why}); put it back, or give another --workdir"
  )


def _of_today(values):
  """Keys of older runs, in the form that they have now."""
  key = "eval.knn_temperature"
  if isinstance(values.get(key), float):
    values[key] = [values[key]]
  return values


def _tuples(value):
  return tuple(map(_tuples, value)) if isinstance(value, list) else value
