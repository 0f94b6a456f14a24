"""Top-1 and top-5 accuracy of an encoder with logits."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from seer_jax.data import pipeline
from seer_jax.data.storage import read_ahead
from seer_jax.evals import classes, features
from seer_jax.evals.groups import rates
from seer_jax.runtime import errors
from seer_jax.runtime import mesh as mesh_lib


class Hits(NamedTuple):
  """What heads predicted for the images of a set that have a label."""

  top1_HxN: np.ndarray  # Bool: the label has the largest logit.
  top5_HxN: np.ndarray  # Bool: it is among the five largest.
  nll_HxN: np.ndarray  # Negative log-likelihood, in nats.
  index_N: np.ndarray  # Of the images in their source.


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
    truth: classes.Truth | None = None,
    split: rates.Split = rates.no_split,
    name: str = "accuracy",
  ):
    """Takes an encoder whose `logits` are NxL, or HxNxL with `names` of H.

    Args:
      truth: the classes that are right for each label of the images; None if
        labels are the numbers of classes.
      split: of the figures, by groups of images.
      name: of the figures.
    """
    self._encoder, self._mesh = encoder, mesh
    self._query, self._choice = query, choice
    self._batch_size, self._max_pixels = batch_size, max_pixels
    self._reads = reads
    self._between, self._split, self._name = between, split, name
    labels = len(query.source.label_names)
    self._classes = truth.right_LxC.shape[1] if truth else labels
    self._names: Sequence[str] = getattr(encoder, "names", ("",))

    def judge(variables, batch):
      pixels = batch["image"].astype(np.float32)
      x = encoder.preprocessing.normalize(pixels).astype(dtype)
      logits = encoder.apply(variables, x)["logits"].astype(jnp.float32)
      return judged(
        logits.reshape(-1, *logits.shape[-2:]), batch["label"], truth
      )

    self._judge = jax.jit(judge, out_shardings=mesh_lib.replicated(mesh))

  def run(self, variables: Any) -> Iterator[tuple[str, float]]:
    """Yields (`accuracy`, of the chosen head), then the details.

    `accuracy/top5` and `accuracy/nll` are of the same head. Of several heads,
    each has `accuracy/HEAD`, and `choice/HEAD` on the labels for choosing.
    """
    found, name = self.hits(variables, self._query), self._name
    chosen = 0 if len(self._names) == 1 else None
    by_choice = None
    if self._choice is not None and chosen is None:
      by_choice = self.hits(variables, self._choice).top1_HxN.mean(1)
      chosen = int(np.argmax(by_choice))
    if chosen is not None:
      top1_N, top5_N = found.top1_HxN[chosen], found.top5_HxN[chosen]
      yield name, float(top1_N.mean())
      yield from self._split(name, found.index_N, top1_N)
      if self._classes > 5:
        yield f"{name}/top5", float(top5_N.mean())
        yield from self._split(f"{name}/top5", found.index_N, top5_N)
      yield f"{name}/nll", float(found.nll_HxN[chosen].mean(dtype=np.float64))
    if len(self._names) > 1:
      for at, head in enumerate(self._names):
        yield f"{name}/{head}", float(found.top1_HxN[at].mean())
        if by_choice is not None:
          yield f"choice/{head}", float(by_choice[at])

  def hits(self, variables: Any, images: features.ImageSet) -> Hits:
    """What is predicted for the labelled, usable images of a set, in order.

    Raises UserError if there are none.
    """
    variables = features.stored(variables, self._mesh)
    batches = pipeline.clean_batches(
      images.source,
      images.indices,
      images.view_for(self._encoder),
      self._mesh,
      self._batch_size,
      self._max_pixels,
      self._reads,
    )
    parts = []
    for batch in batches:
      self._between()
      found = [np.asarray(x) for x in self._judge(variables, batch)]
      mask_B, label_B, index_B = (
        mesh_lib.to_host(batch[key]) for key in ("mask", "label", "index")
      )
      # Rows without an image or a label do not count.
      valid_B = mask_B & (label_B >= 0)
      parts.append([*(x_HxB[:, valid_B] for x_HxB in found), index_B[valid_B]])
    joined = [np.concatenate(x, -1) for x in zip(*parts, strict=True)]
    if not joined or not len(joined[-1]):
      raise errors.UserError(
        f"none of the {len(images.indices)} test images can be read and has a"
        " label; check config.data.test"
      )
    return Hits(*joined)


def judged(
  logits_HxBxC: jax.Array, label_B: jax.Array, truth: classes.Truth | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """(top-1, top-5, negative log-likelihood), HxB each.

  Of several right classes the one with the largest logit counts, and their
  probabilities add up. Rows with a label below 0 have arbitrary results.
  """
  count = logits_HxBxC.shape[-1]
  label_B = jnp.maximum(label_B, 0)
  if truth is None:
    right_BxC = label_B[:, None] == jnp.arange(count)
  else:
    right_BxC = jnp.asarray(truth.right_LxC)[label_B]
    if truth.allowed_C is not None:
      logits_HxBxC = jnp.where(truth.allowed_C, logits_HxBxC, -jnp.inf)
  of_right = jnp.where(right_BxC, logits_HxBxC, -jnp.inf)
  own_HxBx1 = jnp.max(of_right, -1, keepdims=True)
  first_HxBx1 = jnp.argmax(of_right, -1, keepdims=True)
  ahead = logits_HxBxC > own_HxBx1
  # Of equal logits the first is the prediction, as in argmax.
  ahead |= (logits_HxBxC == own_HxBx1) & (jnp.arange(count) < first_HxBx1)
  # NaN is above nothing and below nothing: it must not count as first.
  is_number_HxB = ~jnp.isnan(own_HxBx1[..., 0])
  rank_HxB = jnp.where(is_number_HxB, jnp.sum(ahead, -1), count)
  nll_HxB = jax.nn.logsumexp(logits_HxBxC, -1) - jax.nn.logsumexp(of_right, -1)
  return rank_HxB < 1, (rank_HxB < 5) & is_number_HxB, nll_HxB
