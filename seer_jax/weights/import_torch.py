"""Opens files of other projects: VISSL, timm, torchvision, Hugging Face.

The trunk is inferred from the shapes in the file, whatever its name. Every
array must be accounted for.
"""

import contextlib
import pathlib

import numpy as np

from seer_jax.models import encoder
from seer_jax.runtime import errors
from seer_jax.weights import (
  config_json,
  infer_model,
  lazy_weights,
  model_zoo,
  name_maps,
)
from seer_jax.weights.formats import lazy_tensors, safetensors_file, torch_file

_MOST_COMPLAINTS = 20
_EPSILON = 1e-5  # Of VISSL's `channel_bn`.
_IN_FOLDERS = (
  "model.safetensors",
  "model.safetensors.index.json",
  "pytorch_model.bin",
  "pytorch_model.bin.index.json",
)


def in_folder(folder: pathlib.Path) -> lazy_weights.Weights | None:
  """Weights and the configuration beside them; None if there are none.

  Raises UserError as `in_file`.
  """
  for name in _IN_FOLDERS:
    if (folder / name).exists():
      return in_file(folder / name)
  return None


def in_file(path: pathlib.Path) -> lazy_weights.Weights:
  """The weights in a file, unread.

  Raises UserError if it is damaged or not of a RegNet, or arrays are missing,
  unknown, or of another shape than its trunk has.

  Args:
    path: a file that PyTorch or safetensors wrote, or an index of several. If
      it is named as on the hub, the JSON files beside it are read.
  """
  found, extra = _tensors(path)
  shapes = {name: tensor.shape for name, tensor in found.items()}
  try:
    it = infer_model.contents(shapes)
  except errors.UserError as error:
    raise errors.UserError(f"{path} {error}") from error
  prepared = None
  if path.name in _IN_FOLDERS:
    it = it._replace(architecture=config_json.architecture(path.parent, it))
    prepared = config_json.preprocessing(path.parent)
  pairs = {pair.ours: pair for pair in name_maps.pairs(it)}
  network = _encoder(it, prepared)
  wanted = lazy_weights.expected(network)
  unread = [name for name in shapes if name.startswith(it.unread)]
  norm = {
    name: f"{it.norm}.{name}"
    for name in ("weight", "bias", "running_mean", "running_var")
    if it.norm
  }
  rest = {name: shapes[name] for name in shapes.keys() - unread}
  _compare(path, pairs, wanted, rest, norm.values())

  @contextlib.contextmanager
  def array(ours):
    pair = pairs[ours]
    with found[pair.theirs].mapped() as view:
      mine = view.transpose(pair.axes)
      if norm and ours.startswith("params/classifier/"):
        mine = _behind_norm(found, it, norm, mine)
      yield mine

  return lazy_weights.Weights(
    f"{it.layout.title}, {path.name}",
    network,
    {ours: wanted[ours] for ours in pairs},
    array,
    tuple(extra + [name for name in found if name_maps.is_counter(name)]),
    tuple({tensor.storage.path for tensor in found.values()}),
    it.notes,
  )


def _behind_norm(found, it, norm, mine):
  """Kernel or bias of a linear layer with the norm before it folded in."""
  with contextlib.ExitStack() as lent:

    def read(name):
      return np.array(lent.enter_context(found[name].mapped()), np.float32)

    scale, shift, mean, var = (read(name) for name in norm.values())
    factor = scale / np.sqrt(var + np.float32(_EPSILON))
    if mine.ndim == 2:
      return mine * factor[:, None]
    return mine + read(f"{it.classifier}.weight") @ (shift - mean * factor)


def _encoder(it, prepared):
  if prepared is None:
    tuned = it.classes and it.layout is name_maps.VISSL
    prepared = model_zoo.FINE_TUNED if tuned else model_zoo.SEER_FEATURES
  return encoder.Encoder(
    it.architecture,
    hidden=it.hidden,
    out=it.out,
    batch_norm=it.batch_norm,
    prototype_counts=it.prototype_counts,
    classes=it.classes,
    preprocessing=prepared,
  )


