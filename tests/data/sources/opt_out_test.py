"""What lists exclude, however they spell it, is never handed out."""

import hashlib
import io
import logging
import os
import pickle
import tarfile

import pytest

from seer_jax.config import keys
from seer_jax.data import sources
from seer_jax.data.sources import opt_out
from seer_jax.evals import suite
from seer_jax.runtime import errors


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  monkeypatch.chdir(tmp_path)


@pytest.fixture
def photos(tmp_path):
  for number in range(10):
    path = tmp_path / "photos" / "ab"[number % 2] / f"{number}.jpg"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"image %d" % number)
  return tmp_path / "photos"


def excluding(lines, **options):
  """A source, but for what a list says."""
  data = lines if isinstance(lines, bytes) else "\n".join(lines).encode()
  with open("optout.txt", "wb") as file:
    file.write(data)
  return sources.open_source(options | {"exclude": "optout.txt"})


def refused(source):
  found = set()
  for i in range(len(source)):
    try:
      assert source[i]["id"] == source.id_of(i)
    except errors.Excluded:
      found.add(source.id_of(i))
  return found


def folder(photos, **options):
  return {"kind": "folder", "path": str(photos)} | options


HASH = hashlib.sha256(b"image 5").hexdigest()


def test_ids_paths_and_hashes(photos):
  lines = "a/0.jpg", f"{photos}/b/1.jpg", HASH
  source = excluding(lines, **folder(photos))
  source = pickle.loads(pickle.dumps(source))
  assert len(source) == 10, "numbers stay as they are"
  assert refused(source) == {"a/0.jpg", "b/1.jpg", "b/5.jpg"}
  assert source.fingerprint != sources.Folder(photos).fingerprint


@pytest.mark.parametrize(
  "options",
  [
    {"take": 9},
    {"skip": 0.1},
    {"take": 8, "balanced": True},
    {"only": "only.txt"},
  ],
)
def test_a_part_cannot_get_around_it(photos, tmp_path, options):
  (tmp_path / "only.txt").write_text("0.jpg\n1.jpg\n5.jpg")
  lines = [f"{photos}/{name}" for name in ("a/0.jpg", "b/1.jpg")]
  source = excluding([*lines, HASH], **folder(photos, **options))
  ids = {source.id_of(i) for i in range(len(source))}
  assert refused(source) == ids & {"a/0.jpg", "b/1.jpg", "b/5.jpg"} != set()


@pytest.mark.parametrize(
  "style",
  [
    "{}",
    "{}  photos/b/5.jpg",
    "{} *photos/b/5.jpg",
    "sha256:{}",
    "SHA256 (b/5.jpg) = {}",
    "\\{}  photos/5\\n.jpg",
    "\ufeff{}",
  ],
)
@pytest.mark.parametrize("case", [str.lower, str.upper])
def test_hashes_as_programs_write_them(photos, style, case):
  data = style.format(case(HASH)).encode()
  assert refused(excluding(data, **folder(photos))) == {"b/5.jpg"}


@pytest.mark.parametrize("coding", ["utf-8-sig", "utf-16"])
def test_lists_with_a_byte_order_mark(photos, coding):
  data = "a/0.jpg\r\nb/1.jpg\r\n".encode(coding)
  assert refused(excluding(data, **folder(photos))) == {"a/0.jpg", "b/1.jpg"}


@pytest.mark.parametrize(
  "line",
  [
    "./a/0.jpg",
    "a//0.jpg",
    "b/../a/0.jpg",
    "photos/a/0.jpg",
    "{tmp}/photos/./a/0.jpg",
    "{tmp}/link/a/0.jpg",
  ],
)
@pytest.mark.parametrize("root", ["photos", "link", "photos/../link"])
def test_paths_however_spelt(photos, tmp_path, line, root):
  (tmp_path / "link").symlink_to(photos)
  source = excluding([line.format(tmp=tmp_path)], **folder(root))
  assert refused(source) == {"a/0.jpg"}


@pytest.mark.parametrize(
  ("entry", "line"),
  [
    ("../photos/a/0.jpg", "{photos}/a/0.jpg"),
    ("../photos/a/0.jpg", "../photos/a/0.jpg"),
    ("../photos/a/0.jpg", "photos/a/0.jpg"),
    ("{photos}/a/0.jpg", "a/0.jpg"),
    ("{photos}/a/0.jpg", "photos/a/0.jpg"),
    ("./0.jpg", "0.jpg"),
    ("file://{photos}/a/0.jpg", "a/0.jpg"),
    ("file://{photos}/a/0.jpg", "file://{photos}/a/0.jpg"),
  ],
)
def test_entries_of_lists(photos, tmp_path, entry, line):
  (tmp_path / "lists").mkdir()
  (tmp_path / "lists" / "0.jpg").write_bytes(b"here")
  entry, line = (each.format(photos=photos) for each in (entry, line))
  path = tmp_path / "lists" / "list.txt"
  path.write_text(f"{entry}\n{photos}/b/1.jpg\n")
  source = excluding([line], kind="list", path=str(path))
  assert refused(source) == {entry}


