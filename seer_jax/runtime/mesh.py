"""The device mesh, and how arrays are sharded over it.

The mesh has two axes. A batch is split over both: each device works on its own
rows. Large kernels are split over `fsdp` alone and gathered, layer by layer,
when they are used (fully sharded data parallelism), so memory for parameters,
gradients and momentum falls with the size of that axis, which should span the
devices with the fastest links.

Hardly any number of devices divides SEER's widths (4103, 11110 channels). A
kernel without a dimension that divides evenly is stored with one of them padded
by zeros, which the layer never sees and no update changes.
"""

import functools
import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils, multihost_utils

from seer_jax.runtime import errors

AXES = ("data", "fsdp")
DTYPES = {"fp32": jnp.float32, "bf16": jnp.bfloat16, "fp16": jnp.float16}

# Smaller kernels cost more to gather than their memory is worth (elements).
SPLIT_FROM = 2**16
# Patterns of paths in the state, the first match counts: may it be split?
_RULES = (
  (r"/kernel$", True),
  (r"/(scale|shift|bias|mean|var)$", False),
  (r"(^|/)count$", False),
  (r"^whitening/", False),
  (r"^(step|window|extra|loss_scale|nonfinite_steps)\b", False),
)


def make(
  data: int = -1, fsdp: int = 1, devices: Sequence[jax.Device] | None = None
) -> jax.sharding.Mesh:
  """A mesh of `data` x `fsdp` devices, over all processes.

  Raises UserError if there are too few devices, or some would be left out.

  Args:
    data: size of that axis; -1 is as many as there are.
    fsdp: size of that axis, over which each kernel is split.
  """
  devices = jax.devices() if devices is None else devices
  there = len(devices)
  if data < 0:
    data = max(1, there // fsdp)
    if data * fsdp < there:
      raise errors.UserError(
        f"config.mesh.fsdp is {fsdp}, which does not divide the {there}"
        " devices; give mesh.data as well to leave some of them idle"
      )
  if data * fsdp > there:
    raise errors.UserError(
      f"config.mesh.data x config.mesh.fsdp is {data} x {fsdp}, but JAX sees"
      f" {there} device(s): {devices[0].platform}. Ask for at most {there} in"
      " all; mesh.data=-1 takes all"
    )
  if data * fsdp < there and jax.process_count() > 1:
    raise errors.UserError(
      f"config.mesh.data x config.mesh.fsdp is {data} x {fsdp}, but all"
      f" {there} devices of several processes must take part; mesh.data=-1"
      " takes all"
    )
  return jax.sharding.Mesh(
    arranged(devices[: data * fsdp], data, fsdp),
    AXES,
    axis_types=(jax.sharding.AxisType.Auto,) * 2,
  )


def arranged(devices: Sequence[jax.Device], data: int, fsdp: int) -> np.ndarray:
  """Devices as [data, fsdp], those of a row close to each other.

  On TPUs by coordinates; on others by process. (`jax.make_mesh` takes each host
  with GPUs for a slice, and refuses several.) Raises UserError for TPUs that
  cannot be arranged.
  """
  if devices[0].platform != "tpu":
    order = sorted(devices, key=lambda each: (each.process_index, each.id))
    return np.array(order).reshape(data, fsdp)
  slices = len({getattr(each, "slice_index", 0) for each in devices})
  try:
    if slices > 1:
      return mesh_utils.create_hybrid_device_mesh(
        (data // slices, fsdp),
        (slices, 1),
        devices,
        allow_split_physical_axes=True,
      )
    return mesh_utils.create_device_mesh(
      (data, fsdp), devices, allow_split_physical_axes=True
    )
  except (ValueError, NotImplementedError) as error:
    raise errors.UserError(
      f"{len(devices)} TPUs cannot form a mesh of data {data} x fsdp {fsdp}"
      f" ({' '.join(str(error).split())[:150]}); try another config.mesh.fsdp"
    ) from error


def native_precision(platform: str, capability: str = "") -> tuple[str, str]:
  """The fastest precision of hardware, and why.

  Args:
    platform: JAX's name: "cpu", "gpu", "tpu".
    capability: of an NVIDIA GPU, such as "7.0"; "" of others.
  """
  if platform == "tpu":
    return "bf16", "native on TPUs"
  major = capability.split(".")[0]
  if platform in ("gpu", "cuda") and major.isdigit():
    if int(major) >= 8:
      return "bf16", f"native at compute capability {capability}"
    if int(major) == 7:
      # A V100 emulates bf16, many times slower than fp16.
      return "fp16", f"compute capability {capability} has no native bf16"
  return "fp32", "nothing shorter is native on this hardware"


def precision_here() -> tuple[str, str]:
  """`native_precision` of the devices of this process."""
  device = jax.devices()[0]
  # AMD's are names such as "gfx90a".
  capability = str(getattr(device, "compute_capability", ""))
  return native_precision(device.platform, capability)


def rows(mesh: jax.sharding.Mesh) -> jax.sharding.NamedSharding:
  """First axis split over all devices: batches."""
  return jax.NamedSharding(mesh, jax.P(AXES))


def replicated(mesh: jax.sharding.Mesh) -> jax.sharding.NamedSharding:
  """The same on every device."""
  return jax.NamedSharding(mesh, jax.P())


class Stored(NamedTuple):
  """How an array is stored: its padded shape, and its sharding."""

  shape: tuple[int, ...]
  spec: jax.P


def stored_as(path: str, shape: tuple[int, ...], fsdp: int) -> Stored:
  """How an array of the state is stored.

  Raises ValueError if no rule matches: each array needs a decision.

  Args:
    path: in the state, such as "params/head/linear0/kernel".
    shape: as its layer sees it.
    fsdp: size of that axis.
  """
  for pattern, may_split in _RULES:
    if re.search(pattern, path):
      return _split(shape, fsdp) if may_split else Stored(shape, jax.P())
  raise ValueError(f"no sharding rule in mesh.py matches {path!r}")


def layout(state: Any, mesh: jax.sharding.Mesh) -> Any:
  """Maps shapes of a state to stored shapes and shardings."""
  fsdp = mesh.shape["fsdp"]

  def stored(path, leaf):
    shape, spec = stored_as(path_of(path), leaf.shape, fsdp)
    sharding = jax.NamedSharding(mesh, spec)
    return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=sharding)

  return jax.tree.map_with_path(stored, state)


def store(tree: Any, prefix: str, mesh: jax.sharding.Mesh) -> Any:
  """Puts arrays, padded or not, onto the mesh as a state has them.

  Args:
    prefix: path of the tree in a state, such as "params".
  """

  def put(path, leaf):
    at = f"{prefix}/{path_of(path)}"
    # Idempotent: a padded shape is stored as it is.
    shape, spec = stored_as(at, leaf.shape, mesh.shape["fsdp"])
    return jax.device_put(pad(leaf, shape), jax.NamedSharding(mesh, spec))

  return jax.tree.map_with_path(put, tree)


def describe(state: Any, mesh: jax.sharding.Mesh) -> str:
  """A line for the log: which parameters are split."""
  split, whole, padded = [], [], 0
  fsdp = mesh.shape["fsdp"]
  for path, leaf in jax.tree.leaves_with_path(state.params):
    shape, spec = stored_as(path_of(path), leaf.shape, fsdp)
    (whole if spec == jax.P() else split).append(math.prod(leaf.shape))
    padded += shape != leaf.shape
  return (
    f"{len(split)} of {len(split) + len(whole)} parameters,"
    f" {sum(split) / (sum(split) + sum(whole)):.2%} of all elements, are split"
    f" over {fsdp} devices ({padded} of them padded); the other"
    f" {len(whole)} are biases, norms or kernels under {SPLIT_FROM:,} elements,"
    " and whole on each"
  )


def pad(leaf: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """Appends zeros to each dimension, up to a stored shape."""
  if leaf.shape == tuple(shape):
    return leaf
  widths = [(0, s - n) for s, n in zip(shape, leaf.shape, strict=True)]
  return jnp.pad(leaf, widths)


def whole(
  stored: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype
) -> jax.Array:
  """A kernel as its layer uses it: gathered, unpadded, in the layer's dtype.

  Gathers in the short dtype. Inside a rematerialized block the whole kernel is
  not kept. The gradient is sharded again. Needs the mesh of `jax.set_mesh`.
  """
  fsdp = jax.sharding.get_abstract_mesh().shape.get("fsdp", 1)
  spec = _split(shape, fsdp).spec
  if spec == jax.P():
    return stored.astype(dtype)
  return _gathered(stored, shape, jnp.dtype(dtype), spec)


def is_split() -> bool:
  """Whether the mesh of `jax.set_mesh` splits kernels."""
  return jax.sharding.get_abstract_mesh().shape.get("fsdp", 1) > 1


@jax.custom_vjp
def after(stored: Any, x: jax.Array) -> Any:
  """Kernels that are not used before `x` is computed.

  Without this, compilers gather kernels that two resolutions use only once, and
  keep the whole network between the passes.
  """
  return jax.lax.optimization_barrier((stored, x))[0]


after.defvjp(
  lambda stored, x: (after(stored, x), None),
  # Gradients need no such order.
  lambda _, gradients: (gradients, None),
)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _gathered(stored, shape, dtype, spec):
  short = jax.lax.with_sharding_constraint(stored.astype(dtype), spec)
  kernel = jax.lax.with_sharding_constraint(short, jax.P())
  return kernel[tuple(slice(n) for n in shape)]


def _gather(stored, shape, dtype, spec):
  # The backward pass needs only the kernel's dtype.
  return _gathered(stored, shape, dtype, spec), jnp.zeros_like(stored, shape=())


def _scatter(shape, dtype, spec, like, gradient):
  del dtype
  fsdp = jax.sharding.get_abstract_mesh().shape["fsdp"]
  gradient = pad(gradient, _split(shape, fsdp).shape)
  part = jax.lax.with_sharding_constraint(gradient, spec)
  return (part.astype(like.dtype),)


_gathered.defvjp(_gather, _scatter)


def _split(shape, fsdp):
  """The largest dimension that divides evenly, else the largest, padded."""
  if fsdp == 1 or math.prod(shape) < SPLIT_FROM:
    return Stored(tuple(shape), jax.P())
  sizes = list(enumerate(shape))
  even = [(d, size) for d, size in sizes if size % fsdp == 0]
  # Of equals, the last: output channels.
  dim = max(even or sizes, key=lambda each: (each[1], each[0]))[0]
  padded = list(shape)
  padded[dim] = -(-shape[dim] // fsdp) * fsdp
  return Stored(tuple(padded), jax.P(*(None,) * dim, "fsdp"))


def into_parts(batch: Any, parts: int) -> Any:
  """[B, ...] to [parts, B / parts, ...], each device splitting its own rows."""

  def split(x):
    x = x.reshape(_shards(), parts, -1, *x.shape[1:])
    x = x.swapaxes(0, 1).reshape(parts, -1, *x.shape[3:])
    return _constrained(x, jax.P(None, AXES))

  return jax.tree.map(split, batch)


def from_parts(batch: Any) -> Any:
  """The inverse of `into_parts`."""

  def merge(x):
    parts = x.shape[0]
    x = x.reshape(parts, _shards(), -1, *x.shape[2:])
    x = x.swapaxes(0, 1).reshape(-1, *x.shape[3:])
    return _constrained(x, jax.P(AXES))

  return jax.tree.map(merge, batch)


def _shards():
  return math.prod(jax.sharding.get_abstract_mesh().shape.values())


def _constrained(x, spec):
  if jax.sharding.get_abstract_mesh().empty:
    return x
  return jax.lax.with_sharding_constraint(x, spec)


def path_of(path: Any) -> str:
  """A JAX key path as "params/trunk/stem/kernel"."""
  return jax.tree_util.keystr(path, simple=True, separator="/")


def local_rows(mesh: jax.sharding.Mesh, batch: int) -> np.ndarray:
  """The rows of a batch that this process passes to `to_global`."""
  shards = rows(mesh).addressable_devices_indices_map((batch,)).values()
  return np.unique(np.concatenate([np.arange(batch)[at] for at in shards]))


def to_global(mesh: jax.sharding.Mesh, local: Any) -> Any:
  """Combines this process's rows of each array into a global array."""
  return jax.tree.map(
    lambda x: jax.make_array_from_process_local_data(rows(mesh), x), local
  )


def to_host(array: jax.Array) -> np.ndarray:
  """A global array, complete on every process."""
  if jax.process_count() > 1:
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))
  return np.asarray(array)
