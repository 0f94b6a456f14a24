"""Indexes in the user's cache, which make themselves again when damaged."""

import json
import logging
import os
import pathlib
import shutil
from collections.abc import Callable
from typing import TypeVar

from seer_jax.runtime import errors, files

_log = logging.getLogger(__name__)

_Opened = TypeVar("_Opened")
# The sizes of the other files of an index; an index without it is none.
_WHOLE = "whole.json"
_ATTEMPTS = 3  # Several processes may mend one index at once.


def open_index(
  folder: pathlib.Path,
  make: Callable[[pathlib.Path], None],
  open_made: Callable[[], _Opened],
) -> _Opened:
  """What was found out about some files; found out first if need be.

  Raises UserError if it cannot be written, or `make` says so, and Lost if there
  is no room for it.

  Args:
    folder: of `files.cached`.
    make: fills a folder.
    open_made: opens what lies in `folder`.
  """
  for _ in range(_ATTEMPTS):
    if not folder.exists():
      advice = "; make room there, or set XDG_CACHE_HOME to another folder"
      with files.whole(folder, advice) as part:
        part.mkdir()
        make(part)
        _seal(part)
    try:
      if _is_whole(folder):
        return open_made()
    except (OSError, ValueError, EOFError) as error:
      _log.debug("%s: %s", folder, error)
    _log.warning("the index %s is damaged; it is made again", folder)
    shutil.rmtree(folder, ignore_errors=True)
  raise errors.UserError(
    f"the index {folder} is damaged each time that it is made; set"
    " XDG_CACHE_HOME to another folder"
  )


def _seal(folder):
  sizes = {file.name: file.stat().st_size for file in folder.iterdir()}
  (folder / _WHOLE).write_text(json.dumps(sizes))


def _is_whole(folder):
  sizes = json.loads((folder / _WHOLE).read_text())
  return all(os.path.getsize(folder / name) == sizes[name] for name in sizes)
