"""Metadata of data sets about people, as published."""

import json

import cv2
import numpy as np
import pytest

from seer_jax.data.published import people
from seer_jax.runtime import errors


def planted(folder, *names):
  for name in names:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(folder / name), np.zeros((40, 40, 3), np.uint8))
  return folder


def metadata(folder, items):
  path = folder / "metadata.json"
  path.write_text(json.dumps(items))
  return path


def person(path, **changes):
  return {
    "img_path": path,
    "gender": "Female",
    "age": "29",
    "skin-type": "4",
    "subject_id": "7",
    **changes,
  }


def test_casual_conversations_match_by_name_not_position(tmp_path):
  images = planted(tmp_path / "cc", "p/1/0001_02_crop.jpg", "p/1/0001_01_x.jpg")
  items = [
    person("/x/p/1/0001_01_f.jpg"),
    person(
      "/x/p/1/0001_02_f.jpg", gender="Male", age="N/A", **{"skin-type": 3}
    ),
    person("/x/p/1/0009_01_f.jpg"),
  ]
  first, second = people.casual_conversations(metadata(tmp_path, items), images)
  assert first["path"].name == "0001_01_x.jpg"
  assert (first["gender"], first["age"], first["skin_tone"]) == (
    *("female", "18-30"),
    "darker",
  )
  assert (second["label"], second["age"], second["skin_tone"]) == (
    *("male", "unknown"),
    "lighter",
  )
  ages = [
    people._range(age, people._CC_AGES, "70+") for age in (17, 30, 69, 70)
  ]
  assert ages == ["<18", "30-45", "45-70", "70+"]


def test_a_face_box_is_enlarged_and_a_missing_one_is_named(tmp_path):
  images = planted(tmp_path / "cc", "p/1/a_1.jpg")
  items = [person("p/1/a_0.jpg", bbox=[10, 10, 20, 30])]
  (row,) = people.casual_conversations(metadata(tmp_path, items), images)
  # A width of 10 becomes 15, a height of 20 becomes 30, about (15, 20).
  assert [row[key] for key in ("x0", "y0", "x1", "y1")] == [7.5, 5, 22.5, 35]
  items.append(person("p/1/b_0.jpg"))
  with pytest.raises(errors.UserError, match="item 1, has no box"):
    people.casual_conversations(metadata(tmp_path, items), images)


def test_miap_has_a_row_for_each_person(tmp_path):
  images = planted(tmp_path / "oi", "a.jpg")
  item = {
    "path": "/elsewhere/oi/a.jpg",
    "bbox": ["0", "0", "10", "20"],
    "GenderPresentation": "Predominantly Feminine",
    "AgePresentation": "Young",
  }
  other = item | {
    "bbox": ["0", "0", "10", "11"],
    "GenderPresentation": "Unknown",
  }
  rows = people.miap(metadata(tmp_path, [item, other]), images)
  assert [row["gender"] for row in rows] == ["female", "unknown"]
  boxes = [[row[key] for key in ("x0", "y0", "x1", "y1")] for row in rows]
  # 10 x 20 becomes a square; 10 x 11 is nearly one.
  assert boxes == [[-5, 0, 15, 20], [0, 0, 10, 11]]
  for changes, words in (
    ({"bbox": None}, "item 0, has no box"),
    ({"bbox": [5, 5, 5, 9]}, "the empty box"),
    ({"path": "b.jpg"}, "1 are missing"),
  ):
    with pytest.raises(errors.UserError, match=words):
      people.miap(metadata(tmp_path, [item | changes]), images)


def test_miap_is_read_from_its_csv_too(tmp_path):
  """A quarter of 40 pixels is 10, a half 20."""
  images = planted(tmp_path / "oi", "00af.jpg")
  path = tmp_path / "boxes.csv"
  path.write_text(
    "ImageID,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,"
    "GenderPresentation,AgePresentation\n"
    "00af,/m/01g317,1,0.25,0.5,0,0.25,0,Predominantly Masculine,Older\n"
  )
  (row,) = people.miap(path, images)
  assert [row[key] for key in ("x0", "y0", "x1", "y1")] == [10, 0, 20, 10]
  assert (row["gender"], row["age"]) == ("male", "older")
  path.write_text(path.read_text().replace("00af", "00b0"))
  with pytest.raises(errors.UserError, match="1 are missing"):
    people.miap(path, images)


def test_utkface_names_have_the_attributes(tmp_path, caplog):
  images = planted(
    tmp_path / "utk", "25_1_2_x.jpg", "12_0_0_y.jpg", "61_1_z.jpg"
  )
  young, older = people.utkface(None, images)
  assert (young["label"], young["age"], young["race"]) == (
    "male",
    "<13",
    "white",
  )
  assert (older["gender"], older["age"], older["race"]) == (
    *("female", "13-30"),
    "asian",
  )
  assert "1 files of" in caplog.text


def test_dollar_street_has_households_incomes_and_concepts(tmp_path):
  images = planted(
    tmp_path / "ds", "stove/h1.jpg", "soap/h1.jpg", "soap/h2.jpg"
  )
  item = {"_id": "h1", "country": "Burundi", "region": "Africa", "income": 29}
  items = [item | {"label": "stove"}, item | {"label": "soap"}]
  items.append(items[1] | {"_id": "h2", "income": "10098"})
  concepts = tmp_path / "concepts.json"
  concepts.write_text(json.dumps({"soap": ["soap dispenser", "lotion"]}))
  rows = people.dollar_street(metadata(tmp_path, items), images, concepts)
  assert [row["household"] for row in rows] == ["h1", "h2"]
  assert {row["label"] for row in rows} == {"soap dispenser|lotion"}
  # ln 29 / 3 is 1.1, ln 10098 / 3 is 3.1.
  assert [row["income_level"] for row in rows] == ["low", "high"]
  with pytest.raises(errors.UserError, match="income"):
    people.dollar_street(
      metadata(tmp_path, [items[0] | {"income": "?"}]), images
    )


def test_metadata_of_something_else_is_one_line(tmp_path):
  images = planted(tmp_path / "x", "a.jpg")
  for items, words in (
    ([{"gender": "f"}], "has no 'img_path', only gender"),
    (["text"], "is text, not an object"),
    ([person("other/path/b_1.jpg")], "none of the 1 images"),
  ):
    with pytest.raises(errors.UserError, match=words):
      people.casual_conversations(metadata(tmp_path, items), images)
  (tmp_path / "metadata.json").write_text("[")
  with pytest.raises(errors.UserError, match="is not JSON"):
    people.miap(tmp_path / "metadata.json", images)
