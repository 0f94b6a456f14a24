"""Datasets in TFDS's own format, written here without TensorFlow."""

import json
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from photos import tiny
from tensorflow_datasets.proto import tf_example_pb2
from tfds_sets import NAMES, jpeg, prepare

from seer_jax.data import sources
from seer_jax.runtime import errors
from seer_jax.training import run


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  return prepare(tmp_path_factory.mktemp("tfds"))


def pets(data_dir, split="train", name="pets"):
  return sources.Tfds(name, str(data_dir), split)


def test_examples_come_in_the_order_of_the_shards(data_dir):
  source = pets(data_dir)
  assert len(source) == 32
  assert source.label_names == NAMES
  for i in (0, 19, 20, 31):
    assert source[i]["image"] == jpeg(i)
    assert source[i]["label"] == source.label_of(i) == i % 2
  assert source[19]["id"] == "pets-train.array_record-00000-of-00002__19"
  assert source[20]["id"] == "pets-train.array_record-00001-of-00002__0"
  assert len({source.id_of(i) for i in range(32)}) == 32
  assert repr(source) == "Tfds('pets/1.2.0', 'train', 32 of its 'image')"


def test_it_reads_what_tfds_reads(data_dir):
  ours = pets(data_dir, "train[25%:90%]")
  theirs = tfds.data_source(
    "pets",
    split="train[25%:90%]",
    data_dir=data_dir,
    decoders={"image": tfds.decode.SkipDecoding()},
  )
  assert len(ours) == len(theirs) == 21
  for i, example in enumerate(theirs):
    assert ours[i]["image"] == example["image"]
    assert ours[i]["label"] == example["label"]


def test_slices_keep_their_ids(data_dir):
  everything, slice_ = pets(data_dir), pets(data_dir, "train[18:22]")
  assert [slice_.id_of(i) for i in range(4)] == [
    everything.id_of(i) for i in range(18, 22)
  ]
  both = pets(data_dir, "train[:2]+test[:1]")
  assert [both[i]["image"] for i in range(3)] == [jpeg(0), jpeg(1), jpeg(0)]


def test_a_version_may_be_named(data_dir):
  assert len(pets(data_dir, name="pets:1.2.0")) == 32


def test_pickled_it_is_small_and_the_same(data_dir):
  source = pets(data_dir)
  before = source[21]
  state = pickle.dumps(source)
  assert len(state) < 1000
  copy = pickle.loads(state)
  assert copy.label_of(20) == 0
  assert copy[21] == before
  assert (repr(copy), copy.fingerprint) == (repr(source), source.fingerprint)


def test_another_process_opens_it_without_tensorflow(data_dir, tmp_path):
  (tmp_path / "source").write_bytes(pickle.dumps(pets(data_dir)))
  program = (
    "import pickle, sys;"
    "source = pickle.load(open('source', 'rb'));"
    "assert source.id_of(31).endswith('__11');"
    "assert 'tensorflow_datasets' not in sys.modules;"
    "assert source[31]['label'] == 1;"
    "assert not {'tensorflow', 'jax', 'torch'} & set(sys.modules)"
  )
  subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)


def test_fingerprints_tell_splits_apart_and_not_places(data_dir, tmp_path):
  shutil.copytree(data_dir, tmp_path, dirs_exist_ok=True)
  splits = ("train", "train[:31]", "train[1:]", "test")
  prints = [pets(data_dir, split).fingerprint for split in splits]
  assert len(set(prints)) == 4
  assert prints == [pets(tmp_path, split).fingerprint for split in splits]


@pytest.mark.parametrize("i", [-1, 32])
def test_index_outside_is_an_index_error(data_dir, i):
  for access in (pets(data_dir).__getitem__, pets(data_dir).label_of):
    with pytest.raises(IndexError, match=r"outside 0\.\.31"):
      access(i)


def test_image_and_label_go_by_name_then_by_kind(tmp_path):
  features = {
    "annotation": tfds.features.LabeledImage(labels=3, shape=(None, None, 1)),
    "depth": tfds.features.Image(shape=(None, None, 1), dtype=np.float32),
    "photo": tfds.features.Image(),
    "species": tfds.features.ClassLabel(num_classes=3),
  }

  def record(number):
    example = tf_example_pb2.Example()
    feature = example.features.feature
    feature["annotation"].bytes_list.value.append(b"a map")
    feature["photo"].bytes_list.value.append(b"a photo")
    # Test sets without labels have -1, or nothing.
    feature["species"].int64_list.value.extend([(2,), (-1,), ()][number])
    return example.SerializeToString()

  splits = {"train": (3,)}
  prepare(tmp_path, "odd", features=features, splits=splits, record=record)
  source = pets(tmp_path, name="odd")
  assert [source.label_of(i) for i in range(3)] == [2, -1, -1]
  assert source[0]["image"] == b"a photo"
  assert source.label_names == ("0", "1", "2")


