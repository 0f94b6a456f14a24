"""PyTorch's `.torch`, `.pth`, `.pt` and `.bin` files, without PyTorch.

Such a file has a pickle of containers beside the bytes of the tensors. The
pickle may call only what makes tensors and containers, and its claims about
tensors are checked against the file, so untrusted files can be opened: they
load, or are refused in one line.

Reads both forms, the zip of PyTorch 1.6 and later and the stream before it;
writes zips.
"""

import io
import pathlib
import pickle
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
    return False  # Reading it reports the error.


def read(path: pathlib.Path) -> Any:
  """What was saved: containers, numbers, text, and tensors, unread.

  Raises UserError if the file is damaged, of another kind, or has other
  objects.
  """
  try:
    with errors.reading(path), path.open("rb") as file:
      if zipfile.is_zipfile(file):
        return _read_zip(path, file)
      return _read_legacy(path, file)
  except errors.UserError:
    raise
  except _Refused as error:
    raise errors.UserError(
      f"{path} {error}; only tensors and plain containers can be read. If you"
      " trust it, load it with PyTorch and save its state dict alone"
    ) from error
  except _Damaged as error:
    raise errors.UserError(
      f"{path} is damaged, or not a file of PyTorch: {error}"
    ) from error
  except Exception as error:  # Of `zipfile`, whatever damaged files cause.
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

  def locate(name):
    """(offset, length) of an entry, which PyTorch never compresses."""
    entry = entries.get(root + name)
    if entry is None:
      raise _Damaged(f"the entry {errors.shown(root + name)} is missing")
    if entry.compress_type != zipfile.ZIP_STORED:
      raise _Refused(f"has a compressed entry, {errors.shown(entry.filename)}")
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
    offset, length = locate("byteorder")
    file.seek(offset)
    if file.read(min(length, 16)) != b"little":
      raise _Refused("was written by a big-endian machine")
  offset, length = locate("data.pkl")

  def storage(name, key, count):
    dtype = _DTYPES[name]
    offset, length = locate(f"data/{key}")
    if count * dtype.itemsize > length:
      raise _Damaged(
        f"data/{errors.shown(key)} has {length} bytes, for {count} elements of"
        f" {dtype}"
      )
    return lazy_tensors.Storage(path, offset, count * dtype.itemsize, dtype)

  file.seek(offset)
  # A copy: `locate` moves the position of the file.
  pickled = io.BytesIO(file.read(min(length, pickle_machine.LONGEST)))
  return _unpickle(pickled, storage)


def _read_legacy(path, file):
  """Several pickles, then the length and bytes of each storage."""
  size = file.seek(0, 2)
  file.seek(0)
  try:
    magic = _unpickle(file, _no_storage)
  except Exception as error:
    raise _Damaged("it begins as neither of its formats") from error
  if magic != _LEGACY_MAGIC:
    raise _Damaged("it begins as neither of its formats")
  _unpickle(file, _no_storage)  # The protocol's version.
  system = _unpickle(file, _no_storage)
  if not system.get("little_endian", True):
    raise _Refused("was written by a big-endian machine")
  # Storages follow the pickle that refers to them: two passes.
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
  raise _Damaged("a tensor in the wrong pickle")


def _unpickle(
  file, storage: Callable[[str, str, int], lazy_tensors.Storage]
) -> Any:
  def persistent(pid):
    if type(pid) is not tuple or len(pid) < 5 or pid[0] != "storage":
      raise _Damaged("it refers to something that is not a storage")
    kind, key, count = pid[1], pid[2], pid[4]
    if not isinstance(kind, _Kind) or type(key) not in (str, int):
      raise _Damaged("it refers to a storage without type or name")
    if type(count) is not int or count < 0 or pid[5:] not in ((), (None,)):
      raise _Damaged(f"a storage of {errors.shown(count)} elements")
    return storage(kind.name, str(key), count)

  return pickle_machine.load(file, _find, persistent)


def _find(module, name):
  """Only the functions of `_ADMITTED`."""
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
    raise _Damaged(f"a tensor has {error}") from error


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
  """A tensor to write; `name` is for `write`'s `array_of`."""

  name: str
  shape: tuple[int, ...]
  dtype: np.dtype


def write(
  path: pathlib.Path, saved: Any, array_of: Callable[[str], np.ndarray]
) -> None:
  """Writes a file for `torch.load`, with one array in memory at a time.

  Raises UserError if the disk refuses and Lost if it is full.

  Args:
    saved: dicts, lists, tuples, strings, integers, None, and `Entry`s.
    array_of: returns the array of an entry's name.
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
  """Writes pickles that name classes of PyTorch without importing it."""

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
        return pickle.dumps(it, 2)[2:-1]
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
