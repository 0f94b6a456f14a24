"""Files of other projects, opened: VISSL, timm, torchvision, Hugging Face.

The trunk is read from the shapes in the file, whatever its name says. Every
array must be accounted for.
"""

import contextlib
import json
import math
import pathlib

from seer_jax.data.preprocessing import Preprocessing
from seer_jax.models import encoder
from seer_jax.runtime import errors
from seer_jax.weights import infer_model, lazy_weights, model_zoo, name_maps
from seer_jax.weights.formats import lazy_tensors, safetensors_file, torch_file

_IN_FOLDERS = (
  "model.safetensors",
  "model.safetensors.index.json",
  "pytorch_model.bin",
  "pytorch_model.bin.index.json",
)


def in_folder(folder: pathlib.Path) -> lazy_weights.Weights | None:
  """Weights with what is said beside them; None where there are none.

  Raises:
    UserError: as `in_file`.
  """
  for name in _IN_FOLDERS:
    if (folder / name).exists():
      return in_file(folder / name, _preprocessing_beside(folder))
  return None


def in_file(
  path: pathlib.Path, prepared: Preprocessing | None = None
) -> lazy_weights.Weights:
  """The weights in a file, unread.

  Args:
    path: a file that PyTorch or safetensors wrote, or an index of several.
    prepared: how images are to be prepared; None where nothing says.

  Raises:
    UserError: damaged; of no RegNet; or arrays are missing, left over, or of
      another shape than its trunk has.
  """
  found, extra = _tensors(path)
  shapes = {name: tensor.shape for name, tensor in found.items()}
  try:
    it = infer_model.contents(shapes)
  except errors.UserError as error:
    raise errors.UserError(f"{path} {error}") from error
  pairs = {pair.ours: pair for pair in name_maps.pairs(it)}
  network = _encoder(it, prepared)
  wanted = lazy_weights.expected(network)
  _compare(path, pairs, wanted, shapes)

  @contextlib.contextmanager
  def array(ours):
    pair = pairs[ours]
    with found[pair.theirs].mapped() as view:
      yield view.transpose(pair.axes)

  return lazy_weights.Weights(
    f"{it.layout.title}, {path.name}",
    network,
    {ours: wanted[ours] for ours in pairs},
    array,
    tuple(extra + [name for name in found if name_maps.is_counter(name)]),
  )


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


def _compare(path, pairs, wanted, shapes):
  """Everything must be matched; what is not is told all at once."""
  theirs = {pair.theirs for pair in pairs.values()}
  complaints = [
    f"{pair.theirs} is missing"
    for pair in pairs.values()
    if pair.theirs not in shapes
  ]
  complaints += [
    f"{name} {shapes[name]} is left over"
    for name in shapes
    if name not in theirs and not name_maps.is_counter(name)
  ]
  for ours, pair in pairs.items():
    there = shapes.get(pair.theirs)
    if there is None:
      continue
    natural = (
      tuple(there[axis] for axis in pair.axes)
      if len(there) == len(pair.axes)
      else there
    )
    if natural != wanted[ours]:
      complaints.append(
        f"{pair.theirs} is {there}, and for this trunk must be"
        f" {_as_theirs(wanted[ours], pair.axes)}"
      )
  if complaints:
    raise errors.UserError(
      f"{path} does not match its trunk: {'; '.join(complaints)}"
    )


def _as_theirs(shape, axes):
  there = [0] * len(axes)
  for ours, theirs in enumerate(axes):
    there[theirs] = shape[ours]
  return tuple(there)


def _tensors(path):
  """All arrays by plain name, and what else was in the file."""
  if path.name.endswith(".index.json"):
    return _of_index(path), []
  if path.suffix == ".safetensors":
    return _plain(path, safetensors_file.read(path)), []
  saved = torch_file.read(path)
  return _of_saved(path, saved)


def _of_index(path):
  """Hugging Face's list of which file holds which array."""
  try:
    files = json.loads(path.read_text())["weight_map"]
    names = sorted(set(files.values()))
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
    raise errors.UserError(f"{path} is no index of weights: {error}") from error
  found = {}
  for name in names:
    part = lazy_tensors.within(path.parent, name)
    found |= _tensors(part)[0]
  return found


def _of_saved(path, saved):
  """The arrays in what PyTorch saved, however deep."""
  if not isinstance(saved, dict):
    raise errors.UserError(f"{path} holds a {type(saved).__name__}, no weights")
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
    name
    for name in network
    if not isinstance(network[name], lazy_tensors.Tensor)
  ]


def _of_vissl(path, network):
  """Trunk and heads: tensors, or names of files with one tensor each."""
  heads = network.get("heads")
  both = dict(network["trunk"]) | (dict(heads) if heads else {})
  folder = path.with_suffix("")
  folder = folder.with_name(folder.name + "_layers")
  found = {}
  for name, value in both.items():
    if isinstance(value, str):
      # An absolute path of the machine that wrote it; the folder moves along.
      value = _slice(
        lazy_tensors.within(folder, value.replace("\\", "/").split("/")[-1])
      )
    found[name] = value
  return _plain(path, found), []


def _slice(path):
  saved = torch_file.read(path)
  weight = saved.get("weight") if isinstance(saved, dict) else None
  if not isinstance(weight, lazy_tensors.Tensor):
    raise errors.UserError(f"{path} holds no weight")
  return weight


def _inner(saved, names):
  for name in names:
    saved = saved.get(name) if isinstance(saved, dict) else None
  return saved if isinstance(saved, dict) else None


def _plain(path, found):
  """Arrays by plain names, and only those."""
  arrays = {}
  for name, value in found.items():
    if not isinstance(name, str) or not isinstance(value, lazy_tensors.Tensor):
      continue
    plain = name_maps.plain(name.removeprefix("module."))
    if plain in arrays:
      raise errors.UserError(f"{path} holds {plain} twice")
    arrays[plain] = value
  return arrays


def _preprocessing_beside(folder):
  """What timm's or Hugging Face's JSON beside the weights says."""
  with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
    said = json.loads((folder / "config.json").read_text())["pretrained_cfg"]
    size = int(said["input_size"][-1])
    return Preprocessing(
      math.floor(size / said["crop_pct"]),
      size,
      said["interpolation"],
      tuple(said["mean"]),
      tuple(said["std"]),
    )
  with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
    said = json.loads((folder / "preprocessor_config.json").read_text())
    size = said["size"]
    size = int(size["shortest_edge"] if isinstance(size, dict) else size)
    share = said.get("crop_pct", 0.875) if size < 384 else 1.0
    return Preprocessing(
      int(size / share),
      size,
      "bicubic" if said["resample"] == 3 else "bilinear",
      tuple(said["image_mean"]),
      tuple(said["image_std"]),
    )
  return None
