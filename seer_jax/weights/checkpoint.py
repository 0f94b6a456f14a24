"""Checkpoints of state and progress; Orbax writes the arrays.

Each process writes its own arrays; `checkpoint_folder` does the rest.
"""

import concurrent.futures
import logging
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from orbax.checkpoint import v1 as ocp

from seer_jax.runtime import distributed, errors, host
from seer_jax.runtime import mesh as mesh_lib
from seer_jax.tasks import state as state_lib
from seer_jax.weights import checkpoint_folder

_log = logging.getLogger(__name__)

# Orbax's threads log tracebacks of errors that we log in one line.
logging.getLogger("absl").addFilter(
  lambda record: not (record.exc_info and "orbax" in record.pathname)
)

_SLOW = 10  # Seconds; a longer wait for the previous save is a warning.
_TIMEOUT = 24 * 3600  # Seconds of a save; the watchdog ends a stuck one.
# Names of arrays in older checkpoints.
_RENAMED = {
  "streak": "nonfinite_steps",
  "window/stand_ins": "window/replacements",
}


class Checkpoints:
  """The checkpoints of one folder, written in the background.

  Arrays are saved as the mesh stores them (see `mesh.py`), with the shapes of
  those that it padded, so any mesh can read them.

  Attributes:
    folder: the checkpoints as files.
    newest: step of the newest known to be on disk; 0 before any.
  """

  def __init__(
    self, folder: pathlib.Path, keep: ml_collections.ConfigDict | None = None
  ):
    """Takes a folder, and `config.checkpoint`; None keeps all."""
    self.folder = checkpoint_folder.CheckpointFolder(folder, keep)
    self._waits = keep is not None and keep.wait
    # By default Orbax gives up a save after 20 minutes, and reports it late.
    self._context = ocp.Context()
    self._context.asynchronous.timeout_secs = _TIMEOUT
    self._writer = concurrent.futures.ThreadPoolExecutor(1)
    self._writing: concurrent.futures.Future[None] | None = None
    self._failure = ""
    self.newest = 0

  def save(
    self,
    step: int,
    state: state_lib.State,
    unpadded: state_lib.State,
    progress: dict[str, Any],
  ) -> None:
    """Copies the state and returns; writes it in the background.

    First waits for the previous save; with `checkpoint.wait` also for this one.
    `failure` reports errors.

    Args:
      unpadded: shapes of the state without padding.
      progress: of the run, as JSON.
    """
    self.wait()
    shapes, stored = _shapes(unpadded), _shapes(state)
    padded = {
      path: shape for path, shape in shapes.items() if shape != stored[path]
    }
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    part, obstacle = self.folder.begin(step, size)
    if distributed.any_of(bool(obstacle)):
      self.fail(obstacle)
      return
    try:
      with self._context:
        response = ocp.save_checkpointables_async(part, {"state": state})
    except Exception as error:  # Orbax raises whatever its layers raise.
      self.fail(self.folder.reason(error))
      return
    self._writing = self._writer.submit(
      self._finish, response, step, part, progress | {"padded": padded}
    )
    if self._waits:
      self.wait()

  def _finish(self, response, step, part, progress):
    try:
      response.result()
      self.folder.publish(part, step, progress)
      self.newest = step
    except Exception as error:
      self.fail(self.folder.reason(error))
      self.folder.abandon(part)
      return
    self.folder.prune()
    # A save frees a third of the process's memory, which glibc would hold.
    host.give_back_memory()

  def wait(self) -> None:
    """Waits until nothing is being written."""
    if self._writing is not None:
      began = time.monotonic()
      self._writing.result()
      self._writing = None
      waited = time.monotonic() - began
      if waited > _SLOW:
        _log.warning(
          "waited %.0f s for the previous checkpoint: the disk of %s is slow;"
          " raise config.checkpoint.every, or put the workdir on a faster disk",
          waited,
          self.folder.path,
        )

  def fail(self, reason: str) -> None:
    """Records a failed save."""
    self._failure = reason

  def failure(self) -> str:
    """Why the last save failed, reported once; "" if it did not (yet)."""
    reason, self._failure = self._failure, ""
    return reason

  def restore(
    self,
    abstract: state_lib.State,
    unpadded: state_lib.State,
    wanted: Callable[[int], bool] = lambda step: True,
  ) -> tuple[state_lib.State, dict[str, Any]] | None:
    """State and progress of the newest intact checkpoint; None without any.

    Renames newer ones that are damaged. Raises UserError if it is of another
    network, or all are damaged.

    Args:
      abstract: shapes, dtypes and shardings to restore to.
      unpadded: the shapes without padding.
      wanted: which steps to consider.
    """
    self.wait()
    damaged = []
    for step in self._newest_first(wanted):
      damage = self.folder.damage(step)
      if not damage:
        found = self._load(step, abstract, unpadded)
        if _is_finite(found[0]):
          for each in damaged:
            self.folder.set_aside(*each)
          self.newest = step
          return found
        damage = "it has values that are not finite"
      damaged.append((step, damage))
    if damaged:
      step, damage = damaged[0]
      raise errors.UserError(
        f"all checkpoints in {self.folder.path} are damaged; of step {step}:"
        f" {damage}. Put a copy back, or remove them to start again"
      )
    return None

  def _newest_first(self, wanted) -> Iterator[int]:
    """Steps as the primary process sees them, the same on all."""
    steps = list(filter(wanted, self.folder.steps()))
    while True:
      step = distributed.from_primary(steps.pop() if steps else -1)
      if step < 0:
        return
      yield step

  def _load(self, step, abstract, unpadded):
    folder = self.folder.of(step)
    progress = self.folder.progress(step)
    saved = ocp.checkpointables_metadata(folder).metadata["state"]
    _compare(folder, _shapes(saved) | _padded_shapes(progress), unpadded)
    del progress["padded"]
    context = ocp.Context()
    # Meshes may pad differently; the shapes without padding are equal.
    context.array.loading.enable_padding_and_truncation = True
    with context:
      found = ocp.load_checkpointables(
        folder, {"state": _like(saved, abstract)}
      )
    return _like(abstract, found["state"]), progress

  def read(self, step: int | None = None) -> dict[str, Any]:
    """A state as nested dicts on one device, by default the newest.

    Raises UserError if there is no such checkpoint.
    """
    self.wait()
    step = max(self.folder.steps(), default=None) if step is None else step
    folder = self.folder.of(step)
    if step is None or not folder.exists():
      raise errors.UserError(
        f"there is no checkpoint in {self.folder.path}; train first"
      )
    saved = ocp.checkpointables_metadata(folder).metadata["state"]
    shapes = _shapes(saved) | _padded_shapes(self.folder.progress(step))
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), saved
    )
    found = ocp.load_checkpointables(folder, {"state": abstract})["state"]
    return jax.tree.map_with_path(
      lambda path, leaf: leaf[tuple(slice(n) for n in shapes[_name_of(path)])],
      found,
    )

  def close(self) -> None:
    """Waits until everything is on disk."""
    self._writer.shutdown()


