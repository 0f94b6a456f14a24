"""Images from a prepared TensorFlow Datasets dataset, without TensorFlow.

TFDS stores examples as records in shards. ArrayRecord shards allow random
access; TFRecord shards, TFDS's default, do not. Only the encoded image and the
label of a record are read.
"""

import difflib
import errno
import os
import shlex
from typing import Any

import numpy as np

from seer_jax.data.storage import filesystem
from seer_jax.data.storage.example import check_index, locate
from seer_jax.runtime import errors, files

_FORMAT = "array_record"
# The tfds command imports all of these for any task.
_ELSEWHERE = (
  "(in an environment of its own: pip install tensorflow tensorflow-datasets"
  " apache-beam mlcroissant)"
)
_UNLABELLED = -1
_UNREAD = -2


class Tfds:
  """One split of a dataset that TFDS has prepared as ArrayRecord files.

  Examples are in the order of the records in the shards, and have TFDS's ids:
  the name of the shard and the number in it. The image is the feature named
  `image`, or else the first one of that kind; likewise the label. Labels keep
  TFDS's numbers; below 0 is unlabelled.

  Labels are only inside the records, so `label_of` reads a whole record unless
  its image was read before: 40 microseconds for 110 KB in memory, but 140 GB of
  disk for all of ImageNet. Labels that were read are kept.

  Reading a damaged record or a missing shard raises OSError.

  TFDS's own deserialization, with SkipDecoding, takes 85 microseconds for 117
  KB where this takes 64, and refuses records that lack a feature (TFDS 4.9.10).
  Raises UserError if no such dataset or split, not prepared, prepared in a
  format without random access, shards are missing, or there are no images.
  """

  def __init__(self, name: str, path: str, split: str):
    """Opens a dataset.

    Args:
      name: as in TFDS: `imagenet2012`, `imagenet2012:5.1.0`, or
        `name/config:version`.
      path: TFDS's data_dir; '' for its default.
      split: as in TFDS: `train`, `train[:1%]`, `train+test`.
    """
    try:
      self._describe(name, path, split)
    except errors.UserError:
      raise
    except Exception as error:  # Many libraries read these files.
      raise errors.UserError(
        f"cannot read {name} in {path or 'the default data_dir'}"
        f" ({type(error).__name__}: {errors.one_line(error)}); if its files are"
        " damaged, prepare it again"
      ) from error

  def _describe(self, name, path, split):
    builder = _find(name, path)
    self._directory, self._split = os.fspath(builder.data_dir), split
    self._records = _open(builder, split)
    self._image, self._label = _features(builder)
    self.label_names = ()
    if self._label:
      self.label_names = tuple(builder.info.features[self._label].names)

    shards = builder.info.splits[split].file_instructions
    _refuse_missing([shard.filename for shard in shards], name)
    self._shards = [
      (os.path.basename(shard.filename), shard.skip) for shard in shards
    ]
    self._ends = np.cumsum([shard.take for shard in shards])
    self._labels = self._no_labels()
    self.full_name = builder.info.full_name
    contents = self.full_name, self._shards, self._ends.tolist()
    self.fingerprint = files.fingerprint(contents)

  def __len__(self) -> int:
    return int(self._ends[-1])

  def __getitem__(self, i: int) -> dict[str, Any]:
    feature = self._read(i)
    # A record without an image is an empty file, a bad image like others.
    image = b"".join(feature[self._image].bytes_list.value[:1])
    return {"image": image, "label": self.label_of(i), "id": self.id_of(i)}

  def id_of(self, i: int) -> str:
    shard, number = locate(self._ends, i)
    name, skip = self._shards[shard]
    return f"{name}__{skip + number}"

  def label_of(self, i: int) -> int:
    check_index(i, len(self))
    if self._labels[i] == _UNREAD:
      self._read(i)
    return int(self._labels[i])

  def _read(self, i):
    """The features of a record, whose label is kept."""
    from tensorflow_datasets.proto import tf_example_pb2

    shard, _ = locate(self._ends, i)
    if self._records is None:
      self._records = _open(_at(self._directory), self._split)
    try:
      record = self._records[i]
      feature = tf_example_pb2.Example.FromString(record).features.feature
    except Exception as error:  # ArrayRecord's and protobuf's have no names.
      path = os.path.join(self._directory, self._shards[shard][0])
      filesystem.raise_if_away(path)
      reason = errors.one_line(error)
      raise OSError(errno.EBADMSG, reason, self.id_of(i)) from None
    if self._label:
      label = feature[self._label].int64_list.value
      self._labels[i] = max(_UNLABELLED, label[0]) if label else _UNLABELLED
    return feature

  def _no_labels(self):
    return np.full(len(self), _UNREAD if self._label else _UNLABELLED, np.int32)

  def __getstate__(self):
    # Neither open files nor megabytes of labels are sent to workers.
    return self.__dict__ | {"_records": None, "_labels": None}

  def __setstate__(self, state):
    self.__dict__.update(state)
    self._labels = self._no_labels()

  def __repr__(self) -> str:
    return (
      f"Tfds({self.full_name!r}, {self._split!r}, {len(self)} of its"
      f" {self._image!r})"
    )


