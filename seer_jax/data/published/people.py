"""Metadata of Casual Conversations, OpenImages MIAP, UTKFace, Dollar Street.

Each becomes a table with the attributes that SEER's fairness indicators use
(VISSL, `projects/fairness_indicators`). Metadata and images match by name.
"""

import logging
import math
import pathlib
from collections.abc import Sequence

from seer_jax.data import crops
from seer_jax.data.published import rows
from seer_jax.runtime import errors

_log = logging.getLogger(__name__)

_UNKNOWN = "unknown"
_CC_AGES = ((18, "<18"), (30, "18-30"), (45, "30-45"), (70, "45-70"))
_UTK_AGES = ((13, "<13"), (30, "13-30"), (45, "30-45"))
_RACES = ("white", "black", "asian", "indian", "others")
# Of rounded ln(income) / 3; incomes are dollars per month.
_INCOMES = {1: "low", 2: "medium", 3: "high"}
# Around a face.
_ENLARGED = 1.5
# Boxes that are longer are extended towards a square.
_LONG = 1.2


def casual_conversations(
  metadata: pathlib.Path, folder: pathlib.Path
) -> rows.Rows:
  """Rows of path, label (gender), gender, age, skin_tone and subject.

  Images are matched by the last three parts of their path without what follows
  the last underscore, which tells frames of a video from each other. A face box
  in the metadata (`bbox`), if there is one, is enlarged 1.5 times. Raises
  UserError if nothing matches, or only some people have a box.
  """
  people = {}
  items = rows.read_json(metadata)
  has_box = any(isinstance(each, dict) and "bbox" in each for each in items)
  names = ["img_path", "gender", "age", "skin-type", "subject_id"]
  for at, item in enumerate(items):
    where = f"{metadata}, item {at},"
    path, gender, age, skin, subject = rows.fields(item, names, where)
    row = {
      "label": _plain(gender),
      "gender": _plain(gender),
      "age": _range(age, _CC_AGES, "70+"),
      "skin_tone": _skin_tone(skin),
      "subject": str(subject),
    }
    if has_box:
      row |= _box(item.get("bbox"), where, _ENLARGED)
    people[_frame(str(path))] = row
  return _matched(folder, people, lambda path: _frame(path.as_posix()))


def miap(metadata: pathlib.Path, folder: pathlib.Path) -> rows.Rows:
  """Rows of path, gender, age and box, one per person.

  From VISSL's JSON, or from the CSV of Schumann et al. 2021 (`.csv`), whose
  boxes are shares of the image and whose images are `ImageID.jpg`. Boxes of
  which one side is 1.2 times the other or longer are extended to squares; what
  is outside the image is not used. Raises UserError for a person without a box,
  or a missing image.
  """
  found = []
  names = ["path", "bbox", "GenderPresentation", "AgePresentation"]
  is_csv = metadata.suffix == ".csv"
  items = _miap_csv(metadata, folder) if is_csv else rows.read_json(metadata)
  for at, item in enumerate(items):
    where = f"{metadata}, item {at},"
    path, box, gender, age = rows.fields(item, names, where)
    gender = {"feminine": "female", "masculine": "male"}.get(
      (_plain(gender).split() or [""])[-1], _UNKNOWN
    )
    # The metadata has paths of the machine where it was made.
    path = _below(folder, pathlib.PurePosixPath(str(path)))
    found.append(
      {"path": path, "gender": gender, "age": _plain(age)}
      | _box(box, where, squared=True)
    )
  rows.check_files([row["path"] for row in found], metadata)
  return found


def _miap_csv(metadata, folder):
  """Items as in VISSL's JSON; sizes are read from the images' headers."""
  names = ["ImageID", "XMin", "YMin", "XMax", "YMax"]
  names += ["GenderPresentation", "AgePresentation"]
  sizes: dict[str, tuple[int, int]] = {}
  for at, item in enumerate(rows.read_csv(metadata)):
    image, *shares, gender, age = rows.fields(
      item, names, f"{metadata}, row {at},"
    )
    path = folder / f"{image}.jpg"
    if image not in sizes:
      rows.check_files([path], metadata)
      sizes[image] = crops.upright_size(path.read_bytes()) or (0, 0)
    height, width = sizes[image]
    sides = width, height, width, height
    yield {
      "path": path.name,
      "bbox": [float(x) * side for x, side in zip(shares, sides, strict=True)],
      "GenderPresentation": gender,
      "AgePresentation": age,
    }


def utkface(metadata: pathlib.Path | None, folder: pathlib.Path) -> rows.Rows:
  """Rows of path, label (gender), gender, age and race.

  From VISSL's JSON, {file: {gender, age, race}}, or without it from the names
  of the files, AGE_GENDER_RACE_DATE. Files with other names are left out, and
  counted in the log.
  """
  found, others = [], 0
  known = rows.read_json(metadata) if metadata else {}
  for path in rows.images_in(folder):
    item = known.get(path.name) if metadata else _of_name(path.name)
    if item is None:
      others += 1
      continue
    gender, age, race = rows.fields(item, ["gender", "age", "race"], path.name)
    found.append(
      {
        "path": path.absolute(),
        "label": _plain(gender),
        "gender": _plain(gender),
        "age": _range(age, _UTK_AGES, "45+"),
        "race": _plain(race),
      }
    )
  if others:
    _log.warning("%d files of %s have no metadata", others, folder)
  return found