def _compare(path, pairs, wanted, shapes, norm):
  """Lists everything that does not match in one error."""
  theirs = dict.fromkeys([pair.theirs for pair in pairs.values()] + [*norm])
  complaints = [
    f"{errors.shown(name)} is missing" for name in theirs if name not in shapes
  ]
  complaints += [
    f"{errors.shown(name)} {shapes[name]} is unknown"
    for name in shapes
    if name not in theirs and not name_maps.is_counter(name)
  ]
  for ours, pair in pairs.items():
    there = shapes.get(pair.theirs)
    if there is None:
      continue
    required = tuple(
      wanted[ours][axis] for axis in np.argsort(pair.axes).tolist()
    )
    if there != required:
      complaints.append(
        f"{errors.shown(pair.theirs)} is {there}, but this trunk needs"
        f" {required}"
      )
  if complaints:
    more = len(complaints) - _MOST_COMPLAINTS
    if more > 0:
      complaints[_MOST_COMPLAINTS:] = [f"and {more} more"]
    raise errors.UserError(
      f"{path} does not match its trunk: {'; '.join(complaints)}"
    )


def _tensors(path):
  """All arrays by plain name, and the names of everything else."""
  if path.name.endswith(".index.json"):
    return _of_index(path), []
  return _of_one(path)


def _of_one(path):
  """Reads a file by its first bytes: its suffix may be wrong."""
  claims = path.suffix == ".safetensors" and not torch_file.is_one(path)
  if safetensors_file.is_one(path) or claims:
    return _plain(path, safetensors_file.read(path)), []
  return _of_saved(path, torch_file.read(path))


def _of_index(path):
  """Hugging Face's index of which file has which array."""
  said = config_json.read(path)
  files = said.get("weight_map") if isinstance(said, dict) else None
  if not isinstance(files, dict):
    raise errors.UserError(f"{path} is not an index of weights: no weight_map")
  for name in files.values():
    if not isinstance(name, str) or name.endswith(".json"):
      raise errors.UserError(
        f"{path} names {errors.shown(name)}, which is not a file of arrays"
      )
  found = {}
  for name in sorted(set(files.values())):
    found |= _of_one(lazy_tensors.within(path.parent, name))[0]
  return found


def _of_saved(path, saved):
  """The arrays in a saved object, however deep."""
  if not isinstance(saved, dict):
    raise errors.UserError(f"{path} has {errors.shown(saved)}, not weights")
  if saved.get("type") == "shard_list":
    raise errors.UserError(
      f"{path} lists shards of the training job's devices; make one file of it"
      " with VISSL's extra_scripts/convert_sharded_checkpoint.py -t sliced"
    )
  network = saved
  for names in (("classy_state_dict", "base_model", "model"), ("layers",)):
    inner = _inner(saved, names)
    if inner is not None:
      network = inner
  if "trunk" in network:
    return _of_vissl(path, network)
  for name in ("state_dict", "model", "model_state_dict"):
    inner = _inner(network, (name,))
    network = network if inner is None else inner
  return _plain(path, network), [
    errors.shown(name)
    for name in network
    if not isinstance(network[name], lazy_tensors.Tensor)
  ]


def _of_vissl(path, network):
  """Trunk and heads: tensors, or names of files with one tensor each."""
  both = {}
  for part in ("trunk", "heads"):
    arrays = network.get(part) or {}
    if not isinstance(arrays, dict):
      raise errors.UserError(
        f"{path} has {errors.shown(arrays)} as its {part}, not named arrays"
      )
    both |= arrays
  folder = path.with_suffix("")
  folder = folder.with_name(folder.name + "_layers")
  found = {}
  for name, value in both.items():
    if isinstance(value, str):
      # An absolute path of another machine; the folder is beside the file.
      value = _slice(
        lazy_tensors.within(folder, value.replace("\\", "/").split("/")[-1])
      )
    found[name] = value
  return _plain(path, found), []


def _slice(path):
  saved = torch_file.read(path)
  weight = saved.get("weight") if isinstance(saved, dict) else None
  if not isinstance(weight, lazy_tensors.Tensor):
    raise errors.UserError(f"{path} has no array named weight")
  return weight


def _inner(saved, names):
  for name in names:
    saved = saved.get(name) if isinstance(saved, dict) else None
  return saved if isinstance(saved, dict) else None


def _plain(path, found):
  """Only arrays, by plain name."""
  arrays = {}
  for name, value in found.items():
    if not isinstance(name, str) or not isinstance(value, lazy_tensors.Tensor):
      continue
    plain = name_maps.plain(name.removeprefix("module."))
    if plain in arrays:
      raise errors.UserError(f"{path} has {errors.shown(plain)} twice")
    arrays[plain] = value
  return arrays
