"""Which members of a tar file are images, and where they lie."""

import collections
import dataclasses
import json
import posixpath
import tarfile
from collections.abc import Iterator

from seer_jax.data.storage import filesystem
from seer_jax.data.storage.example import EXTENSIONS
from seer_jax.runtime import errors

_BLOCK = 512
# A tar ends in zeros, as a rule up to the next 10,240 bytes. So many more are
# no end but the rest of a file that was never filled.
_LONGEST_END = 2**16
# A longer name of a class is something else, and longer JSON is not read.
_LONGEST_LABEL, _LONGEST_JSON = 256, 2**20
# Files with a label, the first wins.
_LABELS = ("cls", "json")
# What a sample's JSON calls its label, the first of them that is there.
_LABEL_KEYS = ("label", "class", "cls")


@dataclasses.dataclass(frozen=True)
class Image:
  """An image inside a tar file.

  Attributes:
    path: of the member, without `./`.
    id_length: how much of the path is the id.
    start, size: of its bytes in the file.
    label: of its sample, a number or a word; "" for none.
  """

  path: str
  id_length: int
  start: int
  size: int
  label: bytes = b""


@dataclasses.dataclass
class Found:
  """The images of a tar file, and how many members are not used, and why."""

  images: list[Image] = dataclasses.field(default_factory=list)
  passed_over: collections.Counter[str] = dataclasses.field(
    default_factory=collections.Counter
  )


def read(path: str) -> Found:
  """Reads all headers of a tar file.

  Raises UserError if it is cut short, compressed, cannot be read, or holds a
  path that leads outside.
  """
  try:
    found = Found()
    with filesystem.open_file(path) as file:
      for sample in _samples(_files(path, file, found), found):
        found.images += _images(sample, found)
    return found
  except (tarfile.TarError, EOFError) as error:
    raise errors.UserError(
      f"{path} is no whole tar file ({error}); it may have been cut short, or"
      " be compressed, which has no random access: copy or unpack it again"
    ) from None
  except OSError as error:
    raise errors.UserError(
      f"cannot read {path}: {error.strerror or error}"
    ) from None


@dataclasses.dataclass(frozen=True)
class _File:
  path: str
  stem: str  # The path up to the first dot of the name.
  extension: str  # What follows; in lower case.
  start: int
  size: int
  label: bytes  # Of a file that holds one.


def _files(path, file, found) -> Iterator[_File]:
  """The regular files of one archive, or of several in one file."""
  total, start = filesystem.size(path), 0
  while start is not None:
    file.seek(start)
    with tarfile.open(fileobj=file, mode="r:") as tar:
      for member in tar:
        if member.offset_data + member.size > total:
          raise tarfile.ReadError(f"{member.name} ends after the file")
        if each := _file(path, tar, member, found):
          yield each
      start = _next_archive(file, tar.offset, total)


def _file(path, tar, member, found):
  if member.isdir():
    return None
  _refuse_outside(member.name, path)
  name = posixpath.normpath(member.name)
  folder, last = posixpath.split(name)
  if not member.isreg() or last.startswith("."):
    what = "hidden" if member.isreg() else "links or devices"
    found.passed_over[what] += 1
    return None
  stem, _, extension = last.partition(".")
  extension = extension.lower()
  label = b""
  last = extension.rpartition(".")[2]
  if last == "cls":
    label = _class(tar.extractfile(member).read(_LONGEST_LABEL + 1), found)
  elif last == "json" and member.size <= _LONGEST_JSON:
    label = _in_json(tar.extractfile(member).read(), found)
  _refuse_number(label, name, path)
  return _File(
    name,
    posixpath.join(folder, stem),
    extension,
    member.offset_data,
    member.size,
    label,
  )


def _next_archive(file, offset, total):
  """Where one begins after the end of another; None where nothing does."""
  if offset >= total:
    raise tarfile.ReadError("its end is missing")
  at = offset
  file.seek(at)
  while blocks := file.read(2**20):
    rest = blocks.lstrip(b"\0")
    if rest:
      at += len(blocks) - len(rest)
      at -= (at - offset) % _BLOCK
      if at == offset:
        raise tarfile.ReadError("neither its end nor another member follows")
      return at
    at += len(blocks)
  if at - offset > _LONGEST_END:
    raise tarfile.ReadError(
      f"its last {at - offset:,} bytes are zeros; if that is how it was made,"
      " make it again without"
    )
  return None


def _samples(found_files, found) -> Iterator[list[_File]]:
  """Files that follow each other and share their stem, none of them twice."""
  sample = []
  for each in found_files:
    again = any(each.path == other.path for other in sample)
    found.passed_over["twice under one name, and kept"] += again
    if sample and (again or each.stem != sample[0].stem):
      yield sample
      sample = []
    sample.append(each)
  if sample:
    yield sample


def _images(sample, found) -> Iterator[Image]:
  """The image of a sample, or those of names with dots."""
  simple = [each for each in sample if each.extension in EXTENSIONS]
  dotted = [
    each
    for each in sample
    if "." in each.extension and _last(each) in EXTENSIONS
  ]
  if simple:
    best = min(simple, key=lambda each: EXTENSIONS.index(each.extension))
    found.passed_over["other images of a sample"] += (
      len(simple) + len(dotted) - 1
    )
    labels = [
      each.label
      for kind in _LABELS
      for each in sample
      if each.extension == kind
    ]
    yield _image(best, len(best.extension), labels)
  else:
    for image in dotted:
      # Of its own name, or of the whole sample.
      stem = image.path[: -len(_last(image))]
      own = [f"{stem}{kind}".lower() for kind in _LABELS]
      labels = [
        each.label
        for kind in reversed(_LABELS)
        for each in sample
        if each.extension == kind
        or (each.path.lower() in own and _last(each) == kind)
      ]
      yield _image(image, len(_last(image)), labels[::-1])
  if not simple and not dotted and not sample[0].label:
    found.passed_over["without an image"] += len(sample)


def _image(file, extension_length, labels):
  labels = [label for label in labels if label]
  return Image(
    file.path,
    len(file.path) - extension_length - 1,
    file.start,
    file.size,
    labels[0] if labels else b"",
  )


def _last(file):
  return file.extension.rpartition(".")[2]


def _class(text, found):
  """What a `.cls` says: a number of a class, or its name, on the first line."""
  if len(text) > _LONGEST_LABEL:
    found.passed_over["labels of more than 256 bytes"] += 1
    return b""
  return next(iter(text.strip().splitlines()), b"").strip()


def _in_json(text, found):
  """The label that a sample's JSON names: a whole number or a word."""
  try:
    said = json.loads(text)
  except (ValueError, RecursionError):
    found.passed_over["broken JSON"] += 1
    return b""
  if not isinstance(said, dict):
    return b""
  label = next((said[key] for key in _LABEL_KEYS if key in said), None)
  if isinstance(label, int) and not isinstance(label, bool):
    return b"%d" % label
  if isinstance(label, str):
    return _class(label.encode(errors="surrogatepass"), found)
  return b""


def _refuse_number(label, name, path):
  if label.isdigit() and int(label) >= 2**31:
    raise errors.UserError(
      f"{path} holds {name} with the label {int(label)}; labels are numbers of"
      " classes, from 0 on"
    )


def _refuse_outside(name, path):
  # Nothing is ever unpacked; but who writes such names is up to something.
  if name.startswith("/") or ".." in name.split("/"):
    raise errors.UserError(
      f"{path} holds the path {name!r}, which leads outside; do not trust this"
      " file"
    )