def test_without_a_label_nothing_is_read_for_it(tmp_path):
  prepare(tmp_path, features={"image": tfds.features.Image()})
  source = pets(tmp_path)
  assert source.label_names == ()
  for shard in tmp_path.glob("*/*/*train*"):
    shard.unlink()
  assert source.label_of(31) == -1
  with pytest.raises(OSError, match="No such file"):
    source[31]


def test_a_damaged_record_is_an_os_error_with_a_reason(tmp_path):
  shard = next(prepare(tmp_path).glob("*/*/*train*-00000-*"))
  data = bytearray(shard.read_bytes())
  data[4000:4100] = bytes(100)
  shard.write_bytes(data)
  source, damaged = pets(tmp_path), {}
  for i in range(len(source)):
    try:
      assert source[i]["image"] == jpeg(i)
    except OSError as error:
      damaged[source.id_of(i)] = error
  assert 1 <= len(damaged) <= 2
  for name, error in damaged.items():
    assert error.filename == name
    assert "Corrupted" in error.strerror


@pytest.mark.parametrize(
  ("name", "split", "words"),
  [
    ("", "train", "no dataset given: name is ''"),
    ("no such name", "train", "'no such name': Parsing builder name"),
    ("imagenet2013", "train", "no dataset 'imagenet2013'.*mean imagenet20"),
    (
      "imagenet2012:5.1.0",
      "train",
      r"not prepared in .*tfds build imagenet2012:5.1.0"
      r" --file_format=array_record --data_dir=/",
    ),
    ("pets:2.0.0", "train", r"pets:2.0.0 is not prepared.*but pets:1.2.0 is"),
    ("pets", "val", r"no such split of pets/1.2.0: 'val'.*train \(32\), test"),
    ("pets", "", r"no such split of pets/1.2.0: ''"),
    ("pets", "train[:900]", r"'train\[:900\]' .*incompatible with 32"),
    ("pets", "train[3:3]", r"'train\[3:3\]' of pets/1.2.0 is empty"),
  ],
)
def test_mistakes_are_told_in_one_line(data_dir, name, split, words):
  with pytest.raises(errors.UserError, match=words) as caught:
    pets(data_dir, split, name)
  assert "\n" not in str(caught.value)


def test_a_format_without_random_access_is_told_how_to_convert(tmp_path):
  prepare(tmp_path, file_format="tfrecord")
  folder = tmp_path / "pets" / "1.2.0"
  with pytest.raises(errors.UserError) as caught:
    pets(tmp_path)
  assert f"--dataset_version_dir={folder} --out" in str(caught.value)
  assert "--file_format=array_record" in str(caught.value)


def test_both_formats_side_by_side_are_fine(tmp_path):
  prepare(tmp_path)
  path = tmp_path / "pets" / "1.2.0" / "dataset_info.json"
  info = json.loads(path.read_text()) | {
    "fileFormat": "tfrecord",
    "alternativeFileFormats": ["array_record"],
  }
  path.write_text(json.dumps(info))
  source = pickle.loads(pickle.dumps(pets(tmp_path)))
  assert source[25]["image"] == jpeg(25)


def test_missing_files_and_no_images_are_told_at_once(tmp_path):
  prepare(tmp_path)
  next(tmp_path.glob("*/*/*train*-00001-*")).unlink()
  with pytest.raises(errors.UserError, match="1 of 2 files of pets are miss"):
    pets(tmp_path)
  prepare(tmp_path, "words", features={"text": tfds.features.Text()})
  with pytest.raises(errors.UserError, match="no image feature, only text"):
    pets(tmp_path, name="words")


def test_a_run_trains_on_it_and_checks_by_knn(data_dir, tmp_path, capsys):
  config = tiny(data_dir)
  for where, split in (
    (config.data.train, "train"),
    (config.data.test, "test"),
  ):
    where.kind, where.path = "tfds", str(data_dir)
    where.name, where.split = "pets", split
  config.data.workers = 1
  run.run(config, tmp_path / "run")
  assert "knn/k=20 top-1" in capsys.readouterr().out
  assert not (tmp_path / "run" / "bad_images.txt").exists()


def test_open_source_passes_the_name_on(data_dir):
  source = sources.open_source(
    {"kind": "tfds", "path": str(data_dir), "split": "test", "name": "pets"}
  )
  assert len(source) == 16
