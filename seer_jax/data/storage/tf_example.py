"""One record of a shard: an image alone, or a `tf.train.Example`.

https://www.tensorflow.org/api_docs/python/tf/train/Example; read and written
with TFDS's protobuf, without TensorFlow.
"""

import errno
from typing import Any

from seer_jax.data.storage.example import UNLABELLED, Example
from seer_jax.runtime import errors

# What public data sets call them.
_IMAGES = ("image", "image/encoded", "jpg", "jpeg", "png", "image_raw")
_LABELS = ("label", "image/class/label", "cls", "class")
_IDS = ("id", "image/filename", "filename", "__key__")
# What encoded images begin with; an Example begins with 0x0A.
_MAGIC = (
  b"\xff\xd8\xff",
  b"\x89PNG",
  b"GIF8",
  b"BM",
  b"RIFF",
  b"II*",
  b"MM\0*",
)


def write(example: Example) -> bytes:
  """A record of `image`, `label` (if there is one) and `id`."""
  proto = _proto()
  feature = proto.features.feature
  feature["image"].bytes_list.value.append(example["image"])
  feature["id"].bytes_list.value.append(
    example["id"].encode(errors="surrogateescape")
  )
  if example["label"] != UNLABELLED:
    feature["label"].int64_list.value.append(example["label"])
  return proto.SerializeToString(deterministic=True)


def read(record: bytes, name: str) -> Example:
  """What a record holds; a label that is no number is none.

  Raises OSError if the record holds no image.

  Args:
    name: the id, where the record has none of its own.
  """
  if record.startswith(_MAGIC) or not record:
    return Example(image=record, label=UNLABELLED, id=name)
  proto = _proto()
  try:
    proto.ParseFromString(record)
  except Exception as error:  # Protobuf's has no stable name.
    raise OSError(errno.EBADMSG, f"no record: {error}", name) from None
  feature = proto.features.feature
  image = _first(feature, _IMAGES)
  if not isinstance(image, bytes):
    raise OSError(errno.EBADMSG, "a record without an image", name)
  label, own = _first(feature, _LABELS), _first(feature, _IDS)
  return Example(
    image=image,
    label=max(label, UNLABELLED) if isinstance(label, int) else UNLABELLED,
    id=own.decode(errors="surrogateescape") if own else name,
  )


def _first(feature: Any, names):
  for name in names:
    if name in feature:
      value = feature[name]
      values = value.bytes_list.value or value.int64_list.value
      if values:
        return values[0]
  return None


def _proto():
  try:
    from tensorflow_datasets.proto import tf_example_pb2
  except ImportError:
    raise errors.UserError(
      "ArrayRecord shards need a library; run: pip install tensorflow-datasets"
    ) from None
  return tf_example_pb2.Example()
