"""Tables of published data sets, for `seer-jax prepare`."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from seer_jax.data.published import cells, copies, people, rows, shifted
from seer_jax.runtime import errors, files

# Name -> what the command needs beside the folder of images.
DATASETS: Mapping[str, tuple[str, ...]] = {
  "casual_conversations": ("metadata",),
  "miap": ("metadata",),
  "utkface": (),
  "dollar_street": ("metadata",),
  "imagenet_a": (),
  "imagenet_r": (),
  "imagenet_sketch": (),
  "imagenet_v2": (),
  "objectnet": (),
  "copydays": (),
  "roxford5k": ("metadata",),
  "rparis6k": ("metadata",),
  "geolocation": ("metadata", "cells"),
}


def prepare(
  name: str,
  folder: pathlib.Path,
  out: pathlib.Path,
  options: Mapping[str, pathlib.Path | None],
) -> list[pathlib.Path]:
  """Writes the tables of a data set; returns their paths.

  All are made before the first is written. Raises UserError for an unknown
  data set, a missing option, or files with another layout.

  Args:
    out: a CSV; of sets with several tables, a folder.
    options: metadata, concepts, distractors, cells.
  """
  if name not in DATASETS:
    raise errors.UserError(
      f"there is no data set {name!r}; use {', '.join(DATASETS)}"
    )
  for needed in DATASETS[name]:
    if options.get(needed) is None:
      raise errors.UserError(f"{name} needs --{needed}; see --help")
  tables = _tables(name, folder, options)
  if isinstance(tables, dict):
    written = {out / f"{each}.csv": tables[each] for each in tables}
  else:
    written = {out: tables}
  for path, table in written.items():
    if isinstance(table, dict):
      files.write_text(path.with_suffix(".json"), json.dumps(table) + "\n")
    else:
      rows.write(path, table)
  return [
    path.with_suffix(".json") if isinstance(table, dict) else path
    for path, table in written.items()
  ]


def _tables(name, folder, options) -> Any:
  metadata = options.get("metadata")
  match name:
    case "casual_conversations":
      return people.casual_conversations(metadata, folder)
    case "miap":
      return people.miap(metadata, folder)
    case "utkface":
      return people.utkface(metadata, folder)
    case "dollar_street":
      return people.dollar_street(metadata, folder, options.get("concepts"))
    case "copydays":
      return copies.copydays(folder, options.get("distractors"))
    case "roxford5k" | "rparis6k":
      return copies.buildings(folder, metadata)
    case "geolocation":
      return _geolocation(metadata, folder, options["cells"])
  return shifted.table(name, folder)


def _geolocation(
  metadata: pathlib.Path, folder: pathlib.Path, cells_path: pathlib.Path
) -> rows.Rows:
  """A CSV of path, latitude and longitude with the nearest cell as label.

  The published cells are those of S2, whose borders are not in the table of
  cells, so an image near a border may get its neighbour.
  """
  centers = cells.read_cells(str(cells_path))
  found = rows.read_csv(metadata)
  names = tuple(found[0]) if found else ()
  latitude, longitude = cells.columns(names, str(metadata))
  if "path" not in names:
    raise errors.UserError(f"{metadata} has no column path, only {names}")
  try:
    degrees = np.array(
      [(float(row[latitude]), float(row[longitude])) for row in found]
    )
  except (TypeError, ValueError) as error:
    raise errors.UserError(
      f"{metadata} has a coordinate that is no number: {errors.one_line(error)}"
    ) from None
  cells.check_degrees(degrees, str(metadata))
  labels = cells.nearest_cell(degrees, centers)
  paths = [(folder / row["path"]).absolute() for row in found]
  rows.check_files(paths, metadata)
  return [
    {
      "path": path,
      "label": int(label),
      "latitude": row[latitude],
      "longitude": row[longitude],
    }
    for path, label, row in zip(paths, labels, found, strict=True)
  ]
