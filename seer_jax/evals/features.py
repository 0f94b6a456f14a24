"""An encoder over a set of images: clean views in, features and labels out."""

import dataclasses
import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from seer_jax.data import pipeline, preprocessing, sources
from seer_jax.data.storage import read_ahead
from seer_jax.models import heads
from seer_jax.runtime import errors
from seer_jax.runtime import mesh as mesh_lib

_PART = 2**14  # Rows.
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Features:
  """Finite features of a set of images, and their labels."""

  features_NxD: np.ndarray  # Float32.
  labels_N: np.ndarray  # -1 for none.
  nonfinite: float = 0.0  # Share of the images left out.
  index_N: np.ndarray | None = None  # Of the images in their source, if known.

  def labelled(self) -> "Features":
    """Those with a label."""
    has_label_N = self.labels_N >= 0
    return self if has_label_N.all() else self.only(has_label_N)

  def only(self, rows: np.ndarray) -> "Features":
    """Some of them, by index or by a mask."""
    index_N = None if self.index_N is None else self.index_N[rows]
    return Features(
      self.features_NxD[rows], self.labels_N[rows], index_N=index_N
    )


@dataclasses.dataclass(frozen=True)
class ImageSet:
  """Chosen images of a source."""

  source: sources.Source
  indices: Sequence[int]
  # How they are seen; None as the encoder's weights expect.
  view: preprocessing.View | None = None

  def view_for(self, encoder: "Encoder") -> preprocessing.View:
    """The view of these images that an encoder gets."""
    return self.view or preprocessing.CleanView(encoder.preprocessing)


class Rows(NamedTuple):
  """Features of a batch's usable images."""

  taps: dict[str, np.ndarray]  # BxD, by name.
  labels_B: np.ndarray  # -1 for none.
  index_B: np.ndarray  # In the source.
  done: int  # Images of the set processed so far.


class Store(Protocol):
  """Keeps features; `feature_store.FeatureStore` is one."""

  def get(
    self,
    variables: Any,
    images: ImageSet,
    about: object,
    rows: Callable[[int], Iterator[Rows]],
  ) -> dict[str, Features]:
    """Features of an encoder's images; computes missing rows."""
    ...


class Encoder(Protocol):
  """Turns images into features, with its own preprocessing.

  `models.encoder.Encoder` is one: that of a task, or what `seer_jax.load`
  returns.
  """

  preprocessing: preprocessing.Preprocessing

  def apply(
    self, variables: Any, x_NxHxWx3: jax.Array
  ) -> Mapping[str, jax.Array]:
    """Normalized float images to taps; `avgpool`, NxD, is the features."""
    ...


