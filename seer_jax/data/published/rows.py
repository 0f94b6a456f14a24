"""Tables of images: a row per image, or per face in one."""

import csv
import io
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from seer_jax.data.storage.example import EXTENSIONS
from seer_jax.runtime import errors, files

Rows = Sequence[Mapping[str, object]]
# Columns of a box, in pixels: left, top, right, bottom.
BOX = ("x0", "y0", "x1", "y1")


def write(path: pathlib.Path, rows: Rows) -> None:
  """Writes a CSV with the columns of the first row.

  Raises UserError if there is no row.
  """
  if not rows:
    raise errors.UserError(f"{path} would have no rows; check the folder given")
  text = io.StringIO()
  writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
  writer.writeheader()
  writer.writerows(rows)
  files.write_text(path, text.getvalue())


def read_json(path: pathlib.Path) -> Any:
  """Reads a JSON file. Raises UserError if it cannot be read."""
  with errors.reading(path):
    text = path.read_text(errors="replace")
  try:
    return json.loads(text)
  except ValueError as error:
    raise errors.UserError(f"{path} is not JSON: {error}") from None


def read_csv(path: pathlib.Path) -> list[dict[str, str]]:
  """The rows of a CSV with a header. Raises UserError if it cannot be read."""
  with errors.reading(path), path.open(newline="", errors="replace") as file:
    return list(csv.DictReader(file))


def fields(item: object, names: Sequence[str], where: object) -> list[Any]:
  """Values of an item of metadata. Raises UserError if one is missing."""
  if not isinstance(item, dict):
    raise errors.UserError(f"{where} is {errors.shown(item)}, not an object")
  missing = [name for name in names if name not in item]
  if missing:
    raise errors.UserError(
      f"{where} has no {missing[0]!r}, only"
      f" {', '.join(map(errors.shown, list(item)[:8]))}"
    )
  return [item[name] for name in names]


def images_in(folder: pathlib.Path) -> list[pathlib.Path]:
  """The image files under a folder, sorted.

  Raises UserError if there are none.
  """
  if not folder.is_dir():
    raise errors.UserError(
      f"no such folder: {folder}; give the folder of the data set"
    )
  found = sorted(
    path
    for path in folder.rglob("*")
    if path.suffix[1:].lower() in EXTENSIONS and path.is_file()
  )
  if not found:
    raise errors.UserError(f"no images in {folder}; give the folder of images")
  return found


def check_files(paths: Sequence[pathlib.Path], where: object) -> None:
  """Raises UserError if files are missing; it names the first."""
  missing = [path for path in paths if not os.path.isfile(path)]
  if missing:
    raise errors.UserError(
      f"{where} names {len(paths)} images, but {len(missing)} are missing, the"
      f" first {missing[0]}; give the folder that has them"
    )
