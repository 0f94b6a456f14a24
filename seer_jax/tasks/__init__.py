"""What is learned: views, a loss, and the state it changes."""

import jax.numpy as jnp
import ml_collections

from seer_jax.runtime import mesh as mesh_lib
from seer_jax.tasks import base, finetune, probe, swav

_TASKS = {
  "swav": swav.SwAV,
  "probe": probe.Probe,
  "finetune": finetune.FineTune,
}


def create(config: ml_collections.ConfigDict) -> base.Task:
  """The task of a resolved config, in its precision."""
  return _TASKS[config.task](
    config, jnp.dtype(mesh_lib.DTYPES[config.precision])
  )
