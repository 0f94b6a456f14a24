"""Tasks: what is trained. Each has an initial state, a view and a loss."""

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections

from seer_jax.models import encoder
from seer_jax.tasks import augment, state, swav_loss


class Targets(NamedTuple):
  """What a batch's crops are to predict."""

  codes_BxAxK: tuple[jax.Array, ...]  # One for each prototype head.
  usage_K: jax.Array  # Crops nearest to each prototype, before balancing.


class Aux(NamedTuple):
  """What a loss returns beside its value."""

  batch_stats: Any
  z_BxAxP: jax.Array  # Projections of the crops that assign.
  usage_K: jax.Array
  metrics: dict[str, jax.Array]  # Means over the batch.


def create(config: ml_collections.ConfigDict) -> "SwAV":
  """The task of a resolved config, in its precision."""
  dtype = {"bf16": jnp.bfloat16, "fp16": jnp.float16, "fp32": jnp.float32}
  return SwAV(config, jnp.dtype(dtype[config.precision]))


class SwAV:
  """Pre-training by swapped prediction, on batches of multi-crops."""

  METRICS = ("loss", "loss_over_lnk")

  def __init__(self, config: ml_collections.ConfigDict, dtype: jnp.dtype):
    self.config = config
    self.model = encoder.create(config)
    self.dtype = dtype

  def init(self, key: jax.Array) -> tuple[Any, Any, Any]:
    """Fresh (params, batch_stats, extra); only shapes of crops matter here.

    To be jitted: then the pass over a whole batch of zeros is never made, but
    the batch has the size that the mesh can split.
    """
    options, batch = self.config.crops, self.config.batch_size
    crops = [
      jnp.zeros((batch, count, size, size, 3), self.dtype)
      for count, size in zip(options.counts, options.sizes, strict=True)
    ]
    variables = self.model.init(key, crops, train=True)
    options, queue = self.config.swav, None
    if options.queue_length:
      queue = swav_loss.empty_queue(
        len(options.assign_crops), options.queue_length, self.model.out
      )
    return variables["params"], variables["batch_stats"], {"queue": queue}

  def trainable(self, path: str, step: jax.Array) -> jax.Array | bool:
    """Prototypes rest for the first steps, as drawn (SwAV, appendix A)."""
    if path.startswith("prototypes"):
      return step >= self.config.swav.freeze_steps
    return True

  def project(self, params: Any) -> Any:
    """Puts prototypes back on the sphere after an update (section 3.1)."""
    return {
      name: {"kernel": encoder.normalize(value["kernel"])}
      if name.startswith("prototypes")
      else value
      for name, value in params.items()
    }

  def keyed(self, batch: dict[str, Any], key: jax.Array) -> dict[str, Any]:
    """The batch with a key for each image, for whatever is random about it."""
    images = batch["crops"][0].shape[0]
    return batch | {"keys_B": jax.random.split(key, images)}

  def view(self, batch: dict[str, Any]) -> list[jax.Array]:
    """Augmented, normalised crops, one BxVxHxWx3 array a resolution."""
    views = []
    for group, crops_BxVxHxWx3 in enumerate(batch["crops"]):
      images, count = crops_BxVxHxWx3.shape[:2]
      shape = crops_BxVxHxWx3.shape

      def split(key, group=group, count=count):
        return jax.random.split(jax.random.fold_in(key, group), count)

      keys_BxV = jax.vmap(split)(batch["keys_B"])
      pixels = augment.augment(
        crops_BxVxHxWx3.reshape(-1, *shape[2:]),
        keys_BxV.reshape(images * count),
        self.config.augment,
      )
      pixels = augment.normalize(pixels, self.config.augment, self.dtype)
      views.append(pixels.reshape(shape))
    return views

  def loss(
    self,
    params: Any,
    now: state.State,
    batch: dict[str, Any],
    targets: Targets | None = None,
  ) -> tuple[jax.Array, Aux]:
    """The swapped loss of a batch, averaged over prototype heads.

    Args:
      params: to differentiate by.
      now: the rest of the state.
      batch: crops with keys, see `keyed`.
      targets: what to predict; assigned within this batch when None.
    """
    options = self.config.swav
    views, batch_stats = self._encode(params, now, batch)
    with jax.named_scope("swav"):
      z_BxAxP = views.z_BxVxP[:, jnp.array(options.assign_crops)]
      if targets is None:
        targets = self.targets(params, now, z_BxAxP)
      losses, relative = [], []
      for scores_BxVxK, codes_BxAxK in zip(
        views.scores_BxVxK, targets.codes_BxAxK, strict=True
      ):
        loss = swav_loss.swapped_loss(
          scores_BxVxK, codes_BxAxK, options.assign_crops, options.temperature
        )
        losses.append(loss)
        relative.append(loss / jnp.log(scores_BxVxK.shape[-1]))
      loss = jnp.mean(jnp.stack(losses))
    metrics = {
      "loss": loss,
      "loss_over_lnk": jnp.mean(jnp.stack(relative)),
    }
    return loss, Aux(batch_stats, z_BxAxP, targets.usage_K, metrics)

  def project_assigning(
    self, params: Any, now: state.State, batch: dict[str, Any]
  ) -> jax.Array:
    """z_BxAxP alone, as `loss` will see it: the first pass of accumulation."""
    options, counts = self.config.swav, self.config.crops.counts
    groups = len(counts)
    if not self.config.model.head.batch_norm or not self._trains_norms:
      # Resolutions behind the last that assigns change nothing; a BatchNorm in
      # the head would see all.
      ends = itertools.accumulate(counts)
      groups = 1 + next(
        i for i, end in enumerate(ends) if end > max(options.assign_crops)
      )
    first = batch | {"crops": batch["crops"][:groups]}
    views, _ = self._encode(params, now, first)
    return views.z_BxVxP[:, jnp.array(options.assign_crops)]

  def targets(
    self, params: Any, now: state.State, z_BxAxP: jax.Array
  ) -> Targets:
    """Codes of a whole batch, balanced over it and the queue."""
    options, queue = self.config.swav, now.extra["queue"]
    z_BxAxP = jax.lax.stop_gradient(z_BxAxP)
    queue_scores, used = (None,) * len(self.model.prototype_counts), None
    if queue is not None:
      queue_scores = self._scores(params, queue["z_AxQxP"])
      used = swav_loss.is_full(queue)
    scores = self._scores(params, z_BxAxP)
    codes = tuple(
      swav_loss.assign(
        scores_BxAxK,
        range(len(options.assign_crops)),
        options.epsilon,
        options.iterations,
        queued_AxQxK,
        used,
      )
      for scores_BxAxK, queued_AxQxK in zip(scores, queue_scores, strict=True)
    )
    return Targets(codes, _usage(scores[0]))

  def remember(self, now: state.State, z_BxAxP: jax.Array) -> dict[str, Any]:
    """`extra` after a batch: the queue with its projections in front."""
    queue = now.extra["queue"]
    if queue is None:
      return now.extra
    active = now.step >= self.config.swav.queue_start
    return {"queue": swav_loss.push(queue, z_BxAxP, active)}

  @property
  def _trains_norms(self):
    return not self.config.model.frozen_norms

  def _encode(self, params, now, batch):
    with jax.named_scope("augment"):
      crops = self.view(batch)
    views, changed = self.model.apply(
      {"params": params, "batch_stats": now.batch_stats},
      crops,
      train=self._trains_norms,
      mutable=["batch_stats"],
    )
    return views, changed["batch_stats"]

  def _scores(self, params, z):
    return self.model.apply({"params": params}, z, method="scores")


def _usage(scores_BxAxK):
  nearest = jnp.argmax(scores_BxAxK, axis=-1)
  prototypes = scores_BxAxK.shape[-1]
  return jnp.bincount(nearest.ravel(), length=prototypes).astype(jnp.float32)
