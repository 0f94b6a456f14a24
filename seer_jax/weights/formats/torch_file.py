"""PyTorch's `.torch`, `.pth`, `.pt` and `.bin` files, without PyTorch.

A pickle of containers beside the bytes of the tensors. A pickle is a program;
this one may call nothing but what makes tensors and plain containers, and what
it says of tensors is checked against the file. So a file from anywhere can be
opened: it loads, or is refused in one line.

Both forms are read: the zip of PyTorch 1.6 and later, and the stream before it.
Files are written as zips.
"""

import io
import pathlib
import struct
import zipfile
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from seer_jax.runtime import errors, files
from seer_jax.weights.formats import lazy_tensors, pickle_machine

_DTYPES = {
  "DoubleStorage": np.dtype("<f8"),
  "FloatStorage": np.dtype("<f4"),
  "HalfStorage": np.dtype("<f2"),
  "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
  "LongStorage": np.dtype("<i8"),
  "IntStorage": np.dtype("<i4"),
  "ShortStorage": np.dtype("<i2"),
  "CharStorage": np.dtype("i1"),
  "ByteStorage": np.dtype("u1"),
  "BoolStorage": np.dtype("?"),
}
_Damaged, _Refused = pickle_machine.Damaged, pickle_machine.Refused
_STORAGES = {dtype: name for name, dtype in _DTYPES.items()}
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


def is_one(path: pathlib.Path) -> bool:
  """Whether a file begins as a zip or a pickle does."""
  try:
    with path.open("rb") as file:
      return file.read(2) in (b"PK", b"\x80\2")
  except OSError:
    return False  # Whoever reads it says so.


def read(path: pathlib.Path) -> Any:
  """What was saved: dicts, lists, numbers, strings, and tensors, unread.

  Raises UserError if damaged, not such a file, or it holds something else.
  """
  try:
    with path.open("rb") as file:
      if zipfile.is_zipfile(file):
        return _read_zip(path, file)
      return _read_legacy(path, file)
  except OSError as error:
    raise errors.UserError(
      f"cannot read {path}: {error.strerror or error}"
    ) from error
  except _Refused as error:
    raise errors.UserError(
      f"{path} {error}; only tensors and plain containers are read from such"
      " files. If you trust it, load it with PyTorch and save its state dict"
      " alone"
    ) from error
  except _Damaged as error:
    raise errors.UserError(
      f"{path} is damaged, or not a file of PyTorch: {error}"
    ) from error
  # A zip file that is none fails in any of zipfile's ways.
  except Exception as error:
    raise errors.UserError(
      f"{path} is damaged, or not a file of PyTorch:"
      f" {errors.shown(f'{type(error).__name__}: {error}', 200)}"
    ) from error


def _read_zip(path, file):
  try:
    archive = zipfile.ZipFile(file)
  except zipfile.BadZipFile as error:
    raise _Damaged(str(error)) from error
  entries = {entry.filename: entry for entry in archive.infolist()}
  roots = [name for name in entries if name.endswith("/data.pkl")]
  if len(roots) != 1:
    raise _Damaged(f"{len(roots)} entries data.pkl in it instead of one")
  root = roots[0].removesuffix("data.pkl")
  size = file.seek(0, 2)

  def place(name):
    """Where an entry's bytes are. PyTorch never compresses them."""
    entry = entries.get(root + name)
    if entry is None:
      raise _Damaged(f"the entry {errors.shown(root + name)} is missing")
    if entry.compress_type != zipfile.ZIP_STORED:
      raise _Refused(f"holds {errors.shown(entry.filename)} compressed")
    file.seek(entry.header_offset)
    header = file.read(30)
    if header[:4] != b"PK\3\4":
      raise _Damaged(f"the entry {errors.shown(name)} has no header")
    offset = entry.header_offset + 30 + sum(struct.unpack("<HH", header[26:]))
    if entry.file_size != entry.compress_size or (
      offset + entry.file_size > size
    ):
      raise _Damaged(f"the entry {errors.shown(name)} ends outside the file")
    return offset, entry.file_size

  if root + "byteorder" in entries:
    offset, length = place("byteorder")
    file.seek(offset)
    if file.read(min(length, 16)) != b"little":
      raise _Refused("was written by a big-endian machine")
  offset, length = place("data.pkl")

  def storage(name, key, count):
    dtype = _DTYPES[name]
    offset, length = place(f"data/{key}")
    if count * dtype.itemsize > length:
      raise _Damaged(
        f"data/{errors.shown(key)} has {length} bytes, for {count} elements of"
        f" {dtype}"
      )
    return lazy_tensors.Storage(path, offset, count * dtype.itemsize, dtype)

  file.seek(offset)
  # `place` moves in the file meanwhile.
  pickled = io.BytesIO(file.read(min(length, pickle_machine.LONGEST)))
  return _unpickle(pickled, storage)


