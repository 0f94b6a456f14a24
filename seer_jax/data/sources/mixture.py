"""Several sources as one."""

from collections.abc import Sequence

import numpy as np

from seer_jax.data import shuffle
from seer_jax.data.sources.base import Source, digest_of
from seer_jax.data.storage.example import UNLABELLED, Example, locate
from seer_jax.runtime import files


class Mixture:
  """The images of several sources, one source after the other.

  `weights` are how often each is drawn from (see `shuffle.Order`). Labels are
  matched by name. An id begins with the number of its source. Raises UserError
  if a weight is far too small.
  """

  def __init__(self, parts: Sequence[Source], weights: Sequence[float]):
    self._parts, self.weights = tuple(parts), tuple(weights)
    shuffle.draws_of_each(self.weights)  # Refuses wrong weights early.
    self.sizes = tuple(map(len, self._parts))
    self._ends = np.cumsum(self.sizes)
    names = {name for part in self._parts for name in part.label_names}
    self.label_names = tuple(sorted(names))
    numbers = {name: number for number, name in enumerate(self.label_names)}
    self._labels = tuple(
      tuple(numbers[name] for name in part.label_names) for part in self._parts
    )
    inner = [part.fingerprint for part in self._parts], self.weights
    self.fingerprint = files.fingerprint(inner)

  def __len__(self) -> int:
    return int(self._ends[-1])

  def __getitem__(self, i: int) -> Example:
    part, inner = locate(self._ends, i)
    example = self._parts[part][inner]
    label = self._label(part, example["label"])
    return example | {"label": label, "id": f"{part}/{example['id']}"}

  def id_of(self, i: int) -> str:
    part, inner = locate(self._ends, i)
    return f"{part}/{self._parts[part].id_of(inner)}"

  def label_of(self, i: int) -> int:
    part, inner = locate(self._ends, i)
    return self._label(part, self._parts[part].label_of(inner))

  def digest(self, i: int) -> bytes | None:
    part, inner = locate(self._ends, i)
    return digest_of(self._parts[part], inner)

  def _label(self, part, label):
    return label if label == UNLABELLED else self._labels[part][label]

  def __repr__(self) -> str:
    shares = zip(self.weights, self._parts, strict=True)
    return " + ".join(f"{weight:g} x {part!r}" for weight, part in shares)
