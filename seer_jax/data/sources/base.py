"""The protocol of sources of images."""

from typing import Protocol

from seer_jax.data.storage.example import Example


class Source(Protocol):
  """Random access to examples, in an order that never changes.

  A source returns encoded bytes and decodes nothing, so that it is cheap to
  open in every worker process.

  Implementations are picklable. `label_names` is empty if nothing is labelled.
  Indices start at 0; others raise IndexError. `id_of` and `label_of` decode no
  image, and read none if the format allows it. Reading what cannot be read
  raises OSError. `fingerprint` identifies the set of images.

  A source may have more methods: `other_names_of(i)`, names beside the id by
  which an owner may know an image; `path_of(i)`, the file of an image that is a
  file of its own; `row_of(i, table)`, the row of a list that it is, None if the
  images are not from that list; `digest(i)`, the SHA-256 of the file that an
  image was packed from, or None. `names_are_known`, if set, says that `id_of`
  gives the ids of the examples without reading them.
  """

  label_names: tuple[str, ...]
  fingerprint: str

  def __len__(self) -> int: ...

  def __getitem__(self, i: int) -> Example: ...

  def id_of(self, i: int) -> str: ...

  def label_of(self, i: int) -> int: ...


def other_names_of(source: Source, i: int) -> tuple[str, ...]:
  """Names of an image beside its id, if the source gives any."""
  found = getattr(source, "other_names_of", None)
  return found(i) if found else ()


def path_of(source: Source, i: int) -> str:
  """The file of an image, or its id if it is not a file of its own."""
  found = getattr(source, "path_of", None)
  return found(i) if found else source.id_of(i)


def row_of(source: Source, i: int, table: str) -> int | None:
  """The row of a table that an image is; None if the source is another."""
  found = getattr(source, "row_of", None)
  return found(i, table) if found else None


def digest_of(source: Source, i: int) -> bytes | None:
  """SHA-256 of the file that an image was packed from, if known."""
  found = getattr(source, "digest", None)
  return found(i) if found else None
