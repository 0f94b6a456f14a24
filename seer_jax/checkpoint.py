"""Checkpoints: state and input position together, through orbax."""

import pathlib
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from seer_jax import errors, state


class Checkpoints:
  """The checkpoints of one workdir, written in the background.

  A checkpoint is a folder named after its step; orbax renames it into place
  when it is complete, so one that was interrupted is not there.
  """

  def __init__(self, workdir: pathlib.Path, keep: int):
    self._orbax = ocp.training.Checkpointer(
      (workdir / "checkpoints").absolute(),
      save_decision_policy=ocp.training.save_decision_policies.InitialSavePolicy(),
      preservation_policy=ocp.training.preservation_policies.LatestN(keep),
      cleanup_tmp_directories=True,
    )

  def save(self, step: int, now: state.State, position: dict[str, Any]) -> None:
    """Copies the state and returns; the writing goes on behind.

    Args:
      step: names the checkpoint.
      now: the state at that step.
      position: where the input stands, as JSON: {"samples": ...}.
    """
    if step in (found.step for found in self._orbax.checkpoints):
      return
    self._orbax.save_checkpointables_async(
      step, {"state": now, "position": position}, force=True
    )

  def restore(
    self, abstract: state.State
  ) -> tuple[state.State, dict[str, Any]] | None:
    """The newest state and its input position; None in a fresh workdir.

    Args:
      abstract: shapes, dtypes and shardings wanted.
    """
    if self._orbax.latest is None:
      return None
    found = self._orbax.load_checkpointables(
      None, {"state": abstract, "position": None}
    )
    return found["state"], found["position"]

  def read(self) -> dict[str, Any]:
    """The newest state as nested dicts on one device, whatever saved it.

    Raises:
      UserError: there is no checkpoint.
    """
    if self._orbax.latest is None:
      raise errors.UserError(f"no checkpoint in {self._orbax.directory}")
    saved = self._orbax.checkpointables_metadata(None).metadata["state"]
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return self._orbax.load_checkpointables(
      None, {"state": abstract_of(saved, device), "position": None}
    )["state"]

  def close(self) -> None:
    """Waits until everything is on disk."""
    self._orbax.close()


def abstract_of(tree: Any, sharding: jax.sharding.Sharding) -> Any:
  """Shapes and dtypes of a tree, to be placed by `sharding`."""
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
  )
