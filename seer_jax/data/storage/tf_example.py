"""A record of a shard: an image by itself, or a `tf.train.Example`.

https://www.tensorflow.org/api_docs/python/tf/train/Example; read and written
with TFDS's protobuf, without TensorFlow.
"""

import errno
from typing import Any

from seer_jax.data.storage.example import UNLABELLED, Example

# Names of features in public datasets.
_IMAGES = ("image", "image/encoded", "jpg", "jpeg", "png", "image_raw")
_LABELS = ("label", "image/class/label", "cls", "class")
_IDS = ("id", "image/filename", "filename", "__key__")
# First bytes of encoded images; an Example begins with 0x0A.
_MAGIC = b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"RIFF", b"II*", b"MM\0*"


def write(example: Example) -> bytes:
  """A record with `image`, `id` and, if there is one, `label`."""
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
  """The example in a record; `name` is its id if it has none.

  A label that is not a number is ignored. Raises OSError if the record has no
  image.
  """
  if record.startswith(_MAGIC) or not record:
    return Example(image=record, label=UNLABELLED, id=name)
  proto = _proto()
  try:
    proto.ParseFromString(record)
  except Exception as error:  # Protobuf's has no stable name.
    raise OSError(errno.EBADMSG, f"not a record: {error}", name) from None
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
  from tensorflow_datasets.proto import tf_example_pb2  # Slow to import.

  return tf_example_pb2.Example()