def _find(name, path):
  """The builder of a prepared dataset; its code is not needed."""
  import tensorflow_datasets as tfds

  if not name:
    raise errors.UserError(
      "no dataset given: name is ''; set it to one of TFDS's, for example"
      " imagenet2012 or imagenet2012:5.1.0"
    )
  folder = filesystem.absolute(path)
  try:
    return tfds.core.read_only_builder.builder_from_files(
      name, data_dir=folder or None
    )
  except tfds.core.DatasetNotFoundError:
    raise errors.UserError(_why_not(tfds, name, folder)) from None
  # A malformed name, or a dataset in several folders.
  except ValueError as error:
    raise errors.UserError(
      f"TFDS cannot open name {name!r}: {errors.one_line(error)}"
    ) from None


def _why_not(tfds, name, folder):
  """Why nothing is prepared under a name, and what to do."""
  base = name.partition(":")[0].partition("/")[0]
  folder = folder or filesystem.absolute(tfds.core.constants.DATA_DIR)
  prepared = sorted(
    os.path.relpath(found, folder).replace(os.sep, "/")
    for found, _, names in os.walk(os.path.join(folder, base))
    if "dataset_info.json" in names
  )
  if prepared:
    versions = (":".join(found.rsplit("/", 1)) for found in prepared)
    return (
      f"{name} is not prepared in {folder}, but {', '.join(versions)} is: "
      "set name to that"
    )
  known = tfds.list_builders(with_community_datasets=False)
  if base in known:
    return (
      f"{name} is not prepared in {folder}; prepare it: tfds build {name}"
      f" --file_format={_FORMAT} --data_dir={shlex.quote(folder)} {_ELSEWHERE}"
    )
  near = difflib.get_close_matches(base, known, n=1)
  return (
    f"TFDS knows no dataset {base!r} and none is prepared in {folder}; "
    + (f"did you mean {near[0]}?" if near else "check name and path")
  )


def _at(directory):
  import tensorflow_datasets as tfds

  return tfds.builder_from_directory(directory)


def _open(builder, split):
  """The records of a split, as bytes; sets the builder to ArrayRecord."""
  import tensorflow_datasets as tfds

  _refuse_format(builder)
  _refuse_split(builder, split)
  return builder.as_data_source(
    split,
    deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES,
    file_format=_FORMAT,
  )


def _refuse_format(builder):
  formats = {each.value for each in builder.info.available_file_formats()}
  if _FORMAT not in formats:
    folder = shlex.quote(os.fspath(builder.data_dir))
    raise errors.UserError(
      f"{builder.info.full_name} is stored as {', '.join(sorted(formats))},"
      " which has no random access; convert it: tfds convert_format"
      f" --dataset_version_dir={folder} --out_file_format={_FORMAT}"
      f" {_ELSEWHERE}, or prepare it again with --file_format={_FORMAT}"
    )


def _refuse_split(builder, split):
  name, splits = builder.info.full_name, builder.info.splits
  try:
    count = splits[split].num_examples
  except ValueError as error:
    there = (f"{each.name} ({each.num_examples})" for each in splits.values())
    raise errors.UserError(
      f"no such split of {name}: {split!r} ({errors.one_line(error)}); it has"
      f" {', '.join(there)}, and slices such as train[:1%]"
    ) from None
  if not count:
    raise errors.UserError(f"split {split!r} of {name} is empty; widen it")


def _features(builder):
  """(name of the image, name of the label or None)."""
  import tensorflow_datasets as tfds

  features = builder.info.features
  kinds = tfds.features
  images = [
    name
    for name, feature in features.items()
    if isinstance(feature, kinds.Image)
    # Not maps of classes, nor floats stored as four channels.
    and not isinstance(feature, kinds.LabeledImage)
    and feature.np_dtype != np.float32
  ]
  labels = [
    name
    for name, feature in features.items()
    if isinstance(feature, kinds.ClassLabel) and feature.num_classes
  ]
  if not images:
    raise errors.UserError(
      f"{builder.info.full_name} has no image feature, only"
      f" {', '.join(features)}; choose another dataset"
    )
  return _prefer("image", images), _prefer("label", labels)


def _prefer(name, names):
  return name if name in names else next(iter(names), None)


def _refuse_missing(paths, name):
  import tensorflow_datasets as tfds

  missing = [path for path in paths if not tfds.core.Path(path).exists()]
  if missing:
    raise errors.UserError(
      f"{len(missing)} of {len(paths)} files of {name} are missing, for example"
      f" {missing[0]}; copy them there or prepare the dataset again"
    )
