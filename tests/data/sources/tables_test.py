"""Lists in tables: CSV, and which columns are read."""

import pytest
from file_list_test import everything, of_parquet, write

from seer_jax.data import sources
from seer_jax.runtime import errors


@pytest.fixture
def images(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  for number in range(2):
    (tmp_path / f"{number}.jpg").write_bytes(b"image %d" % number)
  return tmp_path


def csv(path, *lines, mark=""):
  return write(path, mark + "\n".join(lines) + "\n")


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_csv_with_a_header(images, mark):
  path = csv(
    images / "list.csv",
    "id,Image,CLASS",
    '7,"1.jpg",dog',
    "",
    "8,0.jpg,",
    mark=mark,
  )
  source = sources.Listing(path)
  assert [each["image"] for each in everything(source)] == (
    [b"image 1", b"image 0"]
  )
  assert source.label_names == ("dog",)
  assert [source.label_of(0), source.label_of(1)] == [0, -1]


def test_a_csv_without_a_header(images):
  source = sources.Listing(csv(images / "list.csv", "1.jpg,3", "0.jpg,1"))
  assert [each["image"] for each in everything(source)] == (
    [b"image 1", b"image 0"]
  )
  assert [source.label_of(0), source.label_of(1)] == [3, 1]


def test_a_csv_that_is_damaged_is_told(images):
  with pytest.raises(
    errors.UserError, match="(damaged|not a CSV file): .*columns"
  ):
    sources.Listing(csv(images / "list.csv", "path,label", "1.jpg,1", "a,b,c"))
  with pytest.raises(errors.UserError, match="has no rows"):
    sources.Listing(write(images / "list.csv", ""))


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_the_column_of_paths_may_be_named(images, kind):
  columns = {"url": ["1.jpg", "2.jpg"], "local": ["3.jpg", "4.jpg"]}
  path = images / f"list.{kind}"
  if kind == "csv":
    csv(path, "url,local", "1.jpg,3.jpg", "2.jpg,4.jpg")
  else:
    of_parquet(path, **columns)
  options = {"kind": "list", "path": str(path)}
  for column, wanted in (("", "1.jpg"), ("local", "3.jpg"), ("url", "1.jpg")):
    source = sources.open_source(options | {"column": column})
    assert source.id_of(0) == wanted
  with pytest.raises(errors.UserError, match="no column 'file' of str"):
    sources.open_source(options | {"column": "file"})


def test_only_tables_have_columns(images):
  path = write(images / "list.txt", "1.jpg\n")
  with pytest.raises(errors.UserError, match="give a Parquet or CSV"):
    sources.open_source({"kind": "list", "path": path, "column": "a"})
  with pytest.raises(errors.UserError, match="only lists have columns"):
    sources.open_source({"path": str(images), "column": "a"})


def test_columns_are_found_in_any_case(images):
  source = of_parquet(images / "list.parquet", PATH=["1.jpg"], CLASS=["dog"])
  assert source.label_names == ("dog",)
  assert source.id_of(0) == "1.jpg"
