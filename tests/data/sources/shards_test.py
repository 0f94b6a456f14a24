"""ArrayRecord and tar shards: what they hold, and what is wrong with them."""

import errno
import io
import json
import os
import pickle
import tarfile

import numpy as np
import pytest
from shards import JPEG, SAMPLES, image, write_shard, write_tar

from seer_jax.data import sources
from seer_jax.data.sources import array_record
from seer_jax.data.storage import filesystem, tf_example
from seer_jax.runtime import errors


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_shards_of_examples_images_and_foreign_names(tmp_path):
  write_shard(
    tmp_path / "x-0.array_record",
    [tf_example.write(image(0, 3, "photos/ü.jpg")), JPEG],
  )
  write_shard(tmp_path / "x-1.array_record", [tf_example.write(image(2))])
  source = sources.ArrayRecords(str(tmp_path))
  assert len(source) == 3
  assert source[0]["image"] == JPEG + b"0" and source[1]["image"] == JPEG
  assert source[0]["id"] == "photos/ü.jpg"
  assert source.id_of(1) == "x-0.array_record__1" == source[1]["id"]
  assert source.id_of(2) == "x-1.array_record__0"
  assert source.label_of(0) == -1, "without names a number says nothing"
  names = tmp_path / "names.txt"
  names.write_text("a\nb\nc\nd\n")
  named = sources.ArrayRecords(str(tmp_path), str(names))
  assert named.label_names == ("a", "b", "c", "d")
  assert [named.label_of(i) for i in range(2)] == [3, -1]
  again = pickle.loads(pickle.dumps(source))
  assert [again[i] for i in range(3)] == [source[i] for i in range(3)]
  assert len(pickle.dumps(source)) < 2000


@pytest.mark.parametrize("share", [0, 0.3, 0.99])
def test_a_shard_cut_short_is_told_by_name(tmp_path, share):
  path = tmp_path / "x.array_record"
  write_shard(path, [JPEG * 100] * 50)
  data = path.read_bytes()
  path.write_bytes(data[: int(len(data) * share)])
  with pytest.raises(
    errors.UserError, match=r"x\.array_record is not a complete"
  ):
    sources.ArrayRecords(str(tmp_path))


def test_a_damaged_record_is_an_unusable_image(tmp_path):
  path = tmp_path / "x.array_record"
  rng = np.random.default_rng(0)
  write_shard(path, [JPEG + rng.bytes(100_000) for _ in range(4)])
  data = bytearray(path.read_bytes())
  data[150_000:150_100] = bytes(100)
  path.write_bytes(data)
  source = sources.ArrayRecords(str(tmp_path))
  bad = 0
  for i in range(4):
    try:
      source[i]
    except OSError:
      bad += 1
  assert bad == 1


def test_records_that_are_no_examples_are_unusable_images(tmp_path):
  write_shard(tmp_path / "x.array_record", [b"\x0a\xff\xff", b"nonsense"])
  source = sources.ArrayRecords(str(tmp_path))
  for i in range(2):
    with pytest.raises(OSError):
      source[i]


def test_shards_must_be_those_that_were_packed(tmp_path):
  write_shard(tmp_path / "x.array_record", [JPEG] * 3)
  (tmp_path / array_record.ABOUT).write_text(
    json.dumps(
      {
        "shards": {"x.array_record": {"images": 3, "bytes": 4}},
        "label_names": [],
      }
    )
  )
  with pytest.raises(errors.UserError, match=r"records 4; copy"):
    sources.ArrayRecords(str(tmp_path))


def test_tar_members_are_samples_as_webdataset_has_them(tmp_path):
  write_tar(tmp_path / "x-0.tar", SAMPLES)
  write_tar(tmp_path / "x-1.tar", [("z.jpg", b"four"), ("z.cls", b"0")])
  source = sources.Tars(str(tmp_path / "x-*.tar"))
  assert [source[i] for i in range(len(source))] == [
    {"image": JPEG, "label": 1, "id": "a/1"},
    {"image": b"two", "label": -1, "id": "a/2"},
    {"image": b"three", "label": 2, "id": "b/2"},
    {"image": b"four", "label": 0, "id": "z"},
  ]
  assert source.label_names == ("0", "2", "no number")
  again = pickle.loads(pickle.dumps(source))
  assert again[2] == source[2] and again.label_of(0) == 1


def labels_of(source):
  return [
    source.label_names[label] if label >= 0 else None
    for label in map(source.label_of, range(len(source)))
  ]


