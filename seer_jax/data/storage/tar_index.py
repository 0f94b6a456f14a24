"""Finds the images in a tar file, and their offsets."""

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
# A tar ends in zeros, usually up to the next 10,240 bytes. More zeros than this
# are not its end, but a file that was never completed.
_LONGEST_END = 2**16
# Longer names cannot be labels, and longer JSON is not read.
_LONGEST_LABEL, _LONGEST_JSON = 256, 2**20
# Files with a label; the first one wins.
_LABELS = ("cls", "json")
# Keys of a label in a sample's JSON; the first one wins.
_LABEL_KEYS = ("label", "class", "cls")


@dataclasses.dataclass(frozen=True)
class Image:
  """An image inside a tar file.

  `path` is that of the member, without `./`, and its first `id_length`
  characters are the id; `start` and `size` are of its bytes in the file;
  `label` is a number or a name, "" for none.
  """

  path: str
  id_length: int
  start: int
  size: int
  label: bytes = b""


@dataclasses.dataclass
class Found:
  """The images of a tar file, and the number of unused members by reason."""

  images: list[Image] = dataclasses.field(default_factory=list)
  passed_over: collections.Counter[str] = dataclasses.field(
    default_factory=collections.Counter
  )


def read(path: str) -> Found:
  """Reads all headers of a tar file.

  Raises UserError if it is cut short, compressed or unreadable, or has a path
  that leads outside.
  """
  found = Found()
  try:
    with errors.reading(path), filesystem.open_file(path) as file:
      for sample in _samples(_files(path, file, found), found):
        found.images += _images(sample, found)
    return found
  except (tarfile.TarError, EOFError) as error:
    raise errors.UserError(
      f"{path} is not a complete tar file ({error}); copy it again if it was"
      " cut short, or decompress it if it is compressed"
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
  """The offset of another archive after the end of one; None without one."""
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
      f"its last {at - offset:,} bytes are zeros, more than an end has"
    )
  return None


def _samples(found_files, found) -> Iterator[list[_File]]:
  """Runs of files with the same stem and different names."""
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
  """The image of a sample, or several if their names have dots."""
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
      # Labels of the image's own name, or of the whole sample.
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
  """The label in a `.cls` file: a number or a name, on the first line."""
  if len(text) > _LONGEST_LABEL:
    found.passed_over["labels of more than 256 bytes"] += 1
    return b""
  return next(iter(text.strip().splitlines()), b"").strip()


def _in_json(text, found):
  """The label in a sample's JSON: a whole number or a name."""
  try:
    about = json.loads(text)
  except (ValueError, RecursionError):
    found.passed_over["broken JSON"] += 1
    return b""
  if not isinstance(about, dict):
    return b""
  label = next((about[key] for key in _LABEL_KEYS if key in about), None)
  if isinstance(label, int) and not isinstance(label, bool):
    return b"%d" % label
  if isinstance(label, str):
    return _class(label.encode(errors="surrogatepass"), found)
  return b""


def _refuse_number(label, name, path):
  if label.isdigit() and int(label) >= 2**31:
    raise errors.UserError(
      f"{path}: the label of {name} is {int(label)}; number the classes from 0"
    )


def _refuse_outside(name, path):
  # Nothing is ever unpacked, but such a name is a sign of an attack.
  if name.startswith("/") or ".." in name.split("/"):
    raise errors.UserError(
      f"{path} has the path {name!r}, which leads outside; do not use this file"
    )
