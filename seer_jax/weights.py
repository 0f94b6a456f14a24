"""Weights from anywhere: `load(name or path) -> (model, variables)`.

VISSL's `.torch` files, timm's, torchvision's and Hugging Face's files, exports
and runs of our own. The trunk is read from the shapes in the file, whatever its name
says; arrays are read one by one, so that a file may be as large as memory.
"""

import contextlib
import json
import math
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from seer_jax import (
  checkpoint,
  errors,
  exports,
  family,
  layouts,
  published,
  safetensors_files,
  tensors,
  torch_files,
)
from seer_jax import mesh as mesh_lib
from seer_jax import model as model_lib
from seer_jax.preprocessing import Preprocessing

_SHOWN = 12  # Names in an error; the rest are counted.


class Weights(NamedTuple):
  """Opened, not yet read.

  Attributes:
    origin: whose format it is, for people.
    model: the network that they belong to.
    shapes: of all arrays, by path ("params/trunk/stem/kernel").
    array: lends an array, read-only, in our order of axes.
    dropped: names in the file that a network has no use for.
  """

  origin: str
  model: model_lib.Encoder
  shapes: Mapping[str, tuple[int, ...]]
  array: Callable[[str], contextlib.AbstractContextManager[np.ndarray]]
  dropped: tuple[str, ...] = ()


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
  return found.model, variables(found, mesh)


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
    # Waited for: only then may the file's pages go.
    whole = np.array(view, np.float32, order="C")
    return jax.block_until_ready(jnp.asarray(whole))
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


def open_weights(name_or_path: str | pathlib.Path) -> Weights:
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


def _checked(weights, it):
  """Refuses weights of another trunk than their name says."""
  if it.trunk:
    wanted = family.MODELS[it.trunk]
    found = weights.model.architecture
    if wanted != found:
      raise errors.UserError(
        f"{it.name} should hold {it.trunk}, of depths {wanted.depths} and widths"
        f" {wanted.widths}; the file holds {family.name_of(found)}, of depths"
        f" {found.depths} and widths {found.widths}. To use it as that, give"
        " the file's path"
      )
  if it.preprocessing is None:
    return weights
  return weights._replace(
    model=weights.model.clone(preprocessing=it.preprocessing)
  )


def _opened(path):
  if path.is_file():
    return _of_file(path, Preprocessing())
  if (path / exports.DESCRIPTION).exists():
    return _of_export(path)
  if (path / "config.json").exists() and (path / "checkpoints").is_dir():
    return _of_run(path)
  for name in (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
  ):
    if (path / name).exists():
      return _of_file(path / name, _preprocessing_beside(path))
  raise errors.UserError(
    f"{path} holds neither weights (model.safetensors, pytorch_model.bin), nor a"
    f" run (config.json, checkpoints/), nor an export ({exports.DESCRIPTION})"
  )


def _of_file(path, prepared):
  """VISSL's, timm's, torchvision's or Hugging Face's names."""
  found, extra = _tensors(path)
  shapes = {name: tensor.shape for name, tensor in found.items()}
  try:
    it = layouts.contents(shapes)
  except errors.UserError as error:
    raise errors.UserError(f"{path} {error}") from error
  pairs = {pair.ours: pair for pair in layouts.pairs(it)}
  network = _encoder(it, prepared)
  wanted = expected(network)
  _compare(path, pairs, wanted, shapes)

  @contextlib.contextmanager
  def array(ours):
    pair = pairs[ours]
    with found[pair.theirs].mapped() as view:
      yield view.transpose(pair.axes)

  return Weights(
    f"{it.layout.title}, {path.name}",
    network,
    {ours: wanted[ours] for ours in pairs},
    array,
    tuple(extra + [name for name in found if layouts.is_counter(name)]),
  )


def _encoder(it, prepared):
  if it.classes and prepared == Preprocessing() and it.layout is layouts.VISSL:
    prepared = published.FINE_TUNED
  return model_lib.Encoder(
    it.architecture,
    hidden=it.hidden,
    out=it.out,
    batch_norm=it.batch_norm,
    prototype_counts=it.prototype_counts,
    classes=it.classes,
    preprocessing=prepared,
  )


def expected(network: model_lib.Encoder) -> dict[str, tuple[int, ...]]:
  """Shapes of all variables of a network, by path; nothing is computed."""
  abstract = jax.eval_shape(
    lambda: network.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
  )
  return {
    mesh_lib.path_of(path): tuple(leaf.shape)
    for path, leaf in jax.tree.leaves_with_path(abstract)
  }


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
    if name not in theirs and not layouts.is_counter(name)
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
    more = len(complaints) - _SHOWN
    raise errors.UserError(
      f"{path} does not match its trunk: {'; '.join(complaints[:_SHOWN])}"
      + (f"; and {more} more" if more > 0 else "")
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
    return _plain(path, safetensors_files.read(path)), []
  saved = torch_files.read(path)
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
    part = tensors.within(path.parent, name)
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
    name for name in network if not isinstance(network[name], tensors.Tensor)
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
        tensors.within(folder, value.replace("\\", "/").split("/")[-1])
      )
    found[name] = value
  return _plain(path, found), []


def _slice(path):
  saved = torch_files.read(path)
  weight = saved.get("weight") if isinstance(saved, dict) else None
  if not isinstance(weight, tensors.Tensor):
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
    if not isinstance(name, str) or not isinstance(value, tensors.Tensor):
      continue
    plain = layouts.plain(name.removeprefix("module."))
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
  return Preprocessing()


def _of_run(workdir):
  """The newest checkpoint of a run of our own."""
  said = json.loads((workdir / "config.json").read_text())
  config = ml_collections.ConfigDict(said)
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
  return in_memory(f"a run, {workdir}", network, tree)


def _of_export(folder):
  return in_memory(f"an export, {folder}", *exports.read(folder))


def in_memory(
  origin: str, network: model_lib.Encoder, tree: Mapping[str, Any]
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
