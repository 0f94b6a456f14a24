"""Names of our arrays in VISSL, timm, torchvision and Hugging Face.

One table per project gives the names to read and to write; counting blocks
until one is missing gives the trunk of a file.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from seer_jax.models import architectures, encoder


@dataclasses.dataclass(frozen=True)
class Layout:
  """The names of one project."""

  title: str
  stem: str  # The stem's convolution.
  stem_norm: str  # Its normalization.
  # Prefix of a block's names, from `stage` and `number`, counted from 1,
  # `before` (the stage) and `index`, counted from 0, and `tap`.
  block: str
  inside: Mapping[str, str]  # Our names within a block to theirs.
  classifiers: tuple[str, ...]  # Names of the classifier.
  swav: bool = False  # Whether it names a projection and prototypes.


VISSL = Layout(
  title="VISSL",
  stem="_feature_blocks.conv1.stem.0",
  stem_norm="_feature_blocks.conv1.stem.1",
  block="_feature_blocks.res{tap}.block{stage}-{index}.",
  inside={
    "a": "f.a.0",
    "bn_a": "f.a.1",
    "b": "f.b.0",
    "bn_b": "f.b.1",
    "se/reduce": "f.se.excitation.0",
    "se/expand": "f.se.excitation.2",
    "c": "f.c",
    "bn_c": "f.final_bn",
    "shortcut": "proj",
    "bn_shortcut": "bn",
  },
  # The second follows a projection.
  classifiers=("0.clf.0", "1.clf.0"),
  swav=True,
)
TIMM = Layout(
  title="timm",
  stem="stem.conv",
  stem_norm="stem.bn",
  block="s{stage}.b{number}.",
  inside={
    "a": "conv1.conv",
    "bn_a": "conv1.bn",
    "b": "conv2.conv",
    "bn_b": "conv2.bn",
    "se/reduce": "se.fc1",
    "se/expand": "se.fc2",
    "c": "conv3.conv",
    "bn_c": "conv3.bn",
    "shortcut": "downsample.conv",
    "bn_shortcut": "downsample.bn",
  },
  classifiers=("head.fc",),
)
TORCHVISION = Layout(
  title="torchvision",
  stem="stem.0",
  stem_norm="stem.1",
  block="trunk_output.block{stage}.block{stage}-{index}.",
  inside={
    "a": "f.a.0",
    "bn_a": "f.a.1",
    "b": "f.b.0",
    "bn_b": "f.b.1",
    "se/reduce": "f.se.fc1",
    "se/expand": "f.se.fc2",
    "c": "f.c.0",
    "bn_c": "f.c.1",
    "shortcut": "proj.0",
    "bn_shortcut": "proj.1",
  },
  classifiers=("fc",),
)


def _hugging_face(last):
  """Numbers layers; squeeze-and-excitation is one of them."""
  return Layout(
    title="Hugging Face",
    stem="embedder.embedder.convolution",
    stem_norm="embedder.embedder.normalization",
    block="encoder.stages.{before}.layers.{index}.",
    inside={
      "a": "layer.0.convolution",
      "bn_a": "layer.0.normalization",
      "b": "layer.1.convolution",
      "bn_b": "layer.1.normalization",
      "se/reduce": "layer.2.attention.0",
      "se/expand": "layer.2.attention.2",
      "c": f"layer.{last}.convolution",
      "bn_c": f"layer.{last}.normalization",
      "shortcut": "shortcut.convolution",
      "bn_shortcut": "shortcut.normalization",
    },
    classifiers=("classifier.1",),
  )


HUGGING_FACE_Y, HUGGING_FACE_X = _hugging_face(3), _hugging_face(2)
ALL = (VISSL, TIMM, TORCHVISION, HUGGING_FACE_Y, HUGGING_FACE_X)
# Those with a config.json beside the arrays.
WITH_CONFIG = (TIMM, HUGGING_FACE_Y, HUGGING_FACE_X)
# SEER-10B's groups of blocks that were rematerialized together.
_PART = re.compile(r"\.block\d+-part\d+(?=\.)")
_COUNTER = ".num_batches_tracked"


class Contents(NamedTuple):
  """The layout and network of a file."""

  layout: Layout
  prefix: str  # Of the trunk's names.
  architecture: architectures.Architecture
  hidden: tuple[int, ...] = ()  # Widths of the projection's hidden layers.
  # Width of the projection; 0 for none, also of networks fine-tuned from hidden
  # layers, whose classifier follows these.
  out: int = 0
  batch_norm: bool = False  # Whether the projection has BatchNorm.
  projection: str = ""  # Prefix of its names.
  prototype_counts: tuple[int, ...] = ()
  classes: int = 0  # Of the classifier; 0 for none.
  classifier: str = ""
  # Name of a BatchNorm before it, VISSL's `channel_bn`; "" for none.
  norm: str = ""
  notes: tuple[str, ...] = ()  # Heads that are left out, to be printed.
  unread: tuple[str, ...] = ()  # Prefixes of their arrays.


class Pair(NamedTuple):
  """Both names of an array, and the axes of theirs in our order."""

  ours: str
  theirs: str
  axes: tuple[int, ...]


Shapes = Mapping[str, tuple[int, ...]]

_CONV = (2, 3, 1, 0)  # out, in, height, width -> height, width, in, out.
_LINEAR = (1, 0)  # out, in -> in, out.


def plain(name: str) -> str:
  """A name without parts that depend on how the network was run."""
  return _PART.sub("", name)


def is_counter(name: str) -> bool:
  """Whether it counts batches for PyTorch's BatchNorm."""
  return name.endswith(_COUNTER)


