"""Writes weights in the formats of other projects, or prints what they are."""

import json
import math
import pathlib
from collections.abc import Iterable, Iterator

import numpy as np

from seer_jax.models import architectures
from seer_jax.runtime import errors, files
from seer_jax.weights import lazy_weights, load, name_maps
from seer_jax.weights.exports import check, onnx, orbax, stablehlo
from seer_jax.weights.formats import safetensors_file, torch_file

# Formats of one function with its weights: writer, reader, and whether it takes
# images of any size.
_FUNCTIONS = {
  "stablehlo": (stablehlo.serialized, check.stablehlo_of, False),
  "onnx": (onnx.serialized, check.onnx_of, True),
}
FORMATS = (
  *("vissl", "timm", "torchvision", "huggingface", "orbax"),
  *_FUNCTIONS,
)
_MODEL = "model.safetensors"  # In a folder for Hugging Face.
_FLOAT = np.dtype("<f4")
_COUNT = np.dtype("<i8")


def convert(
  opened: lazy_weights.Weights, out: pathlib.Path, to: str, checked: bool = True
) -> Iterator[str]:
  """Writes weights in another format; yields lines of a report.

  Raises UserError if the format has no such trunk, the disk refuses, or the
  written file differs, and Lost if the disk is full.

  Args:
    to: one of `FORMATS`.
    checked: compares the result with the source: arrays bit for bit, a function
      by its outputs for random images.
  """
  if to not in FORMATS:
    raise errors.UserError(f"--to={to}: use one of {', '.join(FORMATS)}")
  for path in (out, out / _MODEL):
    if any(_is(path, file) for file in opened.files):
      raise errors.UserError(
        f"OUT would overwrite {path}, which is read; give another name"
      )
  if to in _FUNCTIONS:
    yield from _to_function(opened, out, to, checked)
  elif to == "orbax":
    orbax.write(out, opened.model, lazy_weights.variables(opened))
    yield from table(opened, opened.shapes)
  else:
    yield from _to_pytorch(opened, out, to)
  if checked and to not in _FUNCTIONS:
    yield check.arrays(load.open_weights(out), opened)
  yield f"wrote {out}"


def _to_function(opened, out, to, checked):
  serialized, read, any_size = _FUNCTIONS[to]
  network, variables = opened.model, lazy_weights.variables(opened)
  found = []
  with files.whole(out) as part:
    part.write_bytes(serialized(network, variables))
    if checked:
      found.append(check.function(read(part), network, variables, any_size))
  # The outputs of a function do not depend on prototypes.
  used = [path for path in opened.shapes if "/prototypes_" not in path]
  yield from table(opened, used)
  yield from found


def _is(path, file):
  return path.exists() and path.samefile(file)


def _to_pytorch(opened, out, to):
  network = opened.model
  _check(network, to)
  it = name_maps.target(to, network)
  pairs = {pair.theirs: pair for pair in name_maps.pairs(it)}
  shapes = {
    theirs: tuple(
      np.array(opened.shapes[pair.ours])[np.argsort(pair.axes)].tolist()
    )
    for theirs, pair in pairs.items()
  }
  counters = list(name_maps.counters(it))

  def array_of(theirs):
    if theirs not in pairs:
      return np.zeros((), _COUNT)
    pair = pairs[theirs]
    with opened.array(pair.ours) as view:
      return np.ascontiguousarray(
        view.transpose(np.argsort(pair.axes)), dtype=_FLOAT
      )

  entries = [
    torch_file.Entry(name, shape, _FLOAT) for name, shape in shapes.items()
  ]
  entries += [torch_file.Entry(name, (), _COUNT) for name in counters]
  if to in ("vissl", "torchvision"):
    saved = {entry.name: entry for entry in entries}
    if to == "vissl":
      saved = _vissl(saved)
    torch_file.write(out, saved, array_of)
  else:
    file = out
    if to == "huggingface":
      file = out / _MODEL
      _describe(network, out)
    safetensors_file.write(file, entries, array_of, {"format": "pt"})
  yield from table(opened, [pair.ours for pair in pairs.values()])


