"""Weights: a network, and its arrays, wherever they lie.

They are lent one by one, so that what is loaded or converted may be as large as
memory.
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
  """Opened, not yet read."""

  origin: str  # Whose format it is, for people.
  model: encoder.Encoder  # The network that they belong to.
  # Of all arrays, by path ("params/trunk/stem/kernel").
  shapes: Mapping[str, tuple[int, ...]]
  # Lends an array, read-only, in our order of axes.
  array: Callable[[str], contextlib.AbstractContextManager[np.ndarray]]
  # Names in the file that a network has no use for.
  dropped: tuple[str, ...] = ()
  files: tuple[pathlib.Path, ...] = ()  # That arrays are read from.
  notes: tuple[str, ...] = ()  # What is in the file and is not read, in words.


def in_memory(
  origin: str, network: encoder.Encoder, tree: Mapping[str, Any]
) -> Weights:
  """Weights of variables that are there already."""
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
  # As many images as a mesh that is set can divide; shapes do not depend on it.
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
  """Reads all arrays of opened weights, one at a time."""
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
    # On a CPU this array becomes JAX's own; no second one is made.
    return jax.block_until_ready(jax.device_put(whole, may_alias=True))
  stored, spec = mesh_lib.place(path, view.shape, mesh.shape["fsdp"])

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
  """Room for floats that begins at a multiple of 64 bytes, as XLA wants it."""
  count = math.prod(shape)
  room = np.empty(count + 16, np.float32)
  skip = -(room.ctypes.data // 4) % 16
  return room[skip : skip + count].reshape(shape)
