"""The JSON files beside weights: Hugging Face's and timm's.

Arrays do not show an activation, a stride, or the preprocessing; these files
do. Each value is used or refused, never ignored: weights that load without an
error compute what their authors' network does.
"""

import contextlib
import dataclasses
import json
import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from seer_jax.data.preprocessing import Preprocessing
from seer_jax.models import architectures
from seer_jax.runtime import errors
from seer_jax.weights import name_maps

# Of transformers' RegNetConfig, for fields that config.json omits.
_DEFAULTS = {
  "model_type": "regnet",
  "num_channels": 3,
  "embedding_size": 32,
  "hidden_sizes": [128, 192, 512, 1088],
  "depths": [2, 6, 12, 2],
  "groups_width": 64,
  "layer_type": "y",
  "hidden_act": "relu",
  "downsample_in_first_stage": True,
}
# PIL's numbers for filters.
_FILTERS = {2: "bilinear", 3: "bicubic"}
_INTERPOLATIONS = ("bilinear", "bicubic")
# Arguments of timm's model that the shapes of arrays determine.
_TIMM_ARGUMENTS = {"num_classes", "in_chans", "global_pool"}


def read(path: pathlib.Path) -> Any:
  """The content of a JSON file; None if it does not exist.

  Raises UserError if it is damaged, or cannot be read.
  """
  try:
    with errors.reading(path):
      if not path.exists():
        return None
      return json.loads(path.read_text(encoding="utf-8"))
  except (ValueError, RecursionError) as error:
    raise errors.UserError(
      f"{path} is not JSON: {errors.shown(str(error))}; download it again"
    ) from error


def architecture(
  folder: pathlib.Path, it: name_maps.Contents
) -> architectures.Architecture:
  """The trunk of weights, as `config.json` in their folder has it.

  Raises UserError if it contradicts the arrays, or is not supported.
  """
  path = folder / "config.json"
  said = read(path)
  if said is None or it.layout not in name_maps.WITH_CONFIG:
    return it.architecture
  if not isinstance(said, dict):
    raise errors.UserError(f"{path} is not a JSON object")
  if it.layout is name_maps.TIMM:
    _check_timm(path, said, it.classes)
    return it.architecture
  return _hugging_face(path, _DEFAULTS | said, it)


def _hugging_face(path, said, it):
  arch = it.architecture
  if said["model_type"] != "regnet":
    _refuse(path, "model_type", said["model_type"], "a RegNet has 'regnet'")
  if said["hidden_act"] != "relu":
    _refuse(path, "hidden_act", said["hidden_act"], "RegNetX and Y have 'relu'")
  first = said["downsample_in_first_stage"]
  if not isinstance(first, bool):
    _refuse(path, "downsample_in_first_stage", first, "give true or false")
  if said.get("quantization_config"):
    _refuse(path, "quantization_config", "...", "it is not supported")
  groups = said["groups_width"]
  shapes = {
    "num_channels": 3,
    "embedding_size": arch.stem_width,
    "hidden_sizes": list(arch.widths),
    "depths": list(arch.depths),
    "layer_type": "y" if arch.se_ratio else "x",
  }
  for name, there in shapes.items():
    if said[name] != there:
      _refuse(path, name, said[name], f"the arrays have {there}")
  if (
    type(groups) is not int
    or groups < 1
    or arch.group_widths
    != tuple(width // max(1, width // groups) for width in arch.inner)
  ):
    _refuse(path, "groups_width", groups, f"arrays have {arch.group_widths}")
  return dataclasses.replace(
    arch,
    strides=(2 if first else 1, *arch.strides[1:]),
    # Its first stage may lack a shortcut without being of RegNetZ.
    linear=False,
  )


def _check_timm(path, said, classes):
  arguments = said.get("model_args") or {}
  if not isinstance(arguments, dict):
    _refuse(path, "model_args", arguments, "give names and values")
  unknown = set(arguments) - _TIMM_ARGUMENTS
  for name in sorted(unknown):
    _refuse(path, f"model_args.{name}", arguments[name], "it is not supported")
  pool = arguments.get("global_pool", said.get("global_pool", "avg"))
  if pool not in ("avg", ""):
    _refuse(path, "global_pool", pool, "only the average is supported")
  count = said.get("num_classes")
  if classes and count not in (None, classes):
    _refuse(path, "num_classes", count, f"the arrays have {classes}")


def _refuse(path, name, value, words):
  with contextlib.suppress(RecursionError):  # Else `shown` describes it.
    value = value if isinstance(value, str) else json.dumps(value)
  raise errors.UserError(
    f"{path} has {errors.shown(name)}={errors.shown(value)}: {words}; the"
    " weights would compute something else"
  )


def preprocessing(folder: pathlib.Path) -> Preprocessing | None:
  """The preprocessing of the weights in a folder; None if no file has it.

  Raises UserError if a file is damaged, or its preprocessing is not supported.
  """
  kinds: tuple[tuple[str, Callable[[Any], Preprocessing | None]], ...] = (
    ("config.json", _of_timm),
    ("preprocessor_config.json", _of_hugging_face),
  )
  for name, understand in kinds:
    said = read(folder / name)
    try:
      found = understand(said) if isinstance(said, dict) else None
    except (ArithmeticError, KeyError, TypeError, ValueError) as error:
      words = errors.shown(f"{type(error).__name__}: {error}")
      raise errors.UserError(
        f"{folder / name} has no valid preprocessing ({words})"
      ) from error
    if found is not None:
      return found
  return None


def _of_timm(said: Mapping[str, Any]) -> Preprocessing | None:
  said = said.get("pretrained_cfg")
  if not said:
    return None
  size = int(said["input_size"][-1])
  _one_of("interpolation", said["interpolation"], _INTERPOLATIONS)
  _one_of("crop_mode", said.get("crop_mode", "center"), ("center",))
  return Preprocessing(
    math.floor(size / said["crop_pct"]),
    size,
    said["interpolation"],
    _three(said["mean"]),
    _three(said["std"]),
  )


def _of_hugging_face(said: Mapping[str, Any]) -> Preprocessing:
  for name in ("do_resize", "do_rescale", "do_normalize"):
    _one_of(name, said.get(name, True), (True,))
  size = said["size"]
  size = int(size["shortest_edge"] if isinstance(size, dict) else size)
  share = said.get("crop_pct", 0.875) if size < 384 else 1.0
  return Preprocessing(
    int(size / share),
    size,
    _FILTERS[_one_of("resample", said["resample"], tuple(_FILTERS))],
    _three(said["image_mean"]),
    _three(said["image_std"]),
  )


def _one_of(name, value, known):
  if value not in known:
    raise ValueError(f"{name} is {errors.shown(value)}, not one of {known}")
  return value


def _three(numbers):
  red, green, blue = (float(each) for each in numbers)
  return red, green, blue
