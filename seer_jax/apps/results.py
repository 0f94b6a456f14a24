"""`evals.jsonl`: figures that were measured, each once."""

import contextlib
import json
import pathlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

from seer_jax.runtime import errors


class Result(NamedTuple):
  """One figure of one subject."""

  what: str
  name: str
  value: float


class ResultFile:
  """A file of JSON lines, one for each evaluation of each subject."""

  def __init__(self, path: pathlib.Path):
    self._path = path
    self._known: dict[str, dict[str, float]] = {}
    text = path.read_text(errors="replace") if path.exists() else ""
    for each in text.splitlines():
      # The last line may be cut off by a kill, or the file edited.
      with contextlib.suppress(ValueError, KeyError, TypeError):
        line = json.loads(each)
        self._known[line["key"]] = dict(line["figures"])
    self._begin = "" if text[-1:] in ("", "\n") else "\n"

  def once(
    self,
    what: str,
    evaluation: str,
    key: str,
    compute: Callable[[], dict[str, float]],
    on: str = "",
  ) -> Iterator[Result]:
    """Results under a key, from the file, or computed and appended to it.

    Args:
      key: a fingerprint of everything that the figures depend on.
      compute: returns figures by name.
      on: the images, in words.
    """
    if key not in self._known:
      self._known[key] = compute()
      line = {
        "what": what,
        "eval": evaluation,
        "key": key,
        "on": on,
        "figures": self._known[key],
      }
      try:
        with self._path.open("a") as file:
          file.write(self._begin + json.dumps(line) + "\n")
        self._begin = ""
      except OSError as error:
        raise errors.of_disk(
          error, f"cannot write {self._path}: {error.strerror}"
        ) from error
    for name, value in self._known[key].items():
      yield Result(what, name, value)
