import ctypes
import mmap
import os
import pickle

import numpy as np
import pytest

from seer_jax.data import sources
from seer_jax.data.storage import line_index
from seer_jax.runtime import errors


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def images(tmp_path):
  for number in range(5):
    (tmp_path / f"{number}.jpg").write_bytes(b"image %d" % number)
  return tmp_path


def write(path, text):
  path.write_bytes(text.encode())
  return str(path)


def everything(source):
  return [source[i] for i in range(len(source))]


@pytest.mark.parametrize("end", ["", "\n", "\n\n\r\n"])
def test_a_text_lists_a_path_a_line(images, end):
  path = write(images / "list.txt", f"1.jpg\r\n{images}/0.jpg{end}")
  source = sources.Listing(path)
  assert everything(source) == [
    {"image": b"image 1", "label": -1, "id": "1.jpg"},
    {"image": b"image 0", "label": -1, "id": f"{images}/0.jpg"},
  ]
  assert source.label_names == ()


def test_labels_follow_a_tab(images):
  path = write(images / "list.txt", "1.jpg\tdog\n0.jpg\tcat\n2.jpg\n3.jpg\tdog")
  source = sources.Listing(path)
  assert source.label_names == ("cat", "dog")
  assert [each["label"] for each in everything(source)] == [1, 0, -1, 1]


def test_labels_that_are_numbers_stay_what_they_are(images):
  path = write(images / "list.txt", "1.jpg\t3\n0.jpg\t-1\n2.jpg\t10\n")
  source = sources.Listing(path)
  assert [source.label_of(i) for i in range(3)] == [3, -1, 10]
  assert len(source.label_names) == 11


@pytest.mark.parametrize("dtype", ["U", "S"])
@pytest.mark.parametrize("labels", [[1, 0], ["b", "a"]])
def test_arrays_of_strings_and_labels_as_vissl_takes_them(
  images, dtype, labels
):
  np.save(images / "list.npy", np.array(["1.jpg", "0.jpg"], dtype))
  np.save(images / "labels.npy", np.array(labels))
  source = sources.open_source(
    {
      "kind": "list",
      "path": str(images / "list.npy"),
      "labels": str(images / "labels.npy"),
    }
  )
  assert [each["id"] for each in everything(source)] == ["1.jpg", "0.jpg"]
  assert [source.label_of(0), source.label_of(1)] == [1, 0]


def test_parquet_columns(images):
  pyarrow = pytest.importorskip("pyarrow")
  from pyarrow import parquet

  table = {"n": [1, 2], "path": ["2.jpg", "4.jpg"], "label": ["x", None]}
  parquet.write_table(pyarrow.table(table), images / "list.parquet")
  source = sources.Listing(str(images / "list.parquet"))
  assert [each["id"] for each in everything(source)] == ["2.jpg", "4.jpg"]
  assert [source.label_of(0), source.label_of(1)] == [0, -1]


def test_the_first_line_may_be_without_a_label(images):
  path = write(images / "list.txt", "1.jpg\n0.jpg\tcat\n2.jpg\tdog")
  source = sources.Listing(path)
  assert source.label_names == ("cat", "dog")
  assert [source.label_of(i) for i in range(3)] == [-1, 0, 1]


@pytest.mark.parametrize("label", ["10000000", "3000000000", "1" + 25 * "0"])
def test_labels_that_number_no_classes_are_told(images, label):
  path = write(images / "list.txt", f"1.jpg\t3\n0.jpg\t{label}\n")
  with pytest.raises(errors.UserError, match="only 2 are used"):
    sources.Listing(path)


def of_parquet(file, **columns):
  pyarrow = pytest.importorskip("pyarrow")
  from pyarrow import parquet

  parquet.write_table(pyarrow.table(columns), file)
  return sources.Listing(str(file))


def test_any_name_is_one_entry(images):
  names = ["a\nb.jpg", "c\td.jpg", "e%0Af%.jpg"]
  for name in names:
    (images / name).write_bytes(name.encode())
  found = of_parquet(
    images / "list.parquet", path=names, label=["\n", "\t", "0"]
  )
  assert [each["id"] for each in everything(found)] == names
  assert [each["image"].decode() for each in everything(found)] == names
  assert [found.label_names[each["label"]] for each in everything(found)] == (
    ["\n", "\t", "0"]
  )
  np.save(images / "list.npy", np.array(names))
  found = sources.Listing(str(images / "list.npy"))
  assert [each["image"].decode() for each in everything(found)] == names


@pytest.mark.parametrize("kind", ["large_string", "string_view", "dictionary"])
def test_all_strings_of_parquet_are_strings(images, kind):
  pyarrow = pytest.importorskip("pyarrow")
  column = pyarrow.array(["2.jpg", "4.jpg"])
  if kind == "dictionary":
    column = column.dictionary_encode()
  else:
    column = column.cast(getattr(pyarrow, kind)())
  source = of_parquet(images / "list.parquet", path=column, label=column)
  assert [each["id"] for each in everything(source)] == ["2.jpg", "4.jpg"]
  assert source.label_names == ("2.jpg", "4.jpg")


