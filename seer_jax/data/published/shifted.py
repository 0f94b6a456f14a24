"""ImageNet-A, -R, -Sketch, -V2, ReaL and ObjectNet, as published.

Labels are WordNet ids; several right ones are separated by `|`.
"""

import os
import pathlib
import re

from seer_jax.data import sources
from seer_jax.data.published import imagenet, rows
from seer_jax.runtime import errors, files

_MAPPINGS = (
  "folder_to_objectnet_label.json",
  "objectnet_to_imagenet_1k.json",
  "pytorch_to_imagenet_2012_id.json",
  "imagenet_to_label_2012_v2",
)


def source(name: str, folder: str, clean: sources.Source) -> sources.Source:
  """The images of a shifted set with their labels.

  Raises UserError if the folder has another layout.

  Args:
    name: of `evals.robustness.shifts.SHIFTS`.
    folder: as published; of ReaL `real.json`, or the folder it is in.
    clean: ImageNet's validation images, which ReaL labels again.
  """
  found = table(name, files.user_path(folder), clean)
  known = files.fingerprint([tuple(row.values()) for row in found])
  path = files.cache_folder("published") / f"{name}-{known[:24]}.csv"
  if not path.exists():
    rows.write(path, found)
  return sources.Listing(str(path))


def table(
  name: str, folder: pathlib.Path, clean: sources.Source | None = None
) -> rows.Rows:
  """Rows of path and label. Raises UserError as `source` does."""
  match name:
    case "imagenet_v2":
      return [
        {"path": path, "label": imagenet.classes()[_number(path)]}
        for path in _in_folders(folder, r"\d{1,3}", "0 to 999")
      ]
    case "imagenet_real":
      return _real(folder, clean)
    case "objectnet":
      return _objectnet(folder)
  paths = _in_folders(folder, r"n\d{8}", "WordNet ids, such as n01440764")
  return [{"path": path, "label": path.parent.name} for path in paths]


def _in_folders(folder, pattern, what):
  """Absolute paths of the images in folders with names of a pattern."""
  found = [
    path.absolute()
    for path in rows.images_in(folder)
    if re.fullmatch(pattern, path.parent.name)
  ]
  if not found:
    raise errors.UserError(
      f"{folder} has no folders named {what}; give the folder as published"
    )
  return found


def _number(path):
  """The class of a folder of ImageNet-V2: a number, not its rank as text."""
  return int(path.parent.name)


def _real(path, clean):
  """ReaL has a list of labels per image; images without one are left out.

  The list is in the order of the image's numbers, so they are matched by the
  number in their name.
  """
  path = path / "real.json" if path.is_dir() else path
  labels = rows.read_json(path)
  if clean is None:
    raise errors.UserError("imagenet_real needs ImageNet's validation images")
  found = []
  for i in range(len(clean)):
    name = clean.id_of(i)
    number = re.search(r"ILSVRC2012_val_(\d{8})", name)
    if not number or not 1 <= int(number[1]) <= len(labels):
      raise errors.UserError(
        f"ReaL labels images by number, but {errors.shown(name)} is not from"
        f" ILSVRC2012_val_00000001 to {len(labels):08d}; give ImageNet's"
        " validation images as --test"
      )
    right = labels[int(number[1]) - 1]
    if right:
      ids = [imagenet.classes()[each] for each in right]
      where = os.path.abspath(sources.base.path_of(clean, i))
      found.append({"path": where, "label": "|".join(ids)})
  return found


def _objectnet(folder):
  """Only the 113 classes that ImageNet has, most of them as several of its."""
  for name in _MAPPINGS:
    if not (folder / "mappings" / name).is_file():
      raise errors.UserError(
        f"{folder} has no mappings/{name}; give the folder objectnet-1.0"
      )
  folders, to_imagenet, to_number = (
    rows.read_json(folder / "mappings" / name) for name in _MAPPINGS[:3]
  )
  names = (folder / "mappings" / _MAPPINGS[3]).read_text().splitlines()
  class_of = {int(each): int(at) for at, each in to_number.items()}
  ids_of = {}
  for label, of_imagenet in to_imagenet.items():
    numbers = [names.index(each) + 1 for each in of_imagenet.split("; ")]
    ids = [imagenet.classes()[class_of[number]] for number in numbers]
    ids_of[label] = "|".join(ids)
  paths = [path.absolute() for path in rows.images_in(folder / "images")]
  return [
    {"path": path, "label": ids_of[folders[path.parent.name]]}
    for path in paths
    if folders.get(path.parent.name) in ids_of
  ]
