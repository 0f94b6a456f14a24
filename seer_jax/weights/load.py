"""`load(name or path) -> (model, variables)`: weights from anywhere."""

import pathlib
from typing import Any

import jax

from seer_jax.config import resolved
from seer_jax.models import architectures, encoder
from seer_jax.runtime import errors, files
from seer_jax.tasks import finetune
from seer_jax.weights import checkpoint, import_torch, lazy_weights, model_zoo
from seer_jax.weights.exports import orbax


def load(
  name_or_path: str | pathlib.Path, mesh: jax.sharding.Mesh | None = None
) -> tuple[encoder.Encoder, dict[str, Any]]:
  """A network and its variables.

      model, variables = seer_jax.load("regnety_320.seer")
      x = model.preprocessing(["a.jpg", "b.jpg"])
      features_NxD = model.apply(variables, x)["avgpool"]

  Raises UserError if nothing has that name, the file is damaged or not of a
  RegNet, or arrays are missing, unknown, or of another shape than the
  network's.

  Args:
    name_or_path: a published name (`seer_32`, `seer_256_in1k`, timm's
      `regnety_320.seer`, a repository on Hugging Face's hub); a file of VISSL,
      timm, torchvision or Hugging Face, or its folder; the workdir of a run, or
      one of its checkpoints; or a folder of `seer-jax convert --to orbax`.
    mesh: distributes the arrays as a run does (`mesh.make`); None puts them on
      one device.

  Returns:
    The model, with the `preprocessing` of the weights, and `{"params": ...,
    "batch_stats": ...}` in float32.
  """
  found = open_weights(name_or_path)
  return found.model, lazy_weights.variables(found, mesh)


def open_weights(name_or_path: str | pathlib.Path) -> lazy_weights.Weights:
  """`load` without reading any array."""
  path = files.user_path(str(name_or_path))
  try:
    if path.exists():
      return _opened(path)
  except PermissionError as error:
    raise errors.UserError(
      f"cannot read {error.filename or path}: {error.strerror}"
    ) from error
  it = model_zoo.find(str(name_or_path))
  if it is None:
    raise errors.UserError(
      f"there is no file {path}, and no published weights have that name;"
      f" SEER's are {', '.join(model_zoo.SEER)}"
    )
  return _checked(_opened(model_zoo.fetched(it)), it)


def _checked(opened, it):
  """Refuses weights of another trunk than their name means."""
  if it.trunk:
    wanted = architectures.MODELS[it.trunk]
    found = opened.model.architecture
    name = architectures.name_of(found)
    if name != it.trunk:
      raise errors.UserError(
        f"{it.name} must be {it.trunk}, with depths {wanted.depths} and widths"
        f" {wanted.widths}, but the file has {name}, with depths {found.depths}"
        f" and widths {found.widths}. To use those, give the path of the file"
      )
  if it.preprocessing is None:
    return opened
  return opened._replace(
    model=opened.model.clone(preprocessing=it.preprocessing)
  )


def _opened(path):
  if path.is_file():
    return import_torch.in_file(path)
  if (path / orbax.DESCRIPTION).exists():
    return lazy_weights.in_memory(f"an export, {path}", *orbax.read(path))
  if (path / "config.json").exists() and (path / "checkpoints").is_dir():
    return _of_run(path)
  if _is_checkpoint(path):
    return _of_run(path.parent.parent, int(path.name))
  found = import_torch.in_folder(path)
  if found is not None:
    return found
  raise errors.UserError(
    f"{path} has neither weights (model.safetensors, pytorch_model.bin), nor a"
    f" run (config.json, checkpoints/), nor an export ({orbax.DESCRIPTION})"
  )


def _is_checkpoint(path):
  """Whether it is WORKDIR/checkpoints/STEP."""
  in_run = path.parent.name == "checkpoints" and path.name.isdigit()
  return in_run and (path.parent.parent / "config.json").exists()


def _of_run(workdir, step=None):
  """A checkpoint of a run, by default the newest."""
  config = resolved.of_run(workdir)
  if config.task == "probe":
    raise errors.UserError(
      f"{workdir} trained linear heads on {config.weights}; give those weights"
    )
  saved = checkpoint.Checkpoints(workdir / "checkpoints").read(step)
  network, averaged = encoder.of_images(config), None
  if config.task == "finetune":
    network = finetune.network(config)
    averaged = (saved["extra"] or {}).get("ema")
  tree = {
    kind: dict((averaged or saved)[kind]) for kind in ("params", "batch_stats")
  }
  tree["params"].pop("online", None)  # A probe, not a part of the network.
  return lazy_weights.in_memory(f"a run, {workdir}", network, tree)
