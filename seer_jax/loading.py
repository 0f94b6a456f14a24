"""`load(name or path) -> (model, variables)`: weights from anywhere."""

import pathlib
from typing import Any

import jax

from seer_jax import (
  checkpoint,
  errors,
  exports,
  family,
  foreign,
  published,
  weights,
)
from seer_jax import config as config_lib
from seer_jax import model as model_lib
from seer_jax.preprocessing import Preprocessing


def load(
  name_or_path: str | pathlib.Path, mesh: jax.sharding.Mesh | None = None
) -> tuple[model_lib.Encoder, dict[str, Any]]:
  """A network and its variables.

      model, variables = seer_jax.load("regnety_320.seer")
      x = model.preprocessing(["a.jpg", "b.jpg"])
      features_NxD = model.apply(variables, x)["avgpool"]

  Args:
    name_or_path: a published name (`seer_32`, `seer_256_in1k`, timm's
      `regnety_320.seer`, a repository on Hugging Face's hub); a file of VISSL,
      timm, torchvision or Hugging Face, or a folder with one; the workdir of a
      run; or what `seer_jax.convert --to orbax` wrote.
    mesh: to spread the arrays over, stored as a run does (`mesh.make`). None
      puts them on one device.

  Returns:
    The model, with the `preprocessing` that belongs to the weights, and
    `{"params": ..., "batch_stats": ...}` in float32.

  Raises:
    UserError: nothing of that name; damaged; of no RegNet; or arrays are
      missing, left over, or of another shape than the network's.
  """
  found = open_weights(name_or_path)
  return found.model, weights.variables(found, mesh)


def open_weights(name_or_path: str | pathlib.Path) -> weights.Weights:
  """As `load`, without reading any array."""
  path = pathlib.Path(name_or_path).expanduser()
  if path.exists():
    return _opened(path)
  it = published.find(str(name_or_path))
  if it is None:
    raise errors.UserError(
      f"there is no file {path}, and no weights are published under that name;"
      f" SEER's are {', '.join(published.SEER)}"
    )
  return _checked(_opened(published.fetched(it)), it)


def _checked(opened, it):
  """Refuses weights of another trunk than their name says."""
  if it.trunk:
    wanted = family.MODELS[it.trunk]
    found = opened.model.architecture
    if family.name_of(found) != it.trunk:
      raise errors.UserError(
        f"{it.name} should hold {it.trunk}, of depths {wanted.depths} and"
        f" widths {wanted.widths}; the file holds {family.name_of(found)}, of"
        f" depths {found.depths} and widths {found.widths}. To use it as that,"
        " give the file's path"
      )
  if it.preprocessing is None:
    return opened
  return opened._replace(
    model=opened.model.clone(preprocessing=it.preprocessing)
  )


def _opened(path):
  if path.is_file():
    return foreign.in_file(path)
  if (path / exports.DESCRIPTION).exists():
    return weights.in_memory(f"an export, {path}", *exports.read(path))
  if (path / "config.json").exists() and (path / "checkpoints").is_dir():
    return _of_run(path)
  found = foreign.in_folder(path)
  if found is not None:
    return found
  raise errors.UserError(
    f"{path} holds neither weights (model.safetensors, pytorch_model.bin), nor"
    f" a run (config.json, checkpoints/), nor an export ({exports.DESCRIPTION})"
  )


def _of_run(workdir):
  """The newest checkpoint of a run of our own."""
  config = config_lib.of_run(workdir)
  saved = checkpoint.Checkpoints(workdir / "checkpoints").read()
  trained = model_lib.create(config)
  network = model_lib.Encoder(
    trained.architecture,
    trained.hidden,
    trained.out,
    trained.batch_norm,
    trained.prototype_counts,
    preprocessing=Preprocessing(
      config.eval.resize,
      config.eval.size,
      config.eval.interpolation,
      tuple(config.augment.mean),
      tuple(config.augment.std),
    ),
  )
  tree = {kind: saved[kind] for kind in ("params", "batch_stats")}
  return weights.in_memory(f"a run, {workdir}", network, tree)