def test_labels_of_tars_are_numbers_or_names_in_cls_or_json(tmp_path, caplog):
  members = [("1.jpg", b"1"), ("1.json", b'{"label": "cat"}')]
  members += [
    ("2.jpg", b"2"),
    ("2.cls", b" dog \n"),
    ("2.json", b'{"label": 1}'),
  ]
  members += [("3.jpg", b"3"), ("3.json", b'{"caption": "a cat"}')]
  members += [("4.jpg", b"4"), ("4.json", b'{"class": "dog", "cls": 7}')]
  members += [("5.jpg", b"5"), ("5.json", b'{"label": ["a"]}')]
  members += [("6.jpg", b"6"), ("6.json", b'{"label": ')]
  members += [("7.jpg", b"7"), ("7.cls", b"x" * 300)]
  members += [("8.jpg", b"8"), ("8.json", b"[" * 100_000)]
  write_tar(tmp_path / "x.tar", members)
  source = sources.Tars(str(tmp_path))
  assert source.label_names == ("cat", "dog")
  assert labels_of(source) == ["cat", "dog", None, "dog", *[None] * 4]
  assert "2 broken JSON" in caplog.text
  assert "1 labels of more than 256 bytes" in caplog.text


def test_whole_numbers_in_json_are_numbers_of_classes(tmp_path):
  members = [("1.jpg", b"1"), ("1.json", b'{"label": 2}')]
  members += [("2.jpg", b"2"), ("2.json", b'{"label": true}')]
  members += [("3.jpg", b"3"), ("3.cls", b"0"), ("4.jpg", b"4")]
  members += [("4.json", b'{"label": -1}')]
  write_tar(tmp_path / "x.tar", members)
  source = sources.Tars(str(tmp_path))
  assert source.label_names == ("0", "1", "2")
  assert labels_of(source) == ["2", None, "0", None]


def test_braces_stand_for_shards_that_must_all_be_there(tmp_path):
  for number in range(12):
    for part in ("train", "val"):
      write_tar(
        tmp_path / f"{part}-{number:03d}.tar", [(f"{part}{number}.jpg", b"0")]
      )
  folder = str(tmp_path)
  found = ids(sources.Tars(f"{folder}/train-{{002..010}}.tar"))
  assert found == [f"train{number}" for number in range(2, 11)]
  found = ids(sources.Tars(f"{folder}/{{train,val}}-{{000..001}}.tar"))
  assert found == ["train0", "train1", "val0", "val1"]
  with pytest.raises(errors.UserError, match=r"no such file.*train-012\.tar"):
    sources.Tars(f"{folder}/train-{{000..012}}.tar")
  with pytest.raises(errors.UserError, match="more than 1,000,000 files"):
    sources.Tars(f"{folder}/{{0..9999999}}.tar")
  # A folder may be called so.
  (tmp_path / "{000..009}").mkdir()
  write_tar(tmp_path / "{000..009}" / "a.tar", [("z.jpg", b"0")])
  assert ids(sources.Tars(f"{folder}/{{000..009}}")) == ["z"]


def test_braces_in_a_url_need_no_listing(tmp_path):
  fsspec = pytest.importorskip("fsspec")
  memory = fsspec.filesystem("memory")
  for number in range(3):
    write_tar(tmp_path / "x.tar", [(f"{number}.jpg", b"0")])
    data = (tmp_path / "x.tar").read_bytes()
    memory.pipe_file(f"/braces/{number:02d}.tar", data)
  assert ids(sources.Tars("memory://braces/{00..02}.tar")) == ["0", "1", "2"]
  with pytest.raises(errors.UserError, match=r"no such file.*braces/03\.tar"):
    sources.Tars("memory://braces/{00..03}.tar")


def ids(source):
  return [source[i]["id"] for i in range(len(source))]


def test_dots_in_names_lose_no_image(tmp_path, caplog):
  write_tar(
    tmp_path / "x.tar",
    [
      ("shot 2021.01.png", b"0"),
      ("shot 2021.02.PNG", b"1"),
      ("shot 2021.02.cls", b"4"),
      ("ok.jpg", b"2"),
      ("ok.seg.png", b"a mask"),
      ("all.left.jpg", b"3"),
      ("all.cls", b"5"),
      (".hidden.jpg", b"none"),
      ("alone.txt", b"none"),
    ],
  )
  source = sources.Tars(str(tmp_path))
  found = [source[i] for i in range(len(source))]
  assert [(each["id"], each["label"]) for each in found] == [
    ("shot 2021.01", -1),
    ("shot 2021.02", 4),
    ("ok", -1),
    ("all.left", 5),
  ]
  assert [each["image"] for each in found] == [b"0", b"1", b"2", b"3"]
  (record,) = caplog.records
  for words in ("1 other images", "1 hidden", "1 without an image"):
    assert words in record.getMessage()


