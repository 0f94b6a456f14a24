import os
import pathlib
import pickle

import cv2
import numpy as np
import pytest

from seer_jax.data import sources
from seer_jax.runtime import errors


def plant(root: pathlib.Path, *paths: str) -> pathlib.Path:
  """Writes a file at each path; its content is the path itself."""
  for path in paths:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(path)
  return root


def opened(**options) -> sources.Source:
  return sources.open_source(options)


def ids(source: sources.Source) -> list[str]:
  return [source[i]["id"] for i in range(len(source))]


@pytest.mark.parametrize("reverse", [False, True])
def test_order_is_sorted_whatever_the_order_of_creation(tmp_path, reverse):
  paths = sorted(["a/x.jpg", "a/b/c/y.png", "a-b/z.gif", "ä.bmp", "B.JPEG"])
  source = sources.Folder(plant(tmp_path, *sorted(paths, reverse=reverse)))
  assert ids(source) == paths


def test_example_holds_the_bytes_of_its_own_file(tmp_path):
  source = sources.Folder(plant(tmp_path, "a.jpg", "deep/down/b.jpg", "c.jpg"))
  for example in (source[i] for i in range(3)):
    assert example["image"].decode() == example["id"]


def test_labels_are_first_level_folders_and_the_root_has_none(tmp_path):
  plant(tmp_path, "dog/1.jpg", "cat/old/grey/2.jpg", "cat-like/3.jpg", "4.jpg")
  source = sources.Folder(plant(tmp_path, "notes/readme.txt"))
  assert source.label_names == ("cat", "cat-like", "dog")
  labels = {source[i]["id"]: source[i]["label"] for i in range(len(source))}
  assert labels == {
    "4.jpg": -1,
    "cat-like/3.jpg": 1,
    "cat/old/grey/2.jpg": 0,
    "dog/1.jpg": 2,
  }


def test_flat_folder_has_no_labels(tmp_path):
  source = sources.Folder(plant(tmp_path, "a.jpg", "b.jpg"))
  assert source.label_names == ()
  assert {source[i]["label"] for i in range(2)} == {-1}


def test_every_extension_counts_in_either_case(tmp_path):
  names = [f"a.{e}" for e in sources.EXTENSIONS]
  names += [f"b.{e.upper()}" for e in sources.EXTENSIONS]
  source = sources.Folder(plant(tmp_path, *names, "notes.txt", "jpg", "c.jpg~"))
  assert ids(source) == sorted(names)


def test_hidden_files_and_folders_are_skipped(tmp_path):
  plant(tmp_path, ".thumb/a.jpg", "x/.b.jpg", "._c.jpg", "d.jpg")
  plant(tmp_path, "@eaDir/d.jpg/small.jpg", "x/@eaDir/e.jpg")
  source = sources.Folder(tmp_path)
  assert ids(source) == ["d.jpg"] and not source.label_names


def test_what_is_passed_over_is_told(tmp_path):
  plant(tmp_path, "a.jpg", "b.HEIC", "c.heic", "d.mov")
  told = repr(sources.Folder(tmp_path))
  assert "1 images; 3 other files (2 heic, 1 mov)" in told


def test_links_are_followed_and_cycles_end(tmp_path):
  plant(tmp_path, "real/deep/a.jpg", "elsewhere/b.jpg")
  (tmp_path / "real/deep/back").symlink_to(tmp_path / "real")
  (tmp_path / "real/there").symlink_to(tmp_path / "elsewhere")
  (tmp_path / "real/self").symlink_to(tmp_path / "real/self")
  assert ids(sources.Folder(tmp_path / "real")) == ["deep/a.jpg", "there/b.jpg"]


def test_home_is_expanded(tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(plant(tmp_path, "photos/a.jpg")))
  assert len(sources.Folder("~/photos")) == 1


def test_moving_elsewhere_does_not_lose_the_images(tmp_path, monkeypatch):
  monkeypatch.chdir(plant(tmp_path, "photos/a.jpg", "other/b.jpg"))
  source = sources.Folder("photos")
  monkeypatch.chdir(tmp_path / "other")
  assert source[0]["image"] == b"photos/a.jpg"


def test_file_names_need_not_be_utf8(tmp_path):
  name = b"caf\xe9.jpg"
  try:
    pathlib.Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).touch()
  except OSError:
    pytest.skip("this file system wants UTF-8 names")
  source = sources.Folder(tmp_path)
  assert source[0]["image"] == b""
  assert os.fsencode(source[0]["id"]) == name


def test_lost_file_is_an_os_error_and_an_empty_one_is_empty(tmp_path):
  source = sources.Folder(plant(tmp_path, "a.jpg", "b.jpg"))
  (tmp_path / "a.jpg").unlink()
  (tmp_path / "b.jpg").write_bytes(b"")
  with pytest.raises(OSError, match="a.jpg"):
    source[0]
  assert source[1]["image"] == b""


def test_dangling_link_is_an_os_error_when_read(tmp_path):
  (plant(tmp_path, "a.jpg") / "b.jpg").symlink_to(tmp_path / "nowhere.jpg")
  with pytest.raises(OSError, match="b.jpg"):
    sources.Folder(tmp_path)[1]


