"""Checkpoints: state and input position together, through orbax."""

import pathlib
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from seer_jax import errors, state
from seer_jax import mesh as mesh_lib


class Checkpoints:
  """The checkpoints of one workdir, written in the background.

  A checkpoint is a folder named after its step; orbax renames it into place
  when it is complete, so one that was interrupted is not there. Arrays are
  saved as the mesh stores them (see `mesh.py`), beside the shapes of those that
  it padded: so any mesh can read what any other saved.
  """

  def __init__(self, workdir: pathlib.Path, keep: int):
    self._orbax = ocp.training.Checkpointer(
      (workdir / "checkpoints").absolute(),
      save_decision_policy=ocp.training.save_decision_policies.InitialSavePolicy(),
      preservation_policy=ocp.training.preservation_policies.LatestN(keep),
      cleanup_tmp_directories=True,
    )

  def save(
    self,
    step: int,
    now: state.State,
    natural: state.State,
    position: dict[str, Any],
  ) -> None:
    """Copies the state and returns; the writing goes on behind.

    Args:
      step: names the checkpoint.
      now: the state at that step.
      natural: its shapes without padding.
      position: where the input stands, as JSON: {"samples": ...}.
    """
    if step in (found.step for found in self._orbax.checkpoints):
      return
    shapes, stored = _shapes(natural), _shapes(now)
    padded = {
      path: shape for path, shape in shapes.items() if shape != stored[path]
    }
    self._orbax.save_checkpointables_async(
      step,
      {"state": now, "position": position | {"padded": padded}},
      force=True,
    )

  def restore(
    self, abstract: state.State, natural: state.State
  ) -> tuple[state.State, dict[str, Any]] | None:
    """The newest state and its input position; None in a fresh workdir.

    Args:
      abstract: shapes, dtypes and shardings to store it in.
      natural: the shapes without padding.

    Raises:
      UserError: the checkpoint is of another network.
    """
    if self._orbax.latest is None:
      return None
    saved, position = self._saved_shapes()
    wanted = _shapes(natural)
    differing = [
      f"{path}: {saved.get(path, 'nothing')} there, {wanted.get(path)} here"
      for path in sorted(saved.keys() | wanted.keys())
      if saved.get(path) != wanted.get(path)
    ]
    if differing:
      more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
      raise errors.UserError(
        f"the checkpoint in {self._orbax.directory} is of another network:"
        f" {'; '.join(differing[:3])}{more}. Give another --workdir"
      )
    context = ocp.Context()
    # The padding of this mesh may differ from that of the saving one. All else
    # about shapes was compared above.
    context.array.loading.enable_padding_and_truncation = True
    with context:
      found = self._orbax.load_checkpointables(
        None, {"state": abstract, "position": None}
      )
    return found["state"], position

  def read(self) -> dict[str, Any]:
    """The newest state as nested dicts on one device, whatever saved it.

    Raises:
      UserError: there is no checkpoint.
    """
    if self._orbax.latest is None:
      raise errors.UserError(f"no checkpoint in {self._orbax.directory}")
    shapes, _ = self._saved_shapes()
    saved = self._orbax.checkpointables_metadata(None).metadata["state"]
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), saved
    )
    found = self._orbax.load_checkpointables(
      None, {"state": abstract, "position": None}
    )["state"]
    return jax.tree.map_with_path(
      lambda path, leaf: leaf[
        tuple(slice(n) for n in shapes[mesh_lib.path_of(path)])
      ],
      found,
    )

  def close(self) -> None:
    """Waits until everything is on disk."""
    self._orbax.close()

  def _saved_shapes(self):
    """Shapes without padding of the newest checkpoint, and its position."""
    saved = self._orbax.checkpointables_metadata(None).metadata["state"]
    position = self._orbax.load_checkpointables(None, {"position": None})[
      "position"
    ]
    padded = {path: tuple(n) for path, n in position.pop("padded").items()}
    return _shapes(saved) | padded, position


def _shapes(tree):
  return {
    mesh_lib.path_of(path): tuple(leaf.shape)
    for path, leaf in jax.tree.leaves_with_path(tree)
  }