def test_whole_floats_of_parquet_are_numbers(images):
  columns = {"path": ["1.jpg"] * 4, "label": [2.0, 0.0, None, float("nan")]}
  source = of_parquet(images / "list.parquet", **columns)
  assert source.label_names == ("0", "1", "2")
  assert [source.label_of(i) for i in range(4)] == [2, 0, -1, -1]
  columns["label"][0] = 0.5
  with pytest.raises(errors.UserError, match=r"has the label 0\.5"):
    of_parquet(images / "list.parquet", **columns)


def test_a_parquet_without_paths_or_rows(images):
  with pytest.raises(errors.UserError, match=r"list\.parquet has no rows"):
    of_parquet(images / "list.parquet", path=[])
  with pytest.raises(errors.UserError, match=r"only path \(binary\)"):
    of_parquet(images / "list.parquet", path=[b"1.jpg"])


def test_it_travels_to_workers_without_its_entries(images):
  path = write(images / "list.txt", "0.jpg\ta\n" * 5000)
  source = sources.Listing(path)
  packed = pickle.dumps(source)
  assert len(packed) < 2000
  assert pickle.loads(packed)[4999] == source[4999]


@pytest.mark.parametrize("count", [1, 63, 64, 65, 1000])
def test_any_line_is_found(tmp_path, count, monkeypatch):
  monkeypatch.setattr(line_index, "_CHUNK", 100)
  words = [f"{'x' * (i % 7)}{i}" for i in range(count)]
  found = line_index.Lines(write(tmp_path / "text", "\n".join(words)))
  assert [line.decode() for line in map(found.__getitem__, range(count))] == (
    words
  )


def test_another_list_has_another_fingerprint(images):
  one = sources.Listing(write(images / "list.txt", "0.jpg\n1.jpg\n"))
  other = sources.Listing(write(images / "list.txt", "0.jpg\n2.jpg\n"))
  assert one.fingerprint != other.fingerprint
  assert other[1]["id"] == "2.jpg"


def test_lists_and_images_by_url(images):
  fsspec = pytest.importorskip("fsspec")
  memory = fsspec.filesystem("memory")
  memory.pipe_file("/bucket/a/1.jpg", b"one")
  memory.pipe_file("/bucket/.hidden.jpg", b"none")
  memory.pipe_file("/bucket/list.txt", b"a/1.jpg\nmemory://bucket/a/1.jpg\n")
  source = sources.Listing("memory://bucket/list.txt")
  assert [each["image"] for each in everything(source)] == [b"one", b"one"]
  folder = sources.Folder("memory://bucket")
  assert everything(folder) == [{"image": b"one", "label": 0, "id": "a/1.jpg"}]


def test_what_a_url_needs_is_told():
  with pytest.raises(errors.UserError, match="no such kind of URL"):
    sources.Folder("nonsense://bucket")


@pytest.mark.parametrize(
  ("name", "content", "told"),
  [
    ("list.txt", b"", "is empty"),
    ("list.txt", b"\n\n", "is empty"),
    ("list.txt", b"PK\x03\x04\0\0", "is not text"),
    ("list.npy", b"\x93NUMPY nonsense", "cannot be read as an array"),
    ("list.parquet", b"nonsense", "is not a Parquet file"),
  ],
)
def test_lists_that_are_none(tmp_path, name, content, told):
  (tmp_path / name).write_bytes(content)
  with pytest.raises(errors.UserError, match=told):
    sources.Listing(str(tmp_path / name))


def test_a_missing_list(tmp_path):
  with pytest.raises(errors.UserError, match="cannot read the list"):
    sources.Listing(str(tmp_path / "nowhere.txt"))


def test_a_folder_is_no_list(tmp_path):
  with pytest.raises(errors.UserError, match="is a folder, not a list"):
    sources.Listing(str(tmp_path))


@pytest.mark.parametrize(
  "name", ["offsets.npy", "count.npy", "numbers", "names.json", "list.txt"]
)
def test_a_damaged_index_is_made_again(images, name, caplog):
  columns = {"path": ["1.jpg", "0.jpg"], "label": [1, 0]}
  once = everything(of_parquet(images / "list.parquet", **columns))
  (path,) = (images / "cache").rglob(name)
  data = path.read_bytes()
  for damage in (
    lambda: path.write_bytes(b""),
    lambda: path.write_bytes(data[:-1]),
    path.unlink,
  ):
    damage()
    caplog.clear()
    source = sources.Listing(str(images / "list.parquet"))
    assert everything(source) == once
    assert "is damaged, and is made again" in caplog.text


