"""Devices, and the way of arrays onto them."""

from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from seer_jax import errors


def make(data: int = -1) -> jax.sharding.Mesh:
  """A mesh of `data` devices in one row (-1: all), over all processes.

  Raises:
    UserError: fewer devices are there than asked for.
  """
  there = jax.device_count()
  if data > there:
    raise errors.UserError(
      f"config.mesh.data is {data}, but JAX sees {there} device(s):"
      f" {jax.devices()[0].platform}. Ask for at most {there}, or -1 for all"
    )
  count = there if data < 0 else data
  return jax.make_mesh(
    (count,),
    ("data",),
    axis_types=(jax.sharding.AxisType.Auto,),
    devices=jax.devices()[:count],
  )


def multiplies_bf16() -> bool:
  """Whether the devices multiply bfloat16 natively: TPUs, GPUs since Ampere."""
  device = jax.devices()[0]
  if device.platform == "tpu":
    return True
  # "8.0" on NVIDIA; names like "gfx90a" on AMD, where nothing was measured.
  capability = str(getattr(device, "compute_capability", ""))
  major = capability.split(".")[0]
  return major.isdigit() and int(major) >= 8


def rows(mesh: jax.sharding.Mesh) -> jax.sharding.NamedSharding:
  """First axis split over the devices: batches."""
  return jax.NamedSharding(mesh, jax.P("data"))


def replicated(mesh: jax.sharding.Mesh) -> jax.sharding.NamedSharding:
  """The same on every device: parameters."""
  return jax.NamedSharding(mesh, jax.P())


def to_global(mesh: jax.sharding.Mesh, local: Any) -> Any:
  """This process's rows of each array to one array over all processes."""
  return jax.tree.map(
    lambda x: jax.make_array_from_process_local_data(rows(mesh), x), local
  )


def to_host(array: jax.Array) -> np.ndarray:
  """A global array, whole, on every process."""
  if jax.process_count() > 1:
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))
  return np.asarray(array)