@pytest.mark.parametrize("line", ["x/1", "x/1.JPG", "./x/1.JPG", "./x/1"])
@pytest.mark.parametrize("before", ["", "./"])
def test_members_of_tars(tmp_path, line, before):
  with tarfile.open(tmp_path / "x.tar", "w") as tar:
    for number in range(3):
      member = tarfile.TarInfo(f"{before}x/{number}.JPG")
      member.size = 1
      tar.addfile(member, io.BytesIO(b"%d" % number))
  assert refused(excluding([line], kind="tar", path="x.tar")) == {"x/1"}


def test_only_takes_the_paths_of_members_too(tmp_path):
  with tarfile.open(tmp_path / "x.tar", "w") as tar:
    for number in range(3):
      tar.addfile(tarfile.TarInfo(f"x/{number}.jpg"))
  (tmp_path / "only.txt").write_text("x/2.jpg\n0.jpg")
  source = sources.open_source(
    {"kind": "tar", "path": "x.tar", "only": "only.txt"}
  )
  assert [source.id_of(i) for i in range(2)] == ["x/0", "x/2"]


@pytest.mark.parametrize("line", ["a/0.jpg", "0/a/0.jpg"])
@pytest.mark.parametrize("place", ["mixture", "part"])
def test_it_holds_for_all_of_a_mixture(photos, tmp_path, line, place):
  (tmp_path / "optout.txt").write_text(line)
  exclude = {"exclude": "optout.txt"}
  parts = [folder(photos), {"kind": "digits", "weight": 3}]
  options = {"kind": "mix"}
  if place == "mixture":
    options |= exclude
  else:
    parts[1] |= exclude
  source = sources.open_source(options | {"parts": parts})
  assert refused(source) == {"0/a/0.jpg"}
  assert source.weights == (1, 3)


def test_what_training_excludes_no_evaluation_sees_nor_the_reverse(
  photos, tmp_path
):
  (tmp_path / "one.txt").write_text("a/0.jpg")
  (tmp_path / "other.txt").write_text("b/1.jpg")
  config = keys.base()
  config.data.train.path = config.data.test.path = str(photos)
  config.data.test.kind = "folder"
  config.data.train.exclude = "one.txt"
  config.data.test.exclude = "other.txt"
  for which in ("train", "test"):
    source = suite.open_source(config, which)
    assert refused(source) == {"a/0.jpg", "b/1.jpg"}


class Packed:
  """Images whose records name them, and that were other files once."""

  label_names, fingerprint = (), "packed"

  def __len__(self):
    return 4

  def __getitem__(self, i):
    return {"image": b"packed %d" % i, "label": -1, "id": f"record {i}"}

  def id_of(self, i):
    return f"shard__{i}"

  def label_of(self, i):
    return -1

  def digest(self, i):
    return hashlib.sha256(b"file %d" % i).digest() if i else None


def test_the_hash_before_packing_and_the_name_in_a_record(tmp_path):
  lines = (
    "shard__0",
    "record 1",
    hashlib.sha256(b"file 2").hexdigest(),
    hashlib.sha256(b"packed 3").hexdigest(),
  )
  for line, i in zip(lines, range(4), strict=True):
    (tmp_path / "optout.txt").write_text(line)
    listed = opt_out.Exclusions(["optout.txt"])
    source = opt_out.Excluding(Packed(), listed)
    for other in range(4):
      if other == i:
        with pytest.raises(errors.Excluded):
          source[other]
      else:
        assert source[other]["id"] == f"record {other}"
    assert source.digest(2) == hashlib.sha256(b"file 2").digest()


def test_lines_that_exclude_nothing_are_told(photos, tmp_path, caplog):
  caplog.set_level(logging.WARNING)
  lines = f"{photos}/a/0.jpg", "/elsewhere/1.jpg", "/elsewhere/2.jpg", "x.jpg"
  excluding(lines, **folder(photos))
  (record,) = caplog.records
  assert "3 of the 4 names" in record.getMessage()
  assert "'/elsewhere/1.jpg'" in record.getMessage()
  caplog.clear()
  excluding(["a", "a/0.jpg", "0" * 64], **folder(photos))
  (record,) = caplog.records
  assert "1 of the 2 names" in record.getMessage()
  assert "for example 'a'" in record.getMessage()
  caplog.clear()
  (tmp_path / "link").symlink_to(photos)
  excluding([f"{tmp_path}/link/a/0.jpg"], **folder(photos))
  assert not caplog.records


def test_of_many_images_paths_outside_are_told(photos, caplog, monkeypatch):
  monkeypatch.setattr(opt_out, "_LOOKED_THROUGH", 1)
  caplog.set_level(logging.WARNING)
  lines = f"{photos}/a/0.jpg", "/elsewhere/1.jpg", "/elsewhere/2.jpg", "x.jpg"
  excluding(lines, **folder(photos))
  (record,) = caplog.records
  assert "2 of the 4 names" in record.getMessage()
  assert "outside of" in record.getMessage()


def test_a_look_up_does_not_copy_the_table():
  """NumPy converts an array of foreign byte order at every search."""
  assert opt_out._table([hashlib.sha256(b"a").digest()]).dtype.isnative


def test_names_need_not_be_utf8(photos):
  name = b"a/caf\xe9.jpg"
  with open(os.path.join(os.fsencode(photos), name), "wb") as file:
    file.write(b"image")
  found = refused(excluding(name, **folder(photos)))
  assert found == {os.fsdecode(name)}