def _compare(folder, saved, unpadded):
  """Refuses a checkpoint of another network."""
  wanted = _shapes(unpadded)
  differing = [
    f"{path}: {saved.get(path, 'nothing')} there,"
    f" {wanted.get(path, 'nothing')} here"
    for path in sorted(saved.keys() | wanted.keys())
    if saved.get(path) != wanted.get(path)
  ]
  if differing:
    more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
    raise errors.UserError(
      f"the checkpoint {folder} is of another network:"
      f" {'; '.join(differing[:3])}{more}. Give another --workdir"
    )


@jax.jit
def _all_finite(tree):
  floats = [
    leaf
    for leaf in jax.tree.leaves(tree)
    if jnp.issubdtype(leaf.dtype, jnp.inexact)
  ]
  return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in floats]))


def _is_finite(state):
  learned = state.params, state.batch_stats, state.opt_state, state.extra
  return bool(np.asarray(_all_finite(learned)))


def _padded_shapes(progress):
  return {path: tuple(shape) for path, shape in progress["padded"].items()}


def _name_of(path):
  name = mesh_lib.path_of(path)
  return _RENAMED.get(name, name)


def _by_path(tree):
  return {_name_of(path): x for path, x in jax.tree.leaves_with_path(tree)}


def _like(tree, other):
  """The leaves of another tree, by name, in the structure of this one."""
  leaves = _by_path(other)
  return jax.tree.map_with_path(lambda path, _: leaves[_name_of(path)], tree)


def _shapes(tree):
  return {path: tuple(x.shape) for path, x in _by_path(tree).items()}
