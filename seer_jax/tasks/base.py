"""What a task is: all that the step, the loop and the planner know of one."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from seer_jax.models import encoder
from seer_jax.tasks.state import State


class Aux(NamedTuple):
  """What a loss returns beside its value.

  Attributes:
    batch_stats: BatchNorm's running statistics after the batch.
    metrics: means over the batch, by the names of `Task.METRICS`.
    totals: sums over the batch, by the names of `Task.totals`.
    kept: what `Task.after_step` gets; axis 0 of each array is the images.
  """

  batch_stats: Any
  metrics: dict[str, jax.Array]
  totals: dict[str, jax.Array]
  kept: Any


class Task(Protocol):
  """What is learned from a batch, as pure functions of arrays.

  A batch is what `data.pipeline` makes, and `keys_B`: a key for each image, for
  whatever is random about it. All but `report` are traced.

  Subclasses need `METRICS`, `encoder`, `dtype`, `init`, `view` and `loss`; what
  the others do here suits a task that keeps nothing between steps and whose
  loss is a mean over images.

  Attributes:
    METRICS: names of the means that `loss` returns; "loss" is one of them.
    totals: shapes of the sums that `loss` returns, by name.
    encoder: the trained network over single images, for evaluations and to
      look for the cause of a divergence; it takes the state's `params` and
      `batch_stats`, or what `variables` says.
    online_rate: of parameters under "online/", which are trained beside the
      others by SGD at this constant rate; 0 where there are none.
    dtype: what the network computes in.
  """

  METRICS: tuple[str, ...]
  totals: Mapping[str, tuple[int, ...]] = {}
  online_rate: float = 0.0
  encoder: encoder.Encoder
  dtype: Any

  def init(self, key: jax.Array) -> tuple[Any, Any, Any]:
    """Fresh (params, batch_stats, extra); `extra` is the task's own state."""
    ...

  def view(self, batch: dict[str, Any]) -> list[jax.Array]:
    """What the network sees: one BxVxHxWx3 float array a resolution."""
    ...

  def loss(
    self,
    params: Any,
    state: State,
    batch: dict[str, Any],
    targets: Any | None = None,
  ) -> tuple[jax.Array, Aux]:
    """The mean loss of a batch.

    Args:
      params: to differentiate by.
      state: the rest of the state.
      batch: of images.
      targets: of `targets`, if the batch is a part of a larger one.
    """
    ...

  def trainable(self, path: str, step: jax.Array) -> jax.Array | bool:
    """Whether a parameter ("trunk/stem/kernel") learns at a step."""
    return True

  def after_update(self, params: Any) -> Any:
    """Parameters after an update, put back to where they must be."""
    return params

  def after_step(self, state: State, kept: Any) -> Any:
    """`extra` after a batch, from what its loss kept.

    `state` has the new parameters, and the old `extra` and `step`.
    """
    return state.extra

  def rate(self, path: str) -> Any:
    """Factor of the learning rate of a parameter.

    A number, or an array that goes along the parameter's first axis.
    """
    return 1.0

  def weight_decay(self, path: str) -> float | None:
    """Of a parameter; None for the config's."""
    return None

  def variables(self, state: State) -> dict[str, Any]:
    """What `encoder` is applied with."""
    return state.variables

  def with_weights(self, state: State, take: Callable[[Any], Any]) -> State:
    """The state with loaded weights.

    Args:
      state: fresh.
      take: from {"params", "batch_stats"} of a network to the same, with the
        arrays that the weights have in place of the fresh ones.
    """
    return state.replace(**take(state.variables))

  def summarize(self, params: Any, state: State, batch: dict[str, Any]) -> Any:
    """What `targets` needs of a part of a batch; axis 0 is the images.

    It and `targets` are asked only where a batch is differentiated in parts
    whose losses depend on each other.
    """
    return None

  def targets(self, params: Any, state: State, summary: Any) -> Any:
    """Targets of a whole batch, from its summary; axis 0 is the images."""
    return None

  def report(self, totals: Mapping[str, np.ndarray]) -> dict[str, float]:
    """What the log shows of the totals of some steps."""
    return {}
