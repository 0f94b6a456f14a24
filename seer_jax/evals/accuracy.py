"""Top-1 and top-5 accuracy of an encoder with logits, on clean views."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from seer_jax.data import pipeline
from seer_jax.data.storage import read_ahead
from seer_jax.evals import features
from seer_jax.runtime import errors
from seer_jax.runtime import mesh as mesh_lib


class Accuracy:
  """Accuracy of one classifier, or of several that share a network.

  Of several, the result is the one that is best on `choice`, labels that no
  head was trained on; without `choice` all are reported and none is chosen.
  """

  def __init__(
    self,
    encoder: features.Encoder,
    mesh: jax.sharding.Mesh,
    query: features.ImageSet,
    choice: features.ImageSet | None = None,
    *,
    batch_size: int,
    max_pixels: int,
    reads: int = read_ahead.READS,
    dtype: Any = np.float32,
    between: Callable[[], None] = lambda: None,
  ):
    """Takes an encoder whose `logits` are NxL, or HxNxL with `names` of H."""
    self._encoder, self._mesh = encoder, mesh
    self._query, self._choice = query, choice
    self._batch_size, self._max_pixels = batch_size, max_pixels
    self._reads = reads
    self._between = between
    self._names: Sequence[str] = getattr(encoder, "names", ("",))

    def count(variables, batch):
      pixels = batch["image"].astype(np.float32)
      x = encoder.preprocessing.normalize(pixels).astype(dtype)
      logits = encoder.apply(variables, x)["logits"].astype(jnp.float32)
      return _counted(logits.reshape(-1, *logits.shape[-2:]), batch)

    self._count = jax.jit(count, out_shardings=mesh_lib.replicated(mesh))

  def run(self, variables: Any) -> Iterator[tuple[str, float]]:
    """Yields (`accuracy`, of the chosen head), then the details.

    `accuracy/top5` and `accuracy/nll` are of the same head. Of several heads,
    each has `accuracy/HEAD`, and `choice/HEAD` on the labels for choosing.
    """
    variables = features.stored(variables, self._mesh)
    found = self._of(variables, self._query)
    chosen = 0 if len(self._names) == 1 else None
    by_choice = None
    if self._choice is not None and chosen is None:
      by_choice = self._of(variables, self._choice)["top1"]
      chosen = int(np.argmax(by_choice))
    if chosen is not None:
      yield "accuracy", float(found["top1"][chosen])
      if len(self._query.source.label_names) > 5:
        yield "accuracy/top5", float(found["top5"][chosen])
      yield "accuracy/nll", float(found["nll"][chosen])
    if len(self._names) > 1:
      for at, name in enumerate(self._names):
        yield f"accuracy/{name}", float(found["top1"][at])
        if by_choice is not None:
          yield f"choice/{name}", float(by_choice[at])

  def _of(self, variables, images):
    """Means over the labelled, usable images of a set."""
    sums = None
    batches = pipeline.clean_batches(
      images.source,
      images.indices,
      self._encoder.preprocessing,
      self._mesh,
      self._batch_size,
      self._max_pixels,
      self._reads,
    )
    for batch in batches:
      self._between()
      more = self._count(variables, batch)
      # Whole numbers, added on the host: the order of batches has no effect.
      more = jax.tree.map(lambda x: np.asarray(x, np.float64), more)
      sums = more if sums is None else jax.tree.map(np.add, sums, more)
    if sums is None or not sums["images"]:
      raise errors.UserError(
        f"none of the {len(images.indices)} test images can be read and has a"
        " label; check config.data.test"
      )
    return {
      name: sums[name] / sums["images"] for name in ("top1", "top5", "nll")
    }


def _counted(logits_HxBxL, batch):
  """Sums over a batch; rows without an image or a label do not count."""
  valid_B = batch["mask"] & (batch["label"] >= 0)
  label_B = jnp.where(valid_B, batch["label"], 0)
  own_HxB = jnp.take_along_axis(logits_HxBxL, label_B[None, :, None], axis=2)[
    ..., 0
  ]
  ahead = logits_HxBxL > own_HxB[..., None]
  # Of equal logits the first is the prediction, as in argmax.
  before_BxL = jnp.arange(logits_HxBxL.shape[-1]) < label_B[:, None]
  ahead |= (logits_HxBxL == own_HxB[..., None]) & before_BxL
  rank_HxB = jnp.sum(ahead, -1)
  nll_HxB = jax.nn.logsumexp(logits_HxBxL, -1) - own_HxB
  return {
    "top1": jnp.sum((rank_HxB < 1) & valid_B, -1),
    "top5": jnp.sum((rank_HxB < 5) & valid_B, -1),
    "nll": jnp.sum(jnp.where(valid_B, nll_HxB, 0), -1),
    "images": jnp.sum(valid_B),
  }
