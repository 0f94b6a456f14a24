"""Embeddings of images, computed by the devices and cores of one process."""

import collections
import concurrent.futures
import dataclasses
import logging
import pathlib
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from seer_jax.apps.embedding import perceptual_hash
from seer_jax.data import crops, preprocessing, sources
from seer_jax.data.sources import base
from seer_jax.data.storage import retry
from seer_jax.evals import feature_store, features
from seer_jax.models import heads
from seer_jax.runtime import errors, files, host
from seer_jax.runtime import mesh as mesh_lib
from seer_jax.weights import load

_log = logging.getLogger(__name__)

_NO_VIEW = np.empty((0, 0, 3), np.uint8)
# Batches decoded ahead of the devices.
_AHEAD = 3


class Weights(NamedTuple):
  """A network that embeds."""

  name: str  # As the user gave it.
  encoder: features.Encoder  # A network of `seer_jax.load`.
  variables: Any
  fingerprint: str = ""


@dataclasses.dataclass(frozen=True)
class Options:
  """How images are embedded."""

  tap: str = "avgpool"  # Output of the network, as `heads.tap` reads it.
  dtype: str = "float32"  # Of the embeddings: "float32" or "float16".
  # "fp32", "bf16" or "fp16"; "" is the fastest of this hardware.
  precision: str = ""
  batch_size: int = 32  # Over the devices of this process.
  # Decoding threads.
  threads: int = dataclasses.field(default_factory=host.cores)
  max_pixels: int = preprocessing.MAX_PIXELS  # As for `crops.decode`.
  shard: int = 2048  # Images in each file.


class Seen(NamedTuple):
  """One image, decoded."""

  view_SxSx3: np.ndarray | None  # Network input; None if it is unusable.
  reason: str = ""  # Why it is unusable; "" if it is excluded.
  facts: Mapping[str, Any] = types.MappingProxyType({})  # Columns of its row.


@dataclasses.dataclass(frozen=True)
class Look:
  """Reads and decodes an image by its number. Runs in threads."""

  source: sources.Source
  preprocessing: preprocessing.Preprocessing
  max_pixels: int

  def __call__(self, index: int) -> Seen:
    try:
      example = retry.read(self.source, index)
      data = example["image"]
      image_HxWx3 = crops.decode(data, self.max_pixels)
    except errors.Excluded:
      return Seen(None)
    except (OSError, errors.BadImage) as error:
      return Seen(None, getattr(error, "strerror", None) or str(error))
    names, label = self.source.label_names, example["label"]
    facts = {
      "id": example["id"],
      "path": base.path_of(self.source, index),
      "label": names[label] if 0 <= label < len(names) else None,
      "index": index,
      "height": image_HxWx3.shape[0],
      "width": image_HxWx3.shape[1],
      "bytes": len(data),
      "sha256": files.fingerprint(data),
      "phash": f"{perceptual_hash.perceptual_hash(image_HxWx3):016x}",
    }
    return Seen(self.preprocessing.view(image_HxWx3), "", facts)


