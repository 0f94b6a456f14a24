"""`.safetensors` files: a JSON header, then the arrays' bytes.

https://huggingface.co/docs/safetensors, "Format". For 64 arrays of 16 MiB,
reading and writing take 16 MiB of memory here, and 1,040 and 1,024 MiB with the
safetensors package, which needs all arrays to write.
"""

import json
import pathlib
import struct
from collections.abc import Callable, Iterable, Mapping

import ml_dtypes
import numpy as np

from seer_jax.runtime import errors, files
from seer_jax.weights.formats import lazy_tensors

_DTYPES = {
  "F64": np.dtype("<f8"),
  "F32": np.dtype("<f4"),
  "F16": np.dtype("<f2"),
  "BF16": np.dtype(ml_dtypes.bfloat16),
  "I64": np.dtype("<i8"),
  "I32": np.dtype("<i4"),
  "I16": np.dtype("<i2"),
  "I8": np.dtype("i1"),
  "U8": np.dtype("u1"),
  "BOOL": np.dtype("?"),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_LARGEST_HEADER = 100_000_000  # The format's own limit, in bytes.


def is_one(path: pathlib.Path) -> bool:
  """Whether a file begins like one, whatever its name."""
  try:
    with path.open("rb") as file:
      head = file.read(9)
  except OSError:
    return False  # Reading it reports the error.
  return head[8:] == b"{" and int.from_bytes(head[:8], "little") < (
    _LARGEST_HEADER
  )


def read(path: pathlib.Path) -> dict[str, lazy_tensors.Tensor]:
  """All arrays of a file, unread.

  Raises UserError if it is damaged, or not such a file.
  """
  try:
    with errors.reading(path), path.open("rb") as file:
      size = file.seek(0, 2)
      file.seek(0)
      (length,) = struct.unpack("<Q", file.read(8))
      if length > min(_LARGEST_HEADER, size - 8):
        raise ValueError(f"a header of {length} bytes in a file of {size}")
      header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    begin, left = 8 + length, size - 8 - length
    return {
      name: _tensor(path, begin, left, **entry)
      for name, entry in header.items()
    }
  except (
    AttributeError, KeyError, RecursionError, TypeError, ValueError,
    struct.error,
  ) as error:  # fmt: skip
    raise errors.UserError(
      f"{path} is not a complete .safetensors file"
      f" ({errors.shown(str(error))}); download it again"
    ) from error


def _tensor(path, begin, left, dtype, shape, data_offsets):
  first, last = data_offsets
  kind = _DTYPES[dtype]
  tensor = lazy_tensors.view(
    lazy_tensors.Storage(path, begin + first, last - first, kind), tuple(shape)
  )
  if not 0 <= first <= last <= left or tensor.size * kind.itemsize != (
    last - first
  ):
    raise ValueError(f"{shape} of {dtype} at bytes {first} to {last} of {left}")
  return tensor


def write(
  path: pathlib.Path,
  arrays: Iterable[tuple[str, tuple[int, ...], np.dtype]],
  array_of: Callable[[str], np.ndarray],
  metadata: Mapping[str, str],
) -> None:
  """Writes a file, with one array in memory at a time.

  Raises UserError if the disk refuses and Lost if it is full.

  Args:
    arrays: name, shape and dtype of each.
    array_of: returns the array of a name.
  """
  header: dict[str, object] = {"__metadata__": dict(metadata)}
  offset = 0
  names = []
  for name, shape, dtype in arrays:
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    header[name] = {
      "dtype": _NAMES[dtype],
      "shape": list(shape),
      "data_offsets": [offset, offset + size],
    }
    offset += size
    names.append(name)
  words = json.dumps(header).encode()
  words += b" " * (-len(words) % 8)
  with files.whole_file(path) as file:
    file.write(struct.pack("<Q", len(words)) + words)
    for name in names:
      file.write(lazy_tensors.raw(array_of(name)))