def _read_legacy(path, file):
  """Pickles one after the other, then each storage's length and bytes."""
  size = file.seek(0, 2)
  file.seek(0)
  try:
    magic = _unpickle(file, _no_storage)
  except Exception as error:
    raise _Damaged("it begins like neither of its formats") from error
  if magic != _LEGACY_MAGIC:
    raise _Damaged("it begins like neither of its formats")
  _unpickle(file, _no_storage)  # The protocol's version.
  system = _unpickle(file, _no_storage)
  if not system.get("little_endian", True):
    raise _Refused("was written by a big-endian machine")
  # Offsets are known once all storages before one are: two passes.
  begin = file.tell()
  wanted: dict[str, tuple[str, int]] = {}

  def note(name, key, count):
    wanted[key] = (name, count)
    return lazy_tensors.Storage(
      path, 0, count * _DTYPES[name].itemsize, _DTYPES[name]
    )

  _unpickle(file, note)
  found = {}
  for key in _unpickle(file, _no_storage):
    name, count = wanted[str(pickle_machine.as_key(key))]
    length = count * _DTYPES[name].itemsize
    (stored,) = struct.unpack("<q", file.read(8))
    offset = file.tell()
    if stored != count or offset + length > size:
      raise _Damaged(f"the storage {errors.shown(key)} ends outside the file")
    found[str(key)] = lazy_tensors.Storage(path, offset, length, _DTYPES[name])
    file.seek(offset + length)
  file.seek(begin)
  return _unpickle(file, lambda name, key, count: found[key])


def _no_storage(name, key, count):
  raise _Damaged("a tensor where none can be")


def _unpickle(
  file, storage: Callable[[str, str, int], lazy_tensors.Storage]
) -> Any:
  def persistent(pid):
    if type(pid) is not tuple or len(pid) < 5 or pid[0] != "storage":
      raise _Damaged("it refers to something that is no storage")
    kind, key, count = pid[1], pid[2], pid[4]
    if not isinstance(kind, _Kind) or type(key) not in (str, int):
      raise _Damaged("it refers to a storage of no type, or without a name")
    if type(count) is not int or count < 0 or pid[5:] not in ((), (None,)):
      raise _Damaged(f"a storage of {errors.shown(count)} elements")
    return storage(kind.name, str(key), count)

  return pickle_machine.load(file, _find, persistent)


def _find(module, name):
  """Nothing but what is listed below."""
  if module in ("torch", "torch.cuda") and name in _DTYPES:
    return _Kind(name)
  found = _ADMITTED.get((module, name))
  if found is None:
    raise _Refused(f"asks for {errors.shown(f'{module}.{name}')}")
  return found


class _Kind(NamedTuple):
  """The class of a storage, by name."""

  name: str


class _Call(NamedTuple):
  """A function that a pickle may call."""

  function: Callable[..., Any]

  def __call__(self, *args: Any) -> Any:
    return self.function(*args)


def _rebuilt(storage, start, shape, strides, *_):
  if not isinstance(storage, lazy_tensors.Storage):
    raise _Damaged("a tensor without a storage")
  if not (type(shape) is type(strides) is tuple):
    raise _Damaged("a tensor without a shape")
  try:
    return lazy_tensors.view(storage, shape, strides, start)
  except ValueError as error:
    raise _Damaged(f"a tensor cannot be of {error}") from error


def _size(numbers=()):
  if type(numbers) not in (list, tuple):
    raise _Damaged("a size without numbers")
  return tuple(numbers)