@pytest.mark.parametrize("i", [-1, 2, np.int64(7)])
def test_index_outside_is_an_index_error(tmp_path, i):
  with pytest.raises(IndexError, match=r"outside 0\.\.1"):
    sources.Folder(plant(tmp_path, "a.jpg", "b.jpg"))[i]


def test_missing_folder_is_a_user_error(tmp_path):
  with pytest.raises(errors.UserError, match="no such folder: .*/nowhere"):
    sources.Folder(tmp_path / "nowhere")


def test_file_instead_of_a_folder_is_a_user_error(tmp_path):
  with pytest.raises(errors.UserError, match="a.jpg is a file, not a folder"):
    sources.Folder(plant(tmp_path, "a.jpg") / "a.jpg")


def test_empty_folder_is_a_user_error(tmp_path):
  with pytest.raises(errors.UserError, match="found no files at all"):
    sources.Folder(tmp_path)


def test_folder_without_images_says_what_it_holds(tmp_path):
  plant(tmp_path, "a.txt", "b/c.TXT", "d.heic", "README")
  with pytest.raises(errors.UserError) as caught:
    sources.Folder(tmp_path)
  message = str(caught.value)
  assert "4 other files (2 txt, " in message
  assert "1 heic" in message and "1 without extension" in message
  assert "recognized extensions are jpg jpeg" in message
  assert "\n" not in message


def test_unreadable_folder_is_a_user_error(tmp_path, monkeypatch):
  plant(tmp_path, "open/a.jpg", "locked/b.jpg")
  scandir = os.scandir

  def refuse(path):  # Permissions do not stop root, who runs many a CI.
    if b"locked" in path:
      raise PermissionError(13, "Permission denied")
    return scandir(path)

  monkeypatch.setattr(os, "scandir", refuse)
  with pytest.raises(errors.UserError, match="locked/: Permission denied"):
    sources.Folder(tmp_path)


def test_every_source_survives_pickling(tmp_path):
  folder = sources.Folder(plant(tmp_path, "x/a.jpg", "y/b.jpg"))
  for source in (folder, sources.Digits("test"), sources.Synthetic(3)):
    copy = pickle.loads(pickle.dumps(source))
    assert len(copy) == len(source)
    assert copy[1] == source[1]
    assert copy.label_names == source.label_names
    assert repr(copy) == repr(source)


def test_folder_pickles_to_little_more_than_its_paths(tmp_path):
  plant(tmp_path, *(f"{i % 7}/{i:04d}.jpg" for i in range(1000)))
  size = len(pickle.dumps(sources.Folder(tmp_path)))
  assert size < 1000 * (len("0/0000.jpg") + 8 + 4) + 1000


def test_digits_are_all_there_once():
  train, test, everything = map(sources.Digits, ("train", "test", "all"))
  assert (len(train), len(test), len(everything)) == (1297, 500, 1797)
  assert ids(train) + ids(test) == ids(everything)
  assert len(set(ids(everything))) == 1797
  assert train.label_names == tuple("0123456789")
  assert {train[i]["label"] for i in range(len(train))} == set(range(10))


def test_digits_are_those_of_scikit_learn():
  datasets = pytest.importorskip("sklearn.datasets")
  digits = datasets.load_digits()
  example = sources.Digits("train")[5]
  number = int(example["id"].removeprefix("digits/"))
  pixels = cv2.imdecode(
    np.frombuffer(example["image"], np.uint8), cv2.IMREAD_UNCHANGED
  )
  assert pixels.shape == (8, 8) and pixels.dtype == np.uint8
  np.testing.assert_array_equal(
    pixels, np.rint(digits.images[number] / 16 * 255)
  )
  assert example["label"] == digits.target[number]


def test_unknown_split_of_digits_is_a_user_error():
  with pytest.raises(errors.UserError, match="'val'; use train, test"):
    sources.Digits("val")


def test_synthetic_images_depend_on_the_index_alone():
  one, other = sources.Synthetic(20, 64, 3), sources.Synthetic(20, 64, 3)
  assert one[7] == other[7]
  assert one[7]["image"] != one[8]["image"]
  assert one[7]["label"] == 1 and one[7]["id"] == "synthetic/000007"
  pixels = cv2.imdecode(np.frombuffer(one[7]["image"], np.uint8), 1)
  assert pixels.shape == (64, 64, 3)


def test_open_source_opens_each_kind(tmp_path):
  plant(tmp_path, "train/cat/a.jpg", "test/dog/b.jpg")
  folder = opened(kind="folder", path=str(tmp_path), split="train")
  assert ids(folder) == ["cat/a.jpg"]
  assert len(opened(kind="folder", path=str(tmp_path))) == 2
  assert len(opened(kind="digits", split="test")) == 500
  assert len(opened(kind="digits")) == 1797
  assert len(opened(kind="synthetic")) == 4096


def test_unknown_kind_names_the_choices():
  with pytest.raises(errors.UserError, match="'zip'; use folder, list"):
    opened(kind="zip")


def test_an_unknown_key_names_the_known():
  with pytest.raises(errors.UserError, match="'paht'; use kind path"):
    opened(kind="folder", paht="photos")


def test_folder_without_a_path_is_a_user_error():
  with pytest.raises(errors.UserError, match="no folder given"):
    opened(kind="folder", split="train")
