"""Datasets to test with, in TFDS's own format, written without TensorFlow."""

import json
import pathlib

import cv2
import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from tensorflow_datasets.proto import tf_example_pb2

NAMES = ("dog", "cat")
SPLITS = {"train": (20, 12), "test": (16,)}
FEATURES = {
  "file_name": tfds.features.Text(),
  "image": tfds.features.Image(),
  "label": tfds.features.ClassLabel(names=NAMES),
}


def jpeg(number: int) -> bytes:
  noise = np.random.default_rng(number).integers(0, 256, (4, 4, 3), np.uint8)
  image = cv2.resize(noise, (24, 24), interpolation=cv2.INTER_CUBIC)
  return cv2.imencode(".jpg", image)[1].tobytes()


def record(number: int) -> bytes:
  example = tf_example_pb2.Example()
  feature = example.features.feature
  feature["file_name"].bytes_list.value.append(b"%d.jpg" % number)
  feature["image"].bytes_list.value.append(jpeg(number))
  feature["label"].int64_list.value.append(number % 2)
  return example.SerializeToString()


def prepare(
  data_dir: pathlib.Path,
  name: str = "pets",
  version: str = "1.2.0",
  splits=SPLITS,
  features=FEATURES,
  file_format: str = "array_record",
  record=record,
) -> pathlib.Path:
  """A prepared dataset: shards of numbered records, and its two JSON files."""
  folder = data_dir / name / version
  folder.mkdir(parents=True)
  tfds.features.FeaturesDict(features).save_config(folder)
  for split, shards in splits.items():
    number = 0
    for i, count in enumerate(shards):
      shard = f"{name}-{split}.{file_format}-{i:05}-of-{len(shards):05}"
      writer = array_record_module.ArrayRecordWriter(
        str(folder / shard), "group_size:1"
      )
      for _ in range(count):
        writer.write(record(number))
        number += 1
      writer.close()
  info = {
    "fileFormat": file_format,
    "name": name,
    "splits": [
      {
        "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        "name": split,
        "shardLengths": [str(count) for count in shards],
      }
      for split, shards in splits.items()
    ],
    "version": version,
  }
  (folder / "dataset_info.json").write_text(json.dumps(info))
  return data_dir