def _set(items=()):
  return set(map(pickle_machine.as_key, items))


def _ordered_dict(items=()):
  made = pickle_machine.Dict()
  for key, value in items:
    made[pickle_machine.as_key(key)] = value
  return made


_ADMITTED: Mapping[tuple[str, str], Any] = {
  ("collections", "OrderedDict"): _Call(_ordered_dict),
  ("torch", "Size"): _Call(_size),
  ("torch._utils", "_rebuild_tensor"): _Call(_rebuilt),
  ("torch._utils", "_rebuild_tensor_v2"): _Call(_rebuilt),
  ("torch._utils", "_rebuild_parameter"): _Call(lambda tensor, *_: tensor),
  ("builtins", "set"): _Call(_set),
  ("__builtin__", "set"): _Call(_set),
  ("_codecs", "encode"): _Call(lambda text, *_: text),
  ("numpy", "dtype"): _Call(pickle_machine.Inert),
  ("numpy.core.multiarray", "scalar"): _Call(pickle_machine.Inert),
  ("numpy._core.multiarray", "scalar"): _Call(pickle_machine.Inert),
}


class Entry(NamedTuple):
  """A tensor to be written, by the name that `write` asks for."""

  name: str
  shape: tuple[int, ...]
  dtype: np.dtype


def write(
  path: pathlib.Path, saved: Any, array_of: Callable[[str], np.ndarray]
) -> None:
  """Writes what `torch.load` reads, one array in memory at a time.

  Raises UserError if the disk refuses and Lost if the disk is full.

  Args:
    saved: dicts, lists, strings, whole numbers, None, and `Entry`s.
    array_of: gives the array of an entry's name.
  """
  pickler = _Pickler()
  pickled = pickler.dumps(saved)
  with (
    files.whole_file(path) as part,
    zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as archive,
  ):
    archive.writestr("archive/data.pkl", pickled)
    archive.writestr("archive/byteorder", b"little")
    for key, entry in enumerate(pickler.entries):
      name = f"archive/data/{key}"
      with archive.open(name, "w", force_zip64=True) as file:
        file.write(lazy_tensors.raw(array_of(entry.name)))
    archive.writestr("archive/version", b"3\n")


class _Pickler:
  """Pickles by hand, since PyTorch's names cannot be imported to be pickled."""

  def __init__(self):
    self.entries: list[Entry] = []

  def dumps(self, saved: Any) -> bytes:
    return b"\x80\x02" + self._of(saved) + b"."

  def _of(self, it):
    match it:
      case None:
        return b"N"
      case bool():
        return b"\x88" if it else b"\x89"
      case int():
        return _integer(it)
      case str():
        words = it.encode()
        return b"X" + struct.pack("<I", len(words)) + words
      case Entry():
        return self._tensor(it)
      case tuple():
        return b"(" + b"".join(map(self._of, it)) + b"t"
      case list():
        return b"](" + b"".join(map(self._of, it)) + b"e"
      case dict():
        items = (self._of(key) + self._of(it[key]) for key in it)
        return b"}(" + b"".join(items) + b"u"
    raise TypeError(f"cannot write a {type(it).__name__}")

  def _tensor(self, entry):
    key = str(len(self.entries))
    self.entries.append(entry)
    count = int(np.prod(entry.shape, dtype=np.int64))
    storage = (
      b"("
      + self._of("storage")
      + b"ctorch\n"
      + _STORAGES[entry.dtype].encode()
      + b"\n"
      + b"".join(map(self._of, (key, "cpu", count)))
      + b"tQ"
    )
    hooks = b"ccollections\nOrderedDict\n)R"
    sizes = (entry.shape, lazy_tensors.contiguous(entry.shape), False)
    return (
      b"ctorch._utils\n_rebuild_tensor_v2\n("
      + storage
      + self._of(0)
      + b"".join(map(self._of, sizes))
      + hooks
      + b"tR"
    )


def _integer(number):
  if -(1 << 31) <= number < 1 << 31:
    return b"J" + struct.pack("<i", number)
  length = number.bit_length() // 8 + 1
  digits = number.to_bytes(length, "little", signed=True)
  return b"\x8a" + bytes([length]) + digits