def test_pickled_objects_are_never_loaded(tmp_path):
  np.save(tmp_path / "list.npy", np.array(["a", None], object))
  with pytest.raises(errors.UserError, match="not objects"):
    sources.Listing(str(tmp_path / "list.npy"))


def test_arrays_of_another_shape_or_length(tmp_path):
  np.save(tmp_path / "list.npy", np.array(["a", "b"]))
  np.save(tmp_path / "two.npy", np.array([["a", "b"]]))
  np.save(tmp_path / "labels.npy", np.array([1, 2, 3]))
  np.save(tmp_path / "floats.npy", np.array([1.0, 2.0]))
  with pytest.raises(errors.UserError, match="has the shape"):
    sources.Listing(str(tmp_path / "two.npy"))
  with pytest.raises(errors.UserError, match="3 labels, but the list has 2"):
    sources.Listing(str(tmp_path / "list.npy"), str(tmp_path / "labels.npy"))
  with pytest.raises(errors.UserError, match="labels are float64"):
    sources.Listing(str(tmp_path / "list.npy"), str(tmp_path / "floats.npy"))
  with pytest.raises(errors.UserError, match="not strings"):
    sources.Listing(str(tmp_path / "labels.npy"))


def test_an_entry_without_a_file_is_an_unusable_image(images):
  source = sources.Listing(write(images / "list.txt", "0.jpg\nno.jpg\n1.jpg"))
  assert len(source) == 3
  with pytest.raises(OSError):
    source[1]


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("chunk", [7, 2**20])
def test_what_people_put_into_lists_is_skipped_and_counted(
  images, mark, end, chunk, monkeypatch, caplog
):
  caplog.set_level("INFO")
  monkeypatch.setattr(line_index, "_CHUNK", chunk)
  lines = ["Path\tlabel", "", "# those of June", "1.jpg\tdog"]
  lines += ["", "#0.jpg\tcat", "0.jpg\tcat", "", "", "./#2.jpg\tdog", "", ""]
  text = mark + end.join(lines)
  (images / "#2.jpg").write_bytes(b"image 2")
  source = sources.Listing(write(images / "list.txt", text))
  found = everything(source)
  assert [each["image"] for each in found] == [
    b"image 1",
    b"image 0",
    b"image 2",
  ]
  assert [source.label_names[each["label"]] for each in found] == (
    ["dog", "cat", "dog"]
  )
  assert "skipped 4 blank lines, 2 comments, 1 header" in caplog.text
  assert everything(pickle.loads(pickle.dumps(source))) == found


def test_skipped_lines_do_not_move_the_others(tmp_path, monkeypatch):
  monkeypatch.setattr(line_index, "_CHUNK", 100)
  rng = np.random.default_rng(0)
  kinds = rng.choice(["", "#", "entry"], 1000, p=[0.3, 0.3, 0.4])
  lines = [f"{kind}{i if kind else ''}" for i, kind in enumerate(kinds)]
  wanted = [line for line in lines if line.startswith("entry")]
  found = line_index.Lines(write(tmp_path / "text", "\n".join(lines)), True)
  assert [found[i].decode() for i in range(len(found))] == wanted
  assert [line.decode().strip() for line in found.in_order()] == wanted
  # Ids that were packed may begin with anything.
  packed = line_index.Lines(
    write(tmp_path / "ids", "\n".join(["#1", "", "#2"]))
  )
  assert [packed[i] for i in range(3)] == [b"#1", b"", b"#2"]
  with pytest.raises(errors.UserError, match="is empty"):
    line_index.Lines(write(tmp_path / "none", "# a\n\n#b\n"), True)


def resident(path):
  """Bytes of a file that are in the system's page cache."""
  libc = ctypes.CDLL(None)
  with open(path, "rb") as file:
    text = mmap.mmap(file.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_READ)
  pages = -(-len(text) // mmap.PAGESIZE)
  marks = (ctypes.c_ubyte * pages)()
  array = np.frombuffer(text, np.uint8)
  if libc.mincore(
    ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(len(text)), marks
  ):
    pytest.skip("no mincore here")
  return sum(mark & 1 for mark in marks) * mmap.PAGESIZE


def test_random_lines_of_a_cold_list_read_their_own_pages(tmp_path):
  path = tmp_path / "list.txt"
  line = b"a/path/of/some/length/%08d.jpg\n"
  path.write_bytes(b"".join(line % i for i in range(400_000)))
  found = line_index.Lines(str(path), forgiving=True)
  with path.open("rb") as file:
    os.fsync(file.fileno())
    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
  if resident(path) > path.stat().st_size / 10:
    pytest.skip("this file system keeps its files in memory")
  before = resident(path)
  for i in np.random.default_rng(0).integers(0, len(found), 50).tolist():
    assert found[i] == (line % i).strip()
  # Up to two pages a line; 50 windows of read-ahead would be the whole file.
  assert resident(path) - before < 150 * mmap.PAGESIZE
