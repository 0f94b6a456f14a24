"""Infers the network of a file from the names and shapes of its arrays."""

import re
from collections.abc import Callable
from typing import NamedTuple

from seer_jax.models import architectures
from seer_jax.runtime import errors
from seer_jax.weights import name_maps


class _Unbuilt(NamedTuple):
  """Networks that timm calls RegNets, but `regnet.RegNet` cannot build."""

  names: str  # A pattern.
  is_one: Callable[[name_maps.Shapes], bool]  # Recognizes one by its arrays.
  reason: str


_UNBUILT = (
  _Unbuilt(
    r"regnetz_[a-e]\w+|haloregnetz_\w+|nf_regnet_\w+",
    lambda shapes: any(name.startswith("stages.0.0.") for name in shapes),
    "except for its name it has little of the published RegNets",
  ),
  _Unbuilt(
    r"regnetv_\w+",
    lambda shapes: "s1.b1.norm1.weight" in shapes,
    "its blocks normalize before each convolution",
  ),
  _Unbuilt(
    r"regnetz_(005|040_h)",
    lambda shapes: "final_conv.conv.weight" in shapes,
    "it has a convolution after the last stage",
  ),
  _Unbuilt(
    r"regnety_040_sgn",
    lambda shapes: (
      "stem.bn.weight" in shapes and "stem.bn.running_mean" not in shapes
    ),
    "it has GroupNorm instead of BatchNorm",
  ),
)


def refusal(name: str) -> str:
  """Why a network of timm's cannot be built; "" if it can, or is unknown."""
  for each in _UNBUILT:
    if re.fullmatch(each.names, name):
      return each.reason
  return ""


def contents(shapes: name_maps.Shapes) -> name_maps.Contents:
  """The layout and network of arrays, from shapes by `plain` names.

  Raises UserError if they are not of a known RegNet.
  """
  for each in _UNBUILT:
    if each.is_one(shapes):
      raise errors.UserError(
        f"has a network of timm's that is not supported: {each.reason}"
      )
  for layout in name_maps.ALL:
    found = _prefix(shapes, layout)
    if found is None:
      continue
    architecture = _architecture(shapes, layout, found)
    if architecture is None:
      continue
    return _heads(shapes, name_maps.Contents(layout, found, architecture))
  names = map(errors.shown, sorted(shapes)[:3])
  some = ", ".join(names) or "none"
  raise errors.UserError(
    "has no RegNet with names of VISSL, timm, torchvision or Hugging Face;"
    f" its first arrays are {some}"
  )


def _prefix(shapes, layout):
  """The prefix of the trunk's names; None without such a trunk."""
  wanted = f"{layout.stem}.weight"
  found = [
    name.removesuffix(wanted)
    for name in shapes
    if name.endswith(wanted)
    and (name == wanted or name.removesuffix(wanted).endswith("."))
  ]
  return min(found, key=len) if found else None


def _architecture(shapes, layout, prefix):
  """Read from the shapes of kernels; None if they are not of a RegNet."""

  def shape(stage, index, name):
    theirs = (
      prefix + name_maps.block_name(layout, stage, index) + layout.inside[name]
    )
    found = shapes.get(f"{theirs}.weight", ())
    return found if len(found) == 4 else None

  depths, widths, inner, groups, squeezes = [], [], [], [], []
  stem = shapes[f"{prefix}{layout.stem}.weight"]
  width = stem[0] if len(stem) == 4 else 0
  while shape(len(depths) + 1, 0, "c"):
    stage, depth = len(depths) + 1, 0
    while last := shape(stage, depth, "c"):
      middle = shape(stage, depth, "b")
      if not middle or 0 in last + middle:
        return None
      squeeze = shape(stage, depth, "se/reduce")
      squeezes.append(squeeze[0] / width if squeeze and width else 0.0)
      depth, width = depth + 1, last[0]
    depths.append(depth)
    widths.append(width)
    inner.append(last_inner := middle[0])
    groups.append(middle[1])
    if last_inner % groups[-1]:
      return None
  if not depths:
    return None
  ratio = 0.25 if squeezes[-1] else 0.0
  linear = shape(1, 0, "shortcut") is None
  try:
    return architectures.Architecture(
      depths=tuple(depths),
      widths=tuple(widths),
      group_widths=tuple(groups),
      se_ratio=ratio,
      stem_width=stem[0],
      strides=(2,) * len(depths),
      bottleneck=inner[-1] / widths[-1],
      linear=linear,
      last_activation=linear and layout is name_maps.TIMM,
    )
  except ValueError:
    return None


def _heads(shapes, it):
  """Adds projection, prototypes and classifier, if any."""
  heads = [
    found[1]
    for name in shapes
    if (found := re.fullmatch(r"((?:.*\.)?)projection_head\.0\.weight", name))
  ]
  if it.layout.swav and not heads:
    return _probe(shapes, it)
  for name in it.layout.classifiers:
    # VISSL's have another prefix than the trunk.
    weight = shapes.get(f"{name}.weight", ())
    if len(weight) == 2:
      it = it._replace(classes=weight[0], classifier=name)
      break
  if it.layout.swav:
    it = _projection_of(shapes, it, min(heads, key=len))
  return it


def _probe(shapes, it):
  """Adds the first of VISSL's linear heads on the pooled features.

  VISSL trains several at once (`mlp`, or `eval_mlp` with a BatchNorm), on means
  over grids of several maps. The file does not give the shape of a grid: two
  cells of RG-10B are 2 x 1 in one head, 1 x 2 in another.
  """
  found = (
    re.fullmatch(r"(\d{1,3})\.(?:clf\.)?clf\.0\.weight", name)
    for name in shapes
  )
  features = it.architecture.features
  for number, name in sorted((int(one[1]), one[0]) for one in found if one):
    name = name.removesuffix(".weight")
    norm = f"{number}.channel_bn" if ".clf.clf." in name else ""
    classes, width = (*shapes[f"{name}.weight"], 0, 0)[:2]
    if width == features and not it.classes:
      it = it._replace(classes=classes, classifier=name, norm=norm)
      continue
    reason = f"it takes {width} numbers, not the {features} pooled features"
    if width == features:
      reason = f"{it.classifier} is used"
    it = it._replace(
      notes=(*it.notes, f"linear head {number} is left out: {reason}"),
      unread=(*it.unread, f"{number}."),
    )
  return it


def _projection_of(shapes, it, prefix):
  layers = sorted(
    int(found[1])
    for name, shape in shapes.items()
    if len(shape) == 2
    and (
      found := re.fullmatch(
        re.escape(prefix) + r"projection_head\.(0|[1-9]\d{0,2})\.weight", name
      )
    )
  )
  widths = [shapes[f"{prefix}projection_head.{at}.weight"][0] for at in layers]
  # The last layer of a projection has no norm.
  if f"{prefix}projection_head.{layers[-1] + 1}.running_var" in shapes:
    widths.append(0)
  counts = []
  while weight := shapes.get(f"{prefix}prototypes{len(counts)}.weight", ()):
    counts.append(weight[0])
  return it._replace(
    projection=prefix,
    hidden=tuple(widths[:-1]),
    out=widths[-1],
    batch_norm=f"{prefix}projection_head.1.running_var" in shapes,
    prototype_counts=tuple(counts),
  )
