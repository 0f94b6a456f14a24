"""Indexes in the user's cache, which are made again when damaged."""

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
# The sizes of the other files of an index; the index is invalid without it.
_WHOLE = "whole.json"
_ATTEMPTS = 3  # Several processes may repair an index at once.


def open_index(
  folder: pathlib.Path,
  make: Callable[[pathlib.Path], None],
  open_made: Callable[[], _Opened],
) -> _Opened:
  """Opens an index in a folder of `files.cached`; `make` fills it first.

  Raises UserError if it cannot be written, or `make` fails, and Lost if the
  disk is full.
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
    _log.warning("the index %s is damaged, and is made again", folder)
    shutil.rmtree(folder, ignore_errors=True)
  raise errors.UserError(
    f"the index {folder} is damaged whenever it is made; set XDG_CACHE_HOME to"
    " another folder"
  )


def _seal(folder):
  sizes = {file.name: file.stat().st_size for file in folder.iterdir()}
  (folder / _WHOLE).write_text(json.dumps(sizes))


def _is_whole(folder):
  sizes = json.loads((folder / _WHOLE).read_text())
  return all(os.path.getsize(folder / name) == sizes[name] for name in sizes)
