"""`evals.jsonl`: figures that were measured, each once."""

import contextlib
import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from seer_jax.runtime import errors


class Result(NamedTuple):
  """One figure of one subject."""

  what: str
  name: str
  value: float


def read_lines(path: pathlib.Path) -> Iterator[dict[str, Any]]:
  """The lines of a file that hold what, eval, key and figures; none without it.

  The last line may be cut off by a kill, or the file edited.
  """
  text = path.read_text(errors="replace") if path.is_file() else ""
  for each in text.splitlines():
    with contextlib.suppress(ValueError, KeyError, TypeError):
      line = json.loads(each)
      names = "what", "eval", "key"
      yield {name: line[name] for name in names} | {
        "figures": dict(line["figures"]),
        "on": str(line.get("on", "")),  # Older lines have none.
      }


class ResultFile:
  """A file of JSON lines, one for each evaluation of each subject."""

  def __init__(self, path: pathlib.Path):
    self._path = path
    self._known: dict[str, dict[str, float]] = {
      line["key"]: line["figures"] for line in read_lines(path)
    }
    whole = not path.exists() or path.read_bytes()[-1:] in (b"", b"\n")
    self._begin = "" if whole else "\n"

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