def dollar_street(
  metadata: pathlib.Path,
  folder: pathlib.Path,
  concepts: pathlib.Path | None = None,
) -> rows.Rows:
  """Rows of path, label, concept, household, country, region and income.

  Images are `LABEL/ID.*`. `concepts` is a JSON of {concept: [labels of the
  classifier]}; several labels are joined by `|`, and images of concepts without
  labels are left out. Without it labels are the concepts.
  """
  labels_of = rows.read_json(concepts) if concepts else None
  images = {}
  names = ["_id", "label", "country", "region", "income"]
  for at, item in enumerate(rows.read_json(metadata)):
    where = f"{metadata}, item {at},"
    id_, concept, country, region, income = rows.fields(item, names, where)
    right = [concept] if labels_of is None else labels_of.get(concept, [])
    if right:
      images[f"{concept}/{id_}"] = {
        "label": "|".join(right),
        "concept": concept,
        "household": str(id_),
        "country": country,
        "region": region,
        "income": income,
        "income_level": _income_level(income, where),
      }
  return _matched(
    folder, images, lambda path: f"{path.parent.name}/{path.stem}"
  )


def _matched(folder, known, key_of) -> rows.Rows:
  """Rows of the images whose key has metadata."""
  paths = rows.images_in(folder)
  keys = [key_of(path) for path in paths]
  found = [
    {"path": path.absolute()} | known[key]
    for path, key in zip(paths, keys, strict=True)
    if key in known
  ]
  if not found:
    raise errors.UserError(
      f"none of the {len(paths)} images in {folder} is in the metadata, which"
      f" has names such as {next(iter(known), 'none')!r}; the images' are such"
      f" as {keys[0]!r}"
    )
  left = len(paths) - len(found)
  unused = len(known) - len(set(keys) & set(known))
  if left or unused:
    _log.warning(
      "%d images have no metadata, and %d items no image", left, unused
    )
  return found


def _frame(path: str) -> str:
  """The end of a path, without what follows the last underscore."""
  end = "/".join(path.split("/")[-3:])
  return end.rpartition("_")[0] or end


def _below(folder, path):
  """A path of the metadata in a folder: by its longest end that exists."""
  for first in range(len(path.parts)):
    found = folder.joinpath(*path.parts[first:])
    if (first or not path.is_absolute()) and found.is_file():
      return found.absolute()
  return (folder / path.name).absolute()


def _of_name(name):
  parts = name.split("_")
  if len(parts) < 4 or not all(part.isdigit() for part in parts[:3]):
    return None
  age, gender, race = map(int, parts[:3])
  if gender > 1 or race >= len(_RACES):
    return None
  return {
    "age": age,
    "gender": ("male", "female")[gender],
    "race": _RACES[race],
  }


def _plain(value):
  text = str(value).strip().lower()
  return _UNKNOWN if text in ("", "n/a", "none", "nan", "-1") else text


def _range(age, ranges: Sequence[tuple[int, str]], last: str) -> str:
  try:
    number = int(float(age))
  except (TypeError, ValueError):
    return _UNKNOWN
  if number < 0:
    return _UNKNOWN
  return next((name for end, name in ranges if number < end), last)


def _skin_tone(skin) -> str:
  """Fitzpatrick's types: 1 to 3 are lighter, 4 to 6 darker."""
  try:
    number = int(float(skin))
  except (TypeError, ValueError):
    return _UNKNOWN
  return {1: "lighter", 2: "darker"}.get((number + 2) // 3, _UNKNOWN)


def _income_level(income, where) -> str:
  try:
    level = round(math.log(float(income)) / 3)
  except (TypeError, ValueError):
    raise errors.UserError(
      f"{where} has the income {errors.shown(income)}; it must be positive"
    ) from None
  return _INCOMES.get(level, _UNKNOWN)


def _box(box, where, factor=1.0, squared=False) -> dict[str, float]:
  """Columns of a box, enlarged about its center or extended to a square."""
  try:
    x0, y0, x1, y1 = map(float, box)
  except (TypeError, ValueError):
    raise errors.UserError(
      f"{where} has no box of four numbers ({errors.shown(box)}); remove it, or"
      " complete it"
    ) from None
  width, height = x1 - x0, y1 - y0
  if width <= 0 or height <= 0:
    raise errors.UserError(
      f"{where} has the empty box {[x0, y0, x1, y1]}; remove it, or correct it"
    )
  if squared and max(width, height) >= _LONG * min(width, height):
    width = height = max(width, height)
  width, height = factor * width, factor * height
  x, y = (x0 + x1) / 2, (y0 + y1) / 2
  corners = x - width / 2, y - height / 2, x + width / 2, y + height / 2
  return dict(zip(rows.BOX, corners, strict=True))
