"""Weights of our own, for others to read: a folder with Orbax's arrays.

`model.json` says of what network they are, and how its images are prepared; the
rest is Orbax's, and readable with Orbax alone.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from seer_jax.data import preprocessing
from seer_jax.models import architectures, encoder
from seer_jax.runtime import checksums, errors, files
from seer_jax.weights import config_json

DESCRIPTION = "model.json"
_ARRAYS = "variables"


def write(
  folder: pathlib.Path, network: encoder.Encoder, tree: Mapping[str, Any]
) -> None:
  """Writes a network and its variables; complete, or not there.

  Raises UserError if something is there already, or the disk refuses, and Lost
  if the disk is full.
  """
  folder = folder.absolute()  # Orbax refuses others.
  if folder.exists():
    raise errors.UserError(f"{folder} is there already; give a new folder")
  with files.whole(folder) as part:
    part.mkdir()
    (part / DESCRIPTION).write_text(
      json.dumps(describe(network), indent=1) + "\n"
    )
    ocp.save_checkpointables(part / _ARRAYS, {"state": dict(tree)})
    checksums.seal(part)


def read(folder: pathlib.Path) -> tuple[encoder.Encoder, dict[str, Any]]:
  """A network and its variables, on one device.

  Raises UserError if a file is missing, or is not as it was written.
  """
  folder = folder.absolute()  # Orbax refuses others.
  for words in checksums.complaints(folder):
    raise errors.UserError(f"{folder} is damaged: {words}; convert it again")
  try:
    network = of_description(config_json.read(folder / DESCRIPTION))
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    words = errors.shown(f"{type(error).__name__}: {error}")
    raise errors.UserError(
      f"{folder / DESCRIPTION} describes no network ({words})"
    ) from error
  device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  saved = ocp.checkpointables_metadata(folder / _ARRAYS).metadata["state"]
  abstract = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), saved
  )
  found = ocp.load_checkpointables(folder / _ARRAYS, {"state": abstract})
  return network, found["state"]


def describe(network: encoder.Encoder) -> dict[str, Any]:
  """A network as JSON."""
  return {
    "architecture": dataclasses.asdict(network.architecture),
    "hidden": list(network.hidden),
    "out": network.out,
    "batch_norm": network.batch_norm,
    "prototype_counts": list(network.prototype_counts),
    "classes": network.classes,
    "preprocessing": dataclasses.asdict(network.preprocessing),
  }


def of_description(said: Mapping[str, Any]) -> encoder.Encoder:
  """The network that `describe` described."""
  said = {key: _tuples(value) for key, value in said.items()}
  return encoder.Encoder(
    **said
    | {
      "architecture": architectures.Architecture(**said["architecture"]),
      "preprocessing": preprocessing.Preprocessing(**said["preprocessing"]),
    }
  )


def _tuples(value):
  if isinstance(value, dict):
    return {key: _tuples(each) for key, each in value.items()}
  return tuple(value) if isinstance(value, list) else value