class Embedder:
  """A network on the devices of this process, fed by decoding threads."""

  def __init__(self, weights: Weights, options: Options):
    """Compiles nothing yet. Raises UserError for a bad tap or precision."""
    heads.tap(options.tap)
    # Of this process alone: other processes embed other images.
    self._mesh = mesh_lib.make(devices=jax.local_devices())
    self._encoder, self._options = weights.encoder, options
    self._batch = -(-options.batch_size // self._mesh.size) * self._mesh.size
    precision = options.precision or mesh_lib.precision_here()[0]
    if precision not in mesh_lib.DTYPES:
      raise errors.UserError(
        f"precision is {precision!r}; use one of {', '.join(mesh_lib.DTYPES)}"
      )
    dtype = mesh_lib.DTYPES[precision]
    self._variables = features.stored(weights.variables, self._mesh)
    self._forward = features.compiled(
      weights.encoder, self._wanted, self._mesh, dtype
    )
    side = weights.encoder.preprocessing.size
    with jax.set_mesh(self._mesh):
      shapes = jax.eval_shape(
        self._forward,
        self._variables,
        jax.ShapeDtypeStruct((self._batch, side, side, 3), np.uint8),
      )
    self.width: int = shapes["embedding"].shape[1]

  def _wanted(self, found):
    """The embedding and, with prototypes, the nearest of them."""
    wanted = {"embedding": heads.pooled(found, self._options.tap)}
    if found.get("scores"):
      wanted["prototype"] = jnp.argmax(found["scores"][0], -1)
    return wanted

  def of(
    self,
    look: Callable[[Any], Seen],
    groups: Iterable[Sequence[Any]],
    progress: Callable[[int], None] = lambda images: None,
  ) -> Iterator[list[Seen]]:
    """Yields groups with `embedding` and `prototype` among their facts.

    Args:
      look: makes a view of an item; called in threads.
      groups: items. No batch mixes groups, so results of one do not depend on
        others.
      progress: called with the size of each finished batch.
    """
    pool = concurrent.futures.ThreadPoolExecutor(self._options.threads)
    group = []
    try:
      with jax.set_mesh(self._mesh):
        batches = self._started(self._looked(pool, look, groups))
        for batch, found, is_last in _one_late(batches):
          group += _finished(batch, found, self._options.dtype)
          progress(len(batch))
          if is_last:
            yield group
            group = []
    finally:
      pool.shutdown(cancel_futures=True)

  def _looked(self, pool, look, groups):
    """(decoding batch, its pixels, whether it ends its group), a few ahead."""
    side = self._encoder.preprocessing.size
    ahead = collections.deque()
    for group in groups:
      for first in range(0, len(group), self._batch):
        last = first + self._batch
        # Rows without an image stay zero.
        pixels_BxSxSx3 = np.zeros((self._batch, side, side, 3), np.uint8)
        batch = [
          pool.submit(_fill, look, item, pixels_BxSxSx3[row])
          for row, item in enumerate(group[first:last])
        ]
        ahead.append((batch, pixels_BxSxSx3, last >= len(group)))
        if len(ahead) > _AHEAD:
          yield ahead.popleft()
    yield from ahead

  def _started(self, batches):
    """(batch, its outputs on the devices, whether it ends its group)."""
    for batch, pixels_BxSxSx3, is_last in batches:
      batch = [future.result() for future in batch]
      rows = jax.device_put(pixels_BxSxSx3, mesh_lib.rows(self._mesh))
      yield batch, self._forward(self._variables, rows), is_last


def _fill(look, item, pixels_SxSx3):
  """Decodes an image into its row of a batch. Runs in threads."""
  seen = look(item)
  if seen.view_SxSx3 is None:
    return seen
  pixels_SxSx3[...] = seen.view_SxSx3
  return seen._replace(view_SxSx3=pixels_SxSx3)


def _one_late(batches):
  """Each item one step later: devices work while the next is gathered."""
  before = None
  for batch in batches:
    if before is not None:
      yield before
    before = batch
  if before is not None:
    yield before


def _finished(batch, found, dtype):
  """The images of a batch, with outputs for the usable ones."""
  found = {name: np.asarray(x) for name, x in found.items()}
  with np.errstate(over="ignore"):  # Overflow of float16 is checked below.
    found["embedding"] = found["embedding"].astype(dtype)
  finite_B = np.isfinite(found["embedding"]).all(1)
  for row, seen in enumerate(batch):
    if seen.view_SxSx3 is None:
      yield seen
    elif finite_B[row]:
      facts = {name: x[row] for name, x in found.items()}
      # Without the pixels, which are not needed any more.
      yield Seen(_NO_VIEW, "", {**seen.facts, **facts})
    else:
      yield Seen(None, f"its embedding is not finite in {dtype}")


def embed(
  images: Sequence[Any] | sources.Source | str,
  weights: str | pathlib.Path | tuple[features.Encoder, Any],
  *,
  tap: str = "avgpool",
  precision: str = "",
  batch_size: int = 32,
) -> np.ndarray:
  """Embeddings of images, in memory.

      x_NxD = seer_jax.embed(["a.jpg", "b.jpg"], "runs/photos")
      x_NxD = seer_jax.embed(sources.Folder("photos"), seer_jax.load("seer_32"))

  Raises UserError if the weights cannot be loaded, an item of a sequence is not
  an image, or a source has no usable image.

  Args:
    images: paths, encoded bytes, uint8 arrays HxWx3 or PIL images, in any mix;
      or a source, or the path of a folder.
    weights: argument or result of `seer_jax.load`.
    tap: output of the network: "avgpool", "projection", "res4:2x2", ...
    precision: "fp32", "bf16", "fp16"; "" is the fastest of this hardware.

  Returns:
    embedding_NxD, float32, in the order of the images. Unusable images of a
    source (damaged, excluded) are rows of NaN, with a warning.
  """
  if isinstance(weights, tuple):
    opened = Weights("", *weights)
  else:
    opened = open_weights(str(weights))
  if isinstance(images, (str, pathlib.Path)):
    images = sources.open_source({"kind": "folder", "path": str(images)})
  options = Options(tap=tap, precision=precision, batch_size=batch_size)
  embedder = Embedder(opened, options)
  preparation = opened.encoder.preprocessing
  if hasattr(images, "fingerprint"):
    look = Look(images, preparation, options.max_pixels)
    items = range(len(images))
  else:
    look, items = lambda image: Seen(preparation.view(image)), images
  if not len(items):
    raise errors.UserError("there are no images to embed; give at least one")
  found = next(iter(embedder.of(look, [items])))
  usable = [seen.facts.get("embedding") for seen in found]
  known = next((x for x in usable if x is not None), None)
  if known is None:
    raise errors.UserError(
      f"none of the {len(found)} images is usable; the first:"
      f" {found[0].reason or 'excluded'}"
    )
  missing = sum(x is None for x in usable)
  if missing:
    _log.warning("%d of %d images are unusable (NaN)", missing, len(found))
  nothing = np.full_like(known, np.nan)
  return np.stack([nothing if x is None else x for x in usable])


def open_weights(name: str) -> Weights:
  """Loads weights by name or path, as `seer_jax.load` does."""
  encoder, variables = load.load(name)
  return Weights(name, encoder, variables, feature_store.fingerprint(variables))
