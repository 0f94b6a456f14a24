"""SHA-256 sums of the files in a folder.

`SHA256SUMS` has the format of the command, so a checkpoint can be checked
without this package: `sha256sum --check SHA256SUMS`.
"""

import concurrent.futures
import hashlib
import os
import pathlib

from seer_jax.runtime import files

_NAME = "SHA256SUMS"
_THREADS = 8  # hashlib releases the GIL.


def seal(folder: pathlib.Path) -> None:
  """Hashes all files and flushes them to disk. Raises OSError on failure."""
  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    names = _names(folder)
    hashes = pool.map(lambda name: _hash(folder / name, flush=True), names)
    lines = [
      f"{found}  {name}\n" for found, name in zip(hashes, names, strict=True)
    ]
  (folder / _NAME).write_text("".join(lines), encoding="utf-8")
  files.flush(folder / _NAME)
  for each in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
    files.flush(each)


def complaints(folder: pathlib.Path) -> list[str]:
  """Differences from the sealed state, a phrase each.

  Raises PermissionError if this user may not read the files.
  """
  try:
    text = (folder / _NAME).read_text(encoding="utf-8", errors="replace")
    if not text.endswith("\n"):
      return [f"{_NAME} is cut off"]
    expected = dict(_parse(line) for line in text.splitlines())
    there = set(_names(folder))
  except PermissionError:
    raise
  except OSError as error:
    return [f"{_NAME} cannot be read: {error.strerror}"]
  except ValueError:
    return [f"{_NAME} is damaged"]

  def check(name):
    try:
      differs = _hash(folder / name) != expected[name]
    except PermissionError:
      raise
    except OSError as error:
      return f"{name} cannot be read: {error.strerror}"
    return f"{name} has another checksum" if differs else ""

  missing = [f"{name} is missing" for name in sorted(expected.keys() - there)]
  unknown = [
    f"{name} is not in {_NAME}" for name in sorted(there - expected.keys())
  ]
  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    wrong = list(pool.map(check, sorted(expected.keys() & there)))
  return [words for words in (*missing, *unknown, *wrong) if words]


def _parse(line):
  found, name = line.split("  ", 1)
  return name, found


def _names(folder):
  return sorted(
    path.relative_to(folder).as_posix()
    for path in folder.rglob("*")
    if path.is_file() and path != folder / _NAME
  )


def _hash(path, flush=False):
  with path.open("rb") as file:
    if flush:
      os.fsync(file.fileno())
    return hashlib.file_digest(file, "sha256").hexdigest()
