"""What a source of images is."""

from typing import Protocol

from seer_jax.data.storage.example import Example


class Source(Protocol):
  """Random access to examples, in an order that never changes.

  A source hands out encoded bytes and decodes nothing, so that it is cheap to
  open in every worker process and a broken image is somebody else's problem.

  Implementations are picklable and cheap to open. `label_names` is empty when
  nothing is labelled. Indices run from 0; others raise IndexError. `id_of` and
  `label_of` decode no image, and read none where the format allows it. Reading
  what cannot be read raises OSError. `fingerprint` tells two sets of images
  apart.

  A source may have three methods more. `other_names_of(i)` are names beside the
  id by which its owner may know an image. `path_of(i)` is the file of an image
  that is a file of its own. `digest(i)` is the SHA-256 of the
  file that an image was packed from, or None. `names_are_known`, if it is set,
  says that `id_of` gives the ids that examples have, and reads nothing for it.
  """

  label_names: tuple[str, ...]
  fingerprint: str

  def __len__(self) -> int: ...

  def __getitem__(self, i: int) -> Example: ...

  def id_of(self, i: int) -> str: ...

  def label_of(self, i: int) -> int: ...


def other_names_of(source: Source, i: int) -> tuple[str, ...]:
  """Names of an image beside its id; none where the source tells none."""
  found = getattr(source, "other_names_of", None)
  return found(i) if found else ()


def path_of(source: Source, i: int) -> str:
  """The file of an image; its id where it is none of its own."""
  found = getattr(source, "path_of", None)
  return found(i) if found else source.id_of(i)


def digest_of(source: Source, i: int) -> bytes | None:
  """SHA-256 of the file that an image was packed from, where it is known."""
  found = getattr(source, "digest", None)
  return found(i) if found else None
