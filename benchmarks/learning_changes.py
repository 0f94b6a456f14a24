"""The rows of `learning.py`: recipes that it compares, won or not.

What a config can say is said in keys. What no config offers, because it was not
worth it, is a task here.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from seer_jax.tasks import swav

# configs/cifar10.py until version 0.1, at a rate for runs of one epoch.
_BEFORE = {
  "crops.scales": ((0.2, 1.0),),
  "model.depths": (),
  "model.widths": (),
  "model.group_widths": (),
  "model.regnet": (4, 48, 48.0, 2.0, 16),
  "model.prototypes": (64,),
  "swav.instance_weight": 0.0,
  "swav.instance_temperature": 0.2,
  "swav.freeze_steps": 20,
  "optim.lr": 6.0,
}
_INSTANCES = _BEFORE | {"swav.instance_weight": 4.0}


class Change(NamedTuple):
  """One row of the table.

  Attributes:
    why: what to expect, and from where.
    config: keys and values in place of those of configs/cifar10.py.
    task: (config, dtype) -> Task, in place of SwAV.
  """

  why: str
  config: Mapping[str, Any] = {}
  task: Callable[[Any, Any], Any] = swav.SwAV


class KoLeo(swav.SwAV):
  """SwAV with features kept apart (Sablayrolles et al. 2019; DINOv2: 0.1)."""

  weight = 0.2

  def loss(self, params, state, batch, targets=None):
    """The swapped loss, and minus the log of the distance to the nearest."""
    loss, aux = super().loss(params, state, batch, targets)
    return loss + self.weight * _koleo(self._features), aux

  def _encode(self, params, state, batch):
    views, stats = super()._encode(params, state, batch)
    self._features = views.features_BxVxD
    return views, stats


def _koleo(features_BxVxD):
  def of_view(x_BxD):
    x_BxD = x_BxD / jnp.linalg.norm(x_BxD, axis=-1, keepdims=True)
    similar_BxB = x_BxD @ x_BxD.T - 2 * jnp.eye(len(x_BxD))
    nearest_BxD = x_BxD[jnp.argmax(similar_BxB, axis=-1)]
    distance_B = jnp.linalg.norm(x_BxD - nearest_BxD + 1e-6, axis=-1)
    return -jnp.mean(jnp.log(distance_B + 1e-8))

  return jnp.mean(jax.vmap(of_view, in_axes=1)(features_BxVxD))


CHANGES = {
  "recipe": Change("configs/cifar10.py as it is"),
  "before": Change(
    "the swapped loss alone on a smaller trunk; what others change", _BEFORE
  ),
  "instances": Change(
    "and instance discrimination, weight 4, temperature 0.2", _INSTANCES
  ),
  "instances-1": Change("weight 1", _INSTANCES | {"swav.instance_weight": 1.0}),
  "instances-t0.1": Change(
    "temperature 0.1", _INSTANCES | {"swav.instance_temperature": 0.1}
  ),
  "koleo": Change("features kept apart, weight 0.2", _BEFORE, KoLeo),
  "jitter-0.8": Change(
    "SwAV's strength of colour jitter",
    _BEFORE
    | {
      "augment.brightness": 0.8,
      "augment.contrast": 0.8,
      "augment.saturation": 0.8,
      "augment.hue": 0.2,
    },
  ),
  "jitter-0.2": Change(
    "half the strength of colour jitter, half as often grey",
    _BEFORE
    | {
      "augment.brightness": 0.2,
      "augment.contrast": 0.2,
      "augment.saturation": 0.2,
      "augment.hue": 0.05,
      "augment.grey": 0.1,
    },
  ),
  "crops-0.08": Change(
    "crops of 8 % of the area or more",
    _BEFORE | {"crops.scales": ((0.08, 1.0),)},
  ),
  "small-crops": Change(
    "four crops of 16 px beside the two",
    _BEFORE
    | {
      "crops.counts": (2, 4),
      "crops.sizes": (32, 16),
      "crops.scales": ((0.3, 1.0), (0.08, 0.3)),
    },
  ),
  "epsilon-0.05": Change(
    "softer codes, SwAV's and SEER's", _BEFORE | {"swav.epsilon": 0.05}
  ),
  "epsilon-0.02": Change("sharper codes", _BEFORE | {"swav.epsilon": 0.02}),
  "prototypes-256": Change(
    "four times the prototypes", _BEFORE | {"model.prototypes": (256,)}
  ),
  "rate-third": Change("a third of the rate", _BEFORE | {"optim.lr": 2.0}),
  "batch-64": Change(
    "twice the steps", _BEFORE | {"batch_size": 64, "optim.lr": 8.0}
  ),
  "adamw": Change(
    "AdamW at 2e-3, decay 0.01",
    _BEFORE
    | {
      "optim.name": "adamw",
      "optim.lr": 4e-3,
      "optim.weight_decay": 0.01,
    },
  ),
}