def _check(network, to):
  """Refuses networks that the project cannot describe."""
  arch = network.architecture
  group = max(arch.group_widths)
  groups = tuple(min(group, width) for width in arch.inner)
  bare = to != "vissl" and network.hidden and not network.out
  odd = {
    "strides other than 2": arch.stem_stride != 2
    # Hugging Face's first stage may have either.
    or set(arch.strides[to == "huggingface" :]) != {2}
    or arch.strides[0] not in (1, 2),
    "hidden layers before the classifier": bare and network.classes,
    "the blocks of RegNetZ": arch.linear
    and to in ("torchvision", "huggingface"),
    "an activation behind RegNetZ's last stage": arch.last_activation
    and to != "timm",
    "no activation behind RegNetZ's last stage": arch.linear
    and not arch.last_activation
    and to == "timm",
    f"group widths {arch.group_widths}": groups != arch.group_widths
    and to == "huggingface",
    f"a squeeze of {arch.se_ratio}": arch.se_ratio not in (0, 0.25)
    and to == "huggingface",
  }
  if any(odd.values()):
    words = ", ".join(name for name, there in odd.items() if there)
    raise errors.UserError(
      f"{to} has no RegNet with {words}; --to orbax keeps everything"
    )


def _vissl(flat):
  """Nests arrays as VISSL's consolidated checkpoints do."""
  heads = ("projection_head.", "prototypes", "clf.")
  network = {
    "heads": {
      name: entry
      for name, entry in flat.items()
      if name.split(".", 1)[1].startswith(heads)
    }
  }
  network["trunk"] = {
    name: entry for name, entry in flat.items() if name not in network["heads"]
  }
  return {
    "type": "consolidated",
    "classy_state_dict": {"base_model": {"model": network}},
  }


def _describe(network, folder):
  """Writes Hugging Face's two JSON files."""
  arch, prepared = network.architecture, network.preprocessing
  config = {
    "architectures": [
      "RegNetForImageClassification" if network.classes else "RegNetModel"
    ],
    "model_type": "regnet",
    "depths": list(arch.depths),
    "hidden_sizes": list(arch.widths),
    "groups_width": max(arch.group_widths),
    "embedding_size": arch.stem_width,
    "layer_type": "y" if arch.se_ratio else "x",
    "hidden_act": "relu",
    "num_channels": 3,
    "downsample_in_first_stage": arch.strides[0] == 2,
    "num_labels": network.classes or 2,
    "torch_dtype": "float32",
  }
  images = {
    "image_processor_type": "ConvNextImageProcessor",
    "do_resize": True,
    "do_normalize": True,
    "size": {"shortest_edge": prepared.size},
    "crop_pct": prepared.size / prepared.resize,
    "resample": 3 if prepared.interpolation == "bicubic" else 2,
    "image_mean": list(prepared.mean),
    "image_std": list(prepared.std),
  }
  for name, values in (
    ("config.json", config),
    ("preprocessor_config.json", images),
  ):
    files.write_text(folder / name, json.dumps(values, indent=2) + "\n")


def table(
  opened: lazy_weights.Weights, kept: Iterable[str] | None = None
) -> Iterator[str]:
  """Describes weights part by part, and which arrays were kept, if any."""
  arch = opened.model.architecture
  name = architectures.name_of(arch)
  yield f"{opened.origin}: {name}, {arch.features} features"
  parts: dict[str, list[str]] = {}
  for path in opened.shapes:
    parts.setdefault(path.split("/")[1], []).append(path)
  yield f"{'part':16} {'arrays':>8} {'numbers':>16}  "
  for part, paths in parts.items():
    count = sum(math.prod(opened.shapes[path]) for path in paths)
    fate = ""
    if kept is not None:
      mapped = set(kept).issuperset(paths)
      fate = "mapped" if mapped else "dropped: the format has no name for it"
    yield f"{part:16} {len(paths):8} {count:16,}  {fate}"
  if opened.dropped:
    names = sorted({name.rsplit(".", 1)[-1] for name in opened.dropped})
    words = f"dropped: {', '.join(names[:4])}"
    yield f"{'else':16} {len(opened.dropped):8} {'':16}  {words}"
  yield from opened.notes
  yield "left over: nothing"
  prepared = opened.model.preprocessing
  yield (
    f"images: shorter side {prepared.resize} ({prepared.interpolation}), centre"
    f" {prepared.size}, mean {prepared.mean}, std {prepared.std}"
  )
