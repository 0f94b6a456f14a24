"""Copydays, and the revisited Oxford and Paris buildings, as published."""

import pathlib
import pickle
import re
from typing import Any

from seer_jax.data.published import rows
from seer_jax.runtime import errors

_SPLITS = ("original", "strong", "jpegqual", "crops")


def copydays(
  folder: pathlib.Path, distractors: pathlib.Path | None = None
) -> dict[str, rows.Rows]:
  """{"database": originals and distractors, "queries": all other images}.

  The label of an image is its number without the last two digits, which
  originals and copies share; distractors have none. The split of a query is
  the folder it is in, such as `jpegqual_3`. (VISSL takes a split for that of
  each path that contains its name, so that jpegqual_3 has jpegqual_30 too.)
  Raises UserError if a split is missing, or a name has no number.
  """
  found = {"database": [], "queries": []}
  for path in rows.images_in(folder):
    split = split_of(path.relative_to(folder))
    row = {"path": path.absolute(), "label": _block(path), "split": split}
    if split == "original":
      found["database"].append(row)
    elif split:
      found["queries"].append(row)
  for which, rows_ in found.items():
    if not rows_:
      raise errors.UserError(
        f"{folder} has no images for the {which}; it needs the folders"
        " original, and strong, jpegqual or crops"
      )
  for path in rows.images_in(distractors) if distractors else ():
    found["database"].append(
      {"path": path.absolute(), "label": "", "split": "distractor"}
    )
  return found


def split_of(path: pathlib.PurePath) -> str:
  """The split that a path's folders name, such as "crops_10"; "" for none."""
  parts = [part for each in path.parts[:-1] for part in each.split("_")]
  for at, part in enumerate(parts):
    if part in _SPLITS:
      level = parts[at + 1] if at + 1 < len(parts) else ""
      return f"{part}_{level}" if level.isdigit() else part
  return ""


def _block(path):
  number = re.search(r"\d+", path.stem)
  if not number:
    raise errors.UserError(
      f"{path} has no number in its name, which tells what it is a copy of"
    )
  return str(int(number[0]) // 100)


def buildings(
  folder: pathlib.Path, truth: pathlib.Path
) -> dict[str, rows.Rows | dict[str, Any]]:
  """{"database", "queries": tables, "ground_truth": the right answers}.

  `truth` is the pickle of Radenović et al. 2018, such as gnd_roxford5k.pkl.
  Raises UserError if it is malformed, or names images that are missing.
  """
  found = _unpickled(truth)
  database, queries, answers = rows.fields(
    found, ["imlist", "qimlist", "gnd"], truth
  )
  every = {path.stem: path.absolute() for path in rows.images_in(folder)}
  tables = {}
  for which, names in (("database", database), ("queries", queries)):
    paths = [every.get(str(name), folder / f"{name}.jpg") for name in names]
    rows.check_files(paths, f"the list of {which} in {truth}")
    tables[which] = [{"path": path} for path in paths]
  kinds = ["easy", "hard", "junk"]
  tables["ground_truth"] = {
    "queries": [
      {
        kind: [int(each) for each in values]
        for kind, values in zip(
          kinds, rows.fields(each, kinds, f"query {at} of {truth}"), strict=True
        )
      }
      for at, each in enumerate(answers)
    ]
  }
  return tables


class _Unpickler(pickle.Unpickler):
  """Reads arrays and plain containers; a file may not name anything else."""

  _ALLOWED = frozenset(
    {
      (f"numpy.{core}.multiarray", name)
      for core in ("core", "_core")
      for name in ("_reconstruct", "scalar")
    }
    | {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")}
  )

  def find_class(self, module: str, name: str) -> Any:
    if (module, name) not in self._ALLOWED:
      raise pickle.UnpicklingError(f"it names {module}.{name}")
    return super().find_class(module, name)


def _unpickled(path):
  with errors.reading(path), path.open("rb") as file:
    try:
      return _Unpickler(file, encoding="latin1").load()
    except Exception as error:  # A stranger's file fails in any way.
      raise errors.UserError(
        f"{path} cannot be read as ground truth: {errors.one_line(error)}"
      ) from None
