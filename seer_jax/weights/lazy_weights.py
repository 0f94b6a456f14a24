"""Weights: a network and its arrays, read one by one.

So weights as large as memory can be loaded or converted.
"""

import contextlib
import math
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from seer_jax.models import encoder
from seer_jax.runtime import mesh as mesh_lib


class Weights(NamedTuple):
  """Opened weights, not yet read."""

  origin: str  # Format and path, to be printed.
  model: encoder.Encoder
  # By path ("params/trunk/stem/kernel").
  shapes: Mapping[str, tuple[int, ...]]
  # Maps an array of a path, read-only, with our order of axes.
  array: Callable[[str], contextlib.AbstractContextManager[np.ndarray]]
  dropped: tuple[str, ...] = ()  # Other names in the file.
  files: tuple[pathlib.Path, ...] = ()
  notes: tuple[
    str, ...
  ] = ()  # What is in the file but left out, to be printed.


def in_memory(
  origin: str, network: encoder.Encoder, tree: Mapping[str, Any]
) -> Weights:
  """Weights of variables in memory."""
  arrays = {
    mesh_lib.path_of(path): leaf
    for path, leaf in jax.tree.leaves_with_path(dict(tree))
  }
  wanted = expected(network)

  @contextlib.contextmanager
  def array(path) -> Iterator[np.ndarray]:
    yield np.asarray(arrays[path])

  return Weights(
    origin, network, {path: wanted[path] for path in arrays}, array
  )


def expected(network: encoder.Encoder) -> dict[str, tuple[int, ...]]:
  """Shapes of all variables of a network, by path; nothing is computed."""
  # A mesh that is set must divide the images; shapes do not depend on them.
  images = max(1, jax.sharding.get_abstract_mesh().size)
  abstract = jax.eval_shape(
    lambda: network.init(jax.random.key(0), jnp.zeros((images, 64, 64, 3)))
  )
  return {
    mesh_lib.path_of(path): tuple(leaf.shape)
    for path, leaf in jax.tree.leaves_with_path(abstract)
  }


def variables(
  weights: Weights, mesh: jax.sharding.Mesh | None = None
) -> dict[str, Any]:
  """Reads all arrays, one at a time."""
  tree: dict[str, Any] = {}
  for path in weights.shapes:
    *parents, leaf = path.split("/")
    branch = tree
    for name in parents:
      branch = branch.setdefault(name, {})
    with weights.array(path) as view:
      branch[leaf] = _put(path, view, mesh)
  return tree


def _put(path, view, mesh):
  if mesh is None:
    whole = _aligned(view.shape)
    np.copyto(whole, view)
    # On CPUs JAX takes this array without a copy.
    return jax.block_until_ready(jax.device_put(whole, may_alias=True))
  stored, spec = mesh_lib.stored_as(path, view.shape, mesh.shape["fsdp"])

  def part(index):
    sizes = [
      len(range(*where.indices(n)))
      for where, n in zip(index, stored, strict=True)
    ]
    piece = np.zeros(sizes, np.float32)
    own = view[index]
    piece[tuple(slice(n) for n in own.shape)] = own
    return piece

  sharding = jax.NamedSharding(mesh, spec)
  return jax.block_until_ready(
    jax.make_array_from_callback(stored, sharding, part)
  )


def _aligned(shape):
  """Uninitialized floats, aligned to 64 bytes as XLA requires."""
  count = math.prod(shape)
  room = np.empty(count + 16, np.float32)
  skip = -(room.ctypes.data // 4) % 16
  return room[skip : skip + count].reshape(shape)