def test_members_that_are_there_twice_are_kept_twice(tmp_path, caplog):
  names = "a.jpg", "a.jpg", "b.jpg", "a.jpg"
  write_tar(
    tmp_path / "x.tar", [(name, b"%d" % i) for i, name in enumerate(names)]
  )
  source = sources.Tars(str(tmp_path))
  assert ids(source) == ["a", "a", "b", "a"]
  assert [source[i]["image"] for i in range(4)] == [b"0", b"1", b"2", b"3"]
  assert "1 twice" in caplog.text


@pytest.mark.parametrize("kept", [0, 512, 10240])
def test_tars_joined_by_cat_are_read_to_the_end(tmp_path, kept):
  for name in "ab":
    write_tar(
      tmp_path / f"{name}.part", [(f"{name}{i}.jpg", b"0") for i in "12"]
    )
  first, second = ((tmp_path / f"{name}.part").read_bytes() for name in "ab")
  (tmp_path / "x.tar").write_bytes(first + bytes(kept) + second)
  assert ids(sources.Tars(str(tmp_path))) == ["a1", "a2", "b1", "b2"]


def test_what_follows_a_tar_must_be_one(tmp_path):
  write_tar(tmp_path / "x.tar", SAMPLES)
  with (tmp_path / "x.tar").open("ab") as file:
    file.write(b"nonsense" * 100)
  with pytest.raises(errors.UserError, match="nor another member follows"):
    sources.Tars(str(tmp_path))