class Extractor:
  """Runs an encoder over image sets, with its preprocessing.

      model, variables = seer_jax.load("regnety_320.seer")
      extract = Extractor(model, mesh)
      found = extract.of(variables, ImageSet(source, range(1000)))

  Calling it keeps the features of each set until `forget`, so that evaluators
  of the same variables share one pass.
  """

  def __init__(
    self,
    encoder: Encoder,
    mesh: jax.sharding.Mesh,
    *,
    taps: Sequence[str] = ("avgpool",),
    batch_size: int = 64,
    max_pixels: int = preprocessing.MAX_PIXELS,
    reads: int = read_ahead.READS,
    dtype: Any = np.float32,
    between: Callable[[], None] = lambda: None,
    store: Store | None = None,
    strict: bool = False,
  ):
    """Computes nothing yet.

    Args:
      taps: outputs to extract (`heads.tap`); the first is the default.
      between: called before each batch; an exception ends the pass.
      store: keeps features between processes; see `feature_store.py`.
      strict: refuses features that are not finite instead of leaving them out.
    """
    self._encoder, self.mesh = encoder, mesh
    self._batch_size, self._max_pixels = batch_size, max_pixels
    self._reads = reads
    self.between, self._store, self._strict = between, store, strict
    self.taps = tuple(taps)
    self._about = (
      repr(encoder.preprocessing),
      max_pixels,
      np.dtype(dtype).name,
      self.taps,
      # What else an encoder does, apart from its variables.
      repr(getattr(encoder, "pooling", None)),
      getattr(encoder, "regional", False),
    )
    self._kept: dict[int, dict[str, Features]] = {}
    self._warned: set[tuple[int, int]] = set()

    self._forward = compiled(
      encoder,
      lambda found: {tap: heads.pooled(found, tap) for tap in self.taps},
      mesh,
      dtype,
    )

  def __call__(
    self, variables: Any, images: ImageSet, tap: str | None = None
  ) -> Features:
    """Finite features of the usable images of the set, in order."""
    if id(images) not in self._kept:
      self._kept[id(images)] = self.taps_of(variables, images)
    return self._kept[id(images)][tap or self.taps[0]]

  def forget(self) -> None:
    """Drops what is kept, before other variables."""
    self._kept = {}

  def of(self, variables: Any, images: ImageSet) -> Features:
    """Features of the first tap, not kept."""
    return self.taps_of(variables, images)[self.taps[0]]

  def taps_of(self, variables: Any, images: ImageSet) -> dict[str, Features]:
    """Features of all taps, not kept here, but in the store if there is one.

    Raises UserError if no image is usable, or features are not finite and the
    extractor is strict.
    """
    if self._store:
      rows = functools.partial(self.rows, variables, images)
      found = self._store.get(variables, images, self._about, rows)
    else:
      parts = list(self.rows(variables, images))
      found = {tap: _joined(parts, tap) for tap in self.taps}
    share = max(each.nonfinite for each in found.values())
    if self._strict and share:
      raise errors.UserError(
        f"features of {share:.1%} of the images are not finite: the run"
        " diverged, or its numbers are too large for 16 bits; try"
        " --config.precision=fp32"
      )
    return found

  def of_rows(self, variables: Any, images: ImageSet) -> Features:
    """Features of the first tap, kept nowhere."""
    return _joined(list(self.rows(variables, images)), self.taps[0])

  def rows(
    self, variables: Any, images: ImageSet, first: int = 0
  ) -> Iterator[Rows]:
    """Yields the usable images, batch by batch, from index `first` of the set.

    Raises UserError if no image is usable.
    """
    variables = stored(variables, self.mesh)
    batches = pipeline.clean_batches(
      images.source,
      images.indices[first:],
      images.view_for(self._encoder),
      self.mesh,
      self._batch_size,
      self._max_pixels,
      self._reads,
    )
    seen = 0
    for batch in batches:
      self.between()
      found = self._forward(variables, batch["image"])
      mask_B = mesh_lib.to_host(batch["mask"])
      label_B = mesh_lib.to_host(batch["label"])[mask_B]
      index_B = mesh_lib.to_host(batch["index"])
      self._warn_of_unusable(images.source, index_B[~mask_B])
      seen += len(label_B)
      taps = {tap: np.asarray(x)[mask_B] for tap, x in found.items()}
      first = min(first + len(mask_B), len(images.indices))
      yield Rows(taps, label_B, index_B[mask_B], first)
    if not seen:
      raise errors.UserError(
        f"none of the {len(images.indices)} images to evaluate is usable; see"
        " the warnings above"
      )

  def _warn_of_unusable(self, source, indices):
    for index in indices.tolist():
      if index >= 0 and (id(source), index) not in self._warned:
        self._warned.add((id(source), index))
        name, reason = pipeline.describe(source, index, self._max_pixels)
        _log.warning("left out of the evaluation: %r: %s", name, reason)


def _joined(parts, tap):
  return finite(
    np.concatenate([part.taps[tap] for part in parts]),
    np.concatenate([part.labels_B for part in parts]),
    np.concatenate([part.index_B for part in parts]),
  )


def compiled(
  encoder: Encoder,
  wanted: Callable[[Mapping[str, jax.Array]], dict[str, jax.Array]],
  mesh: jax.sharding.Mesh,
  dtype: Any,
) -> Callable[..., dict[str, jax.Array]]:
  """(variables, pixels_BxSxSx3 of uint8) -> arrays made from the taps.

  `wanted` maps all taps to arrays, B first; every device of the mesh gets the
  whole result.
  """

  def forward(variables, pixels_BxSxSx3):
    x = encoder.preprocessing.normalize(pixels_BxSxSx3.astype(np.float32))
    return wanted(encoder.apply(variables, x.astype(dtype)))

  return jax.jit(forward, out_shardings=mesh_lib.replicated(mesh))


def stored(variables: Any, mesh: jax.sharding.Mesh) -> dict[str, Any]:
  """An encoder's variables, on the devices of a mesh."""
  return {
    kind: mesh_lib.store(tree, kind, mesh) for kind, tree in variables.items()
  }


def finite(
  features_NxD: np.ndarray, labels_N: np.ndarray, index_N: np.ndarray
) -> Features:
  """Leaves out rows that are not finite, since one would spoil every sum."""
  # In parts: a memory map may be larger than memory.
  finite_N = np.concatenate(
    [
      np.isfinite(features_NxD[start : start + _PART]).all(1)
      for start in range(0, max(1, len(features_NxD)), _PART)
    ]
  )
  if finite_N.all():
    return Features(features_NxD, labels_N, index_N=index_N)
  share = 1 - float(finite_N.mean())
  _log.warning(
    "the features of %d of %d images are not finite, and left out of the"
    " evaluation",
    (~finite_N).sum(),
    len(finite_N),
  )
  return Features(
    features_NxD[finite_N], labels_N[finite_N], share, index_N[finite_N]
  )
