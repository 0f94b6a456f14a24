"""The protocol of tasks: all that step, loop and planner know of one."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from seer_jax.models import encoder
from seer_jax.tasks.state import State


class Aux(NamedTuple):
  """What a loss returns beside its value."""

  batch_stats: Any  # BatchNorm's running statistics after the batch.
  # Means over the batch, by the names of `Task.METRICS`.
  metrics: dict[str, jax.Array]
  # Sums over the batch, by the names of `Task.totals`.
  totals: dict[str, jax.Array]
  kept: Any  # What `Task.after_step` gets; axis 0 of each array is the images.


class Task(Protocol):
  """What is learned from a batch, as pure functions of arrays.

  A batch is what `data.pipeline` makes, plus `keys_B`: a key per image, for its
  randomness. All methods but `report` are traced.

  Subclasses need `METRICS`, `encoder`, `dtype`, `init`, `view` and `loss`; the
  defaults of the others suit a task that keeps nothing between steps and whose
  loss is a mean over images.
  """

  # Names of the means that `loss` returns; "loss" is one of them.
  METRICS: tuple[str, ...]
  # Shapes of the sums that `loss` returns, by name.
  totals: Mapping[str, tuple[int, ...]] = {}
  # Of parameters under "online/", which are trained beside the others by SGD at
  # this constant rate; 0 where there are none.
  online_rate: float = 0.0
  # The trained network over single images, for evaluations and to look for the
  # cause of a divergence; it takes the state's `params` and `batch_stats`, or
  # what `variables` says.
  encoder: encoder.Encoder
  dtype: Any  # What the network computes in.

  def init(self, key: jax.Array) -> tuple[Any, Any, Any]:
    """Fresh (params, batch_stats, extra); `extra` is the task's own state."""
    ...

  def view(self, batch: dict[str, Any]) -> list[jax.Array]:
    """The network's inputs: one BxVxHxWx3 float array per resolution."""
    ...

  def loss(
    self,
    params: Any,
    state: State,
    batch: dict[str, Any],
    targets: Any | None = None,
  ) -> tuple[jax.Array, Aux]:
    """The mean loss of a batch; `targets` if it is part of a larger one."""
    ...

  def trainable(self, path: str, step: jax.Array) -> jax.Array | bool:
    """Whether a parameter ("trunk/stem/kernel") is trained at a step."""
    return True

  def after_update(self, params: Any) -> Any:
    """Parameters after an update, projected to where they must be."""
    return params

  def after_step(self, state: State, kept: Any) -> Any:
    """`extra` after a batch, from what its loss kept.

    `state` has the new parameters, and the old `extra` and `step`.
    """
    return state.extra

  def rate(self, path: str) -> Any:
    """Factor of a parameter's rate: a number, or an array along axis 0."""
    return 1.0

  def weight_decay(self, path: str) -> float | None:
    """Weight decay of a parameter; None for the config's."""
    return None

  def variables(self, state: State) -> dict[str, Any]:
    """What `encoder` is applied with."""
    return state.variables

  def with_weights(self, state: State, take: Callable[[Any], Any]) -> State:
    """The fresh state with loaded weights.

    `take` maps {"params", "batch_stats"} of a network to the same, with the
    loaded arrays instead of the fresh ones.
    """
    return state.replace(**take(state.variables))

  def summarize(self, params: Any, state: State, batch: dict[str, Any]) -> Any:
    """What `targets` needs from a part of a batch; axis 0 is the images.

    Only used, with `targets`, if a batch is differentiated in parts whose
    losses depend on each other.
    """
    return None

  def targets(self, params: Any, state: State, summary: Any) -> Any:
    """Targets of a whole batch, from its summary; axis 0 is the images."""
    return None

  def report(self, totals: Mapping[str, np.ndarray]) -> dict[str, float]:
    """What the log shows of the totals of some steps."""
    return {}