def test_a_copy_into_a_preallocated_file_that_was_cut(tmp_path):
  path = tmp_path / "x.tar"
  write_tar(path, [(f"{i}.jpg", JPEG * 500) for i in range(50)])
  data = path.read_bytes()
  path.write_bytes(data[: len(data) // 3] + bytes(len(data) - len(data) // 3))
  with pytest.raises(errors.UserError, match="bytes are zeros"):
    sources.Tars(str(tmp_path))


@pytest.mark.parametrize("label", [b"3000000000", b"1" + b"0" * 25, b"2000000"])
def test_labels_of_tars_are_numbers_of_classes(tmp_path, label):
  write_tar(tmp_path / "x.tar", [("a.jpg", b"0"), ("a.cls", label)])
  with pytest.raises(errors.UserError, match="number the classes"):
    sources.Tars(str(tmp_path))


def test_other_members_of_one_size_have_another_fingerprint(tmp_path):
  found = set()
  for names in (("1", "2"), ("3", "4")):
    write_tar(tmp_path / "x.tar", [(f"{name}.jpg", b"0") for name in names])
    found.add(sources.Tars(str(tmp_path)).fingerprint)
  assert len(found) == 2


@pytest.mark.parametrize("name", ["entries.npy", "paths", "about.json"])
def test_a_damaged_index_of_tars_is_made_again(tmp_path, name):
  write_tar(tmp_path / "x.tar", SAMPLES)
  once = ids(sources.Tars(str(tmp_path)))
  (path,) = (tmp_path / "cache").rglob(f"tars/*/{name}")
  data = path.read_bytes()
  for damage in (
    lambda: path.write_bytes(b""),
    lambda: path.write_bytes(data[:-5]),
    path.unlink,
  ):
    damage()
    assert ids(sources.Tars(str(tmp_path))) == once


def test_a_tar_is_indexed_once(tmp_path, monkeypatch):
  write_tar(tmp_path / "x.tar", SAMPLES)
  first = sources.Tars(str(tmp_path))
  monkeypatch.setattr(tarfile, "open", None)
  assert sources.Tars(str(tmp_path))[1] == first[1]


@pytest.mark.parametrize("name", ["/etc/passwd.jpg", "a/../../b.jpg"])
def test_a_tar_with_a_path_outside_is_refused(tmp_path, name):
  write_tar(tmp_path / "x.tar", [(name, JPEG)])
  with pytest.raises(errors.UserError, match="leads outside"):
    sources.Tars(str(tmp_path))


def test_links_and_other_kinds_of_members_are_passed_over(tmp_path):
  with tarfile.open(tmp_path / "x.tar", "w") as tar:
    link = tarfile.TarInfo("link.jpg")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    tar.addfile(link)
    member = tarfile.TarInfo("a.jpg")
    member.size = len(JPEG)
    tar.addfile(member, io.BytesIO(JPEG))
  assert ids(sources.Tars(str(tmp_path))) == ["a"]


@pytest.mark.parametrize("cut", [100, 600, 700, 5000, -512 * 10])
def test_a_tar_cut_short_is_told_by_name(tmp_path, cut):
  path = tmp_path / "x.tar"
  write_tar(path, [(f"{i}.jpg", JPEG * 100) for i in range(20)])
  data = path.read_bytes().rstrip(b"\0")
  path.write_bytes(data[:cut])
  with pytest.raises(
    errors.UserError, match=r"x\.tar is not a complete tar file"
  ):
    sources.Tars(str(tmp_path))


def test_a_compressed_tar_is_told_what_to_do(tmp_path):
  write_tar(tmp_path / "x.tar.gz", SAMPLES, "w:gz")
  with pytest.raises(errors.UserError, match="decompress it"):
    sources.Tars(str(tmp_path / "x.tar.gz"))


@pytest.mark.parametrize("kind", ["tar", "array_record"])
def test_no_shards(tmp_path, kind):
  for path in (tmp_path, tmp_path / "*", tmp_path / "nowhere", ""):
    with pytest.raises(errors.UserError, match="no files|no such file"):
      sources.open_source({"kind": kind, "path": str(path)})


def test_a_tar_without_images(tmp_path):
  write_tar(tmp_path / "x.tar", [("a.txt", b"")])
  with pytest.raises(errors.UserError, match="no images in 1 tar"):
    sources.Tars(str(tmp_path))


def test_no_more_shards_are_open_than_a_process_may_have(tmp_path):
  for shard in range(100):
    record = tf_example.write(image(shard))
    write_shard(tmp_path / f"x-{shard:03}.array_record", [record])
  source = sources.ArrayRecords(str(tmp_path))
  before = len(os.listdir("/proc/self/fd"))
  assert [source[i]["image"] for i in range(100)] == [
    image(shard)["image"] for shard in range(100)
  ]
  assert len(os.listdir("/proc/self/fd")) - before <= 2 * array_record._OPEN


def test_a_shard_that_cannot_be_read_at_all_is_away(tmp_path, monkeypatch):
  write_shard(tmp_path / "x.array_record", [tf_example.write(image(0))])
  source = sources.ArrayRecords(str(tmp_path))
  (tmp_path / "x.array_record").unlink()
  monkeypatch.setattr(array_record, "_reader", lambda _: 1 / 0)
  with pytest.raises(OSError) as caught:
    source[0]
  assert caught.value.errno == errno.ENOENT


@pytest.mark.parametrize(
  ("number", "kind"), [(errno.EIO, OSError), (errno.EMFILE, errors.Lost)]
)
def test_what_the_system_says_of_a_shard_is_not_said_of_its_images(
  tmp_path, monkeypatch, number, kind
):
  write_shard(tmp_path / "x.array_record", [tf_example.write(image(0))])
  source = sources.ArrayRecords(str(tmp_path))

  def refuse(*_):
    raise OSError(number, os.strerror(number))

  monkeypatch.setattr(array_record, "_reader", lambda _: 1 / 0)
  monkeypatch.setattr(os, "pread", refuse)
  with pytest.raises(kind) as caught:
    source[0]
  assert getattr(caught.value, "errno", number) == number


def test_a_half_finished_pack_is_not_taken_for_a_whole(tmp_path):
  write_shard(tmp_path / "images-0-of-2.array_record", [JPEG])
  write_shard(tmp_path / "images-1-of-2.array_record.part", [JPEG])
  assert len(sources.ArrayRecords(str(tmp_path))) == 1
  (tmp_path / "parts").mkdir()
  (tmp_path / "parts" / "plan.json").write_text("{}")
  with pytest.raises(errors.UserError, match="not completely packed"):
    sources.ArrayRecords(str(tmp_path))


@pytest.mark.parametrize(
  ("name", "shard"),
  [
    ("x.tar", True),
    ("x.tar-00003-of-00010", True),
    (".x.tar", False),
    ("photo.target.jpg", False),
    ("x.tar.part", False),
    ("data.targets", False),
  ],
)
def test_names_of_shards(name, shard):
  assert filesystem.is_shard(f"/a.tar/{name}", ".tar") == shard
