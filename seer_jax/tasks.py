"""Tasks: what is trained. Each has an initial state, a view and a loss."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections

from seer_jax import augment, model, state, swav


class Aux(NamedTuple):
  """What a loss returns beside its value."""

  batch_stats: Any
  extra: Any
  metrics: dict[str, jax.Array]  # Sums over a window make sense of each.


class SwAV:
  """Pre-training by swapped prediction, on batches of multi-crops."""

  def __init__(self, config: ml_collections.ConfigDict, dtype: jnp.dtype):
    self.config = config
    self.model = model.create(config)
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
      queue = swav.empty_queue(
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
      name: {"kernel": swav.normalize(value["kernel"])}
      if name.startswith("prototypes")
      else value
      for name, value in params.items()
    }

  def view(self, batch: dict[str, Any], key: jax.Array) -> list[jax.Array]:
    """Augmented, normalised crops, one BxVxHxWx3 array a resolution."""
    views = []
    for group, crops_BxVxHxWx3 in enumerate(batch["crops"]):
      shape = crops_BxVxHxWx3.shape
      pixels = augment.augment(
        crops_BxVxHxWx3.reshape(-1, *shape[2:]),
        jax.random.fold_in(key, group),
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
    key: jax.Array,
  ) -> tuple[jax.Array, Aux]:
    """The swapped loss of a batch, averaged over prototype heads."""
    options = self.config.swav
    with jax.named_scope("augment"):
      crops = self.view(batch, key)
    views, changed = self.model.apply(
      {"params": params, "batch_stats": now.batch_stats},
      crops,
      train=True,
      mutable=["batch_stats"],
    )
    with jax.named_scope("swav"):
      queue = now.extra["queue"]
      queue_scores, queue_used = self._queue_scores(params, queue)
      losses, relative = [], []
      for head, scores_BxVxK in enumerate(views.scores_BxVxK):
        codes_BxAxK = swav.assign(
          scores_BxVxK,
          options.assign_crops,
          options.epsilon,
          options.iterations,
          queue_scores[head],
          queue_used,
        )
        loss = swav.swapped_loss(
          scores_BxVxK, codes_BxAxK, options.assign_crops, options.temperature
        )
        losses.append(loss)
        relative.append(loss / jnp.log(scores_BxVxK.shape[-1]))
      loss = jnp.mean(jnp.stack(losses))
      queue = self._pushed(queue, views.z_BxVxP, now.step)
    metrics = {
      "loss": loss,
      "loss_over_lnk": jnp.mean(jnp.stack(relative)),
      "usage_K": _usage(views.scores_BxVxK[0], options.assign_crops),
    }
    return loss, Aux(changed["batch_stats"], {"queue": queue}, metrics)

  def _queue_scores(self, params, queue):
    if queue is None:
      return [None] * len(self.model.prototype_counts), None
    scores = self.model.apply(
      {"params": params}, queue["z_AxQxP"], method="scores"
    )
    return scores, swav.is_full(queue)

  def _pushed(self, queue, z_BxVxP, step):
    if queue is None:
      return None
    options = self.config.swav
    z_BxAxP = z_BxVxP[:, jnp.array(options.assign_crops)]
    return swav.push(queue, z_BxAxP, step >= options.queue_start)


def _usage(scores_BxVxK, assign_crops):
  """How many crops are nearest to each prototype, before balancing."""
  nearest = jnp.argmax(scores_BxVxK[:, jnp.array(assign_crops)], axis=-1)
  prototypes = scores_BxVxK.shape[-1]
  return jnp.bincount(nearest.ravel(), length=prototypes).astype(jnp.float32)