def target(title: str, network: encoder.Encoder) -> Contents:
  """The contents to write for a network: what the project has names for."""
  layout = {
    "vissl": VISSL,
    "timm": TIMM,
    "torchvision": TORCHVISION,
    "huggingface": HUGGING_FACE_Y
    if network.architecture.se_ratio
    else HUGGING_FACE_X,
  }[title]
  with_swav = layout.swav and bool(network.hidden or network.out)
  it = Contents(
    layout,
    "regnet." if title == "huggingface" and network.classes else "",
    network.architecture,
    classes=network.classes,
    classifier=layout.classifiers[with_swav] if network.classes else "",
  )
  if not with_swav:
    return it
  return it._replace(
    hidden=tuple(network.hidden),
    out=network.out,
    batch_norm=network.batch_norm,
    projection="0.",
    prototype_counts=tuple(network.prototype_counts),
  )


def pairs(it: Contents) -> Iterator[Pair]:
  """All arrays of such a file, in VISSL's order."""
  layout, arch = it.layout, it.architecture
  yield from _conv("trunk/stem", it.prefix + layout.stem)
  yield from _norm("trunk/bn_stem", it.prefix + layout.stem_norm)
  width = arch.stem_width
  for stage, depth in enumerate(arch.depths, 1):
    for index in range(depth):
      before = it.prefix + block_name(layout, stage, index)
      ours = f"trunk/stage{stage}_block{index}"
      changes = width != arch.widths[stage - 1] or (
        index == 0 and arch.strides[stage - 1] != 1
      )
      for name, theirs in layout.inside.items():
        if "shortcut" in name and (arch.linear or not changes):
          continue
        if name.startswith("se/"):
          if arch.se_ratio:
            yield from _conv(f"{ours}/{name}", before + theirs)
            yield _bias(f"{ours}/{name}", before + theirs)
        elif name.startswith("bn_"):
          yield from _norm(f"{ours}/{name}", before + theirs)
        else:
          yield from _conv(f"{ours}/{name}", before + theirs)
      width = arch.widths[stage - 1]
  yield from _projection(it)
  for number in range(len(it.prototype_counts)):
    yield Pair(
      f"params/prototypes_{number}/kernel",
      f"{it.projection}prototypes{number}.weight",
      _LINEAR,
    )
  if it.classes:
    yield from _linear("classifier", it.classifier)


def counters(it: Contents) -> Iterator[str]:
  """Names of the batch counters of PyTorch's BatchNorm."""
  for pair in pairs(it):
    if pair.theirs.endswith(".running_var"):
      yield pair.theirs.removesuffix(".running_var") + _COUNTER


def _projection(it):
  step = 3 if it.batch_norm else 2  # Linear, norm, ReLU.
  for number in range(len(it.hidden) + bool(it.out)):
    theirs = f"{it.projection}projection_head.{number * step}"
    yield from _linear(f"head/linear{number}", theirs)
    if it.batch_norm and number < len(it.hidden):
      after = f"{it.projection}projection_head.{number * step + 1}"
      yield from _norm(f"head/bn{number}", after)


def _conv(ours, theirs):
  yield Pair(f"params/{ours}/kernel", f"{theirs}.weight", _CONV)


def _bias(ours, theirs):
  return Pair(f"params/{ours}/bias", f"{theirs}.bias", (0,))


def _linear(ours, theirs):
  yield Pair(f"params/{ours}/kernel", f"{theirs}.weight", _LINEAR)
  yield _bias(ours, theirs)


def _norm(ours, theirs):
  yield Pair(f"params/{ours}/scale", f"{theirs}.weight", (0,))
  yield _bias(ours, theirs)
  yield Pair(f"batch_stats/{ours}/mean", f"{theirs}.running_mean", (0,))
  yield Pair(f"batch_stats/{ours}/var", f"{theirs}.running_var", (0,))


def block_name(layout, stage, index):
  return layout.block.format(
    stage=stage, tap=stage + 1, before=stage - 1, index=index, number=index + 1
  )
