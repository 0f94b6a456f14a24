"""The linear probe: linear classifiers on the taps of a frozen network.

Several taps, each with and without BatchNorm, each at several learning rates,
are trained at once: the network, which takes all the time, runs once for all of
them (VISSL, `benchmark/linear_image_classification`; Goyal et al. 2019).
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from seer_jax.models import encoder, heads
from seer_jax.tasks import base, labelled
from seer_jax.tasks.state import State

# A head whose loss is this many times that of guessing has diverged.
_DIVERGED = 100


class Probe(labelled.Labelled):
  """Linear heads on a frozen trunk, which is in `State.extra`."""

  def __init__(self, config: ml_collections.ConfigDict, dtype: Any):
    super().__init__(config, dtype)
    self.network = encoder.of_images(config)
    options = config.probe
    self.heads = heads.ProbeHeads(
      config.classes, taps(config), tuple(options.norms), len(options.rates)
    )
    self.encoder = _Probed(self.network, self.heads, tuple(options.rates))

  def init(self, key: jax.Array) -> tuple[Any, Any, Any]:
    """Fresh heads; the network is in `extra`."""
    trunk_key, heads_key = jax.random.split(key)
    size = self.config.crops.sizes[0]
    x = jnp.zeros((self.config.batch_size, size, size, 3), self.dtype)
    network = self.network.init(trunk_key, x)
    taps = self.network.apply(network, x)
    variables = self.heads.init(heads_key, taps, train=True)
    stats = variables.get("batch_stats", {})
    return variables["params"], stats, {"network": network}

  def loss(
    self,
    params: Any,
    state: State,
    batch: dict[str, Any],
    targets: Any | None = None,
  ) -> tuple[jax.Array, base.Aux]:
    """The sum of all heads' cross entropies, so that each trains independently.

    A head whose rate is too large for its tap diverges; it is no longer
    trained, so that its numbers stay finite and the others continue. The
    metrics are those of the best head.
    """
    del targets
    (x_Bx1xHxWx3,) = self.view(batch)
    taps = self.network.apply(state.extra["network"], x_Bx1xHxWx3[:, 0])
    logits, changed = self.heads.apply(
      {"params": params, "batch_stats": state.batch_stats},
      jax.lax.stop_gradient(taps),
      train=True,
      mutable=["batch_stats"],
    )
    logits_HxBxL = self.encoder.stacked(logits)
    wanted_BxL = labelled.targets(batch["label"], self.config.classes)
    losses_H = labelled.cross_entropy(logits_HxBxL, wanted_BxL)
    learning_H = losses_H < _DIVERGED * math.log(self.config.classes)
    right_H = labelled.accuracy(logits_HxBxL, batch["label"])
    metrics = {
      "loss": jnp.min(losses_H, initial=jnp.inf, where=learning_H),
      "train/accuracy": jnp.max(right_H),
    }
    stats = changed.get("batch_stats", {})
    loss = jnp.sum(jnp.where(learning_H, losses_H, 0))
    return loss, base.Aux(stats, metrics, {}, ())

  def rate(self, path: str) -> Any:
    """One learning rate for each copy of a head, along axis 0."""
    del path
    return jnp.array(self.config.probe.rates)

  def variables(self, state: State) -> dict[str, Any]:
    """Heads and network."""
    return state.variables | {"network": state.extra["network"]}

  def with_weights(self, state: State, take: Callable[[Any], Any]) -> State:
    """Loads the network; heads are new."""
    return state.replace(extra={"network": take(state.extra["network"])})


def taps(config: ml_collections.ConfigDict) -> tuple[str, ...]:
  """The taps that a config names, or every stage of its trunk and the mean."""
  stages = len(encoder.architecture(config.model).depths)
  maps = (f"res{stage + 2}" for stage in range(stages))
  return tuple(config.probe.taps) or (*maps, "avgpool")


class _Probed:
  """The probed network as an encoder whose logits are HxNxL.

  `names` are those of the H heads: tap, BatchNorm and rate.
  """

  def __init__(self, network, linear, rates):
    self._network, self._linear = network, linear
    self.preprocessing = network.preprocessing
    self._heads = heads.names(linear.taps, linear.norms)
    self.names = tuple(
      f"{name}@{rate:g}" for name in self._heads for rate in rates
    )

  def apply(self, variables: Any, x_NxHxWx3: jax.Array) -> dict[str, Any]:
    """The network's taps, and `logits`, HxNxL."""
    taps = self._network.apply(variables["network"], x_NxHxWx3)
    own = {kind: variables[kind] for kind in ("params", "batch_stats")}
    logits = self._linear.apply(own, taps, train=False)
    return dict(taps) | {"logits": self.stacked(logits)}

  def stacked(self, logits: dict[str, jax.Array]) -> jax.Array:
    """GxNxL of each head, as HxNxL in the order of `names`."""
    return jnp.concatenate([logits[name] for name in self._heads])
