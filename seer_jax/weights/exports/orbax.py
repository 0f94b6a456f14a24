"""Weights as a folder with Orbax's arrays.

`model.json` describes the network and its preprocessing; the rest is readable
with Orbax alone.
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
  """Writes a network and its variables, completely or not at all.

  Raises UserError if the folder exists, or the disk refuses, and Lost if it is
  full.
  """
  folder = folder.absolute()  # Orbax refuses others.
  if folder.exists():
    raise errors.UserError(f"{folder} already exists; give a new folder")
  files.remove_parts(folder.parent, folder.name)
  with files.whole(folder) as part:
    part.mkdir()
    (part / DESCRIPTION).write_text(
      json.dumps(describe(network), indent=1) + "\n"
    )
    ocp.save_checkpointables(part / _ARRAYS, {"state": dict(tree)})
    checksums.seal(part)


def read(folder: pathlib.Path) -> tuple[encoder.Encoder, dict[str, Any]]:
  """A network and its variables, on one device.

  Raises UserError if a file is missing or damaged.
  """
  folder = folder.absolute()  # Orbax refuses others.
  for words in checksums.complaints(folder):
    raise errors.UserError(f"{folder} is damaged: {words}; convert it again")
  try:
    network = of_description(config_json.read(folder / DESCRIPTION))
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    words = errors.shown(f"{type(error).__name__}: {error}")
    raise errors.UserError(
      f"{folder / DESCRIPTION} does not describe a network ({words})"
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
  names = ("hidden", "out", "batch_norm", "prototype_counts", "classes")
  return {name: getattr(network, name) for name in names} | {
    "architecture": dataclasses.asdict(network.architecture),
    "preprocessing": dataclasses.asdict(network.preprocessing),
  }


def of_description(said: Mapping[str, Any]) -> encoder.Encoder:
  """The network of a `describe`."""
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
