"""What is evaluated: runs, checkpoints, weights, and three baselines."""

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from seer_jax.apps.embedding import perceptual_hash
from seer_jax.config import resolved
from seer_jax.data import sources
from seer_jax.data.preprocessing import Preprocessing
from seer_jax.data.published import imagenet
from seer_jax.evals import classes, feature_store
from seer_jax.models import encoder as encoder_lib
from seer_jax.runtime import errors, files
from seer_jax.tasks.state import key_of
from seer_jax.weights import load

_log = logging.getLogger(__name__)

# The baselines: raw pixels, a perceptual hash, and the network before training.
PIXELS, HASH, UNTRAINED = "pixels", "phash", "untrained"
WITHOUT_TRUNK = (PIXELS, HASH)
# Pictures are shrunk to this side before their pixels are features.
_PIXEL_SIDE = 32


@dataclasses.dataclass(frozen=True)
class Subject:
  """An encoder with its variables."""

  name: str  # As the user gave it; unique in a table.
  weights: str  # That training starts from; "" for a baseline.
  shape_of: str  # Weights with the same network; "" for pixels.
  encoder: Any  # An `evals.features.Encoder`.
  variables: Any
  fingerprint: str


@dataclasses.dataclass(frozen=True)
class _Pixels:
  """Normalized pixels of small pictures as features."""

  preprocessing: Preprocessing
  whole_views = True  # Retrieval gives it its own view.

  def apply(self, variables: Any, x_NxHxWx3: jax.Array) -> dict[str, jax.Array]:
    """`avgpool`: all pixels of an image, as one vector."""
    del variables
    return {"avgpool": x_NxHxWx3.reshape(len(x_NxHxWx3), -1)}


@dataclasses.dataclass(frozen=True)
class _Bits:
  """A view of 8 x 8 pixels, black or white: the bits of a perceptual hash."""

  size: int = 8

  def view(self, image_HxWx3: np.ndarray) -> np.ndarray:
    number = perceptual_hash.perceptual_hash(image_HxWx3)
    bits = np.frombuffer(number.to_bytes(8, "big"), np.uint8)
    bits_8x8 = np.unpackbits(bits).reshape(self.size, self.size)
    return np.repeat(255 * bits_8x8[..., None], 3, 2)

  def normalize(self, x: Any) -> Any:
    return x / np.float32(127.5) - 1


@dataclasses.dataclass(frozen=True)
class _Hash:
  """Bits of a perceptual hash as features: their cosines rank by distance."""

  preprocessing: _Bits = _Bits()
  whole_views = True

  def apply(self, variables: Any, x_NxHxWx3: jax.Array) -> dict[str, jax.Array]:
    """`avgpool`: 64 numbers, 1 or -1."""
    del variables
    return {"avgpool": x_NxHxWx3[..., 0].reshape(len(x_NxHxWx3), -1)}


def opened(names: Sequence[str], seed: int) -> list[Subject]:
  """Opens what is to be evaluated, in order.

  Raises UserError if one cannot be loaded or is given twice, or "untrained" is
  given alone.

  Args:
    names: of workdirs, checkpoints or weights; "pixels", "phash"; or
      "untrained", the network of the first of the others, initialized with
      `seed`.
    seed: of that network.
  """
  twice = [name for at, name in enumerate(names) if name in names[:at]]
  if twice:
    raise errors.UserError(f"{twice[0]} is given twice; remove one")
  baselines = (*WITHOUT_TRUNK, UNTRAINED)
  networks = [name for name in names if name not in baselines]
  if UNTRAINED in names and not networks:
    raise errors.UserError(
      "untrained is the network of other weights before training; give those"
      " too: seer-jax eval runs/photos untrained"
    )
  loaded = {name: load.load(name) for name in networks}
  reference = loaded[networks[0]][0] if networks else None
  return [
    _subject(name, loaded, reference, networks[:1], seed) for name in names
  ]


def _subject(name, loaded, reference, first, seed):
  shape_of = "".join(first)
  if name == PIXELS:
    network, variables = _Pixels(_small(reference)), {}
    shape_of = ""
  elif name == HASH:
    network, variables, shape_of = _Hash(), {}, ""
  elif name == UNTRAINED:
    network = _bare(reference)
    x = jnp.zeros((1, 64, 64, 3))
    key = key_of(seed, "untrained")
    variables = dict(jax.jit(network.init)(key, x))
  else:
    (network, variables), shape_of = loaded[name], name
  is_baseline = name in (*WITHOUT_TRUNK, UNTRAINED)
  return Subject(
    name=name,
    weights="" if is_baseline else name,
    shape_of=shape_of,
    encoder=network,
    variables=variables,
    fingerprint=feature_store.fingerprint(variables),
  )


def _bare(network: encoder_lib.Encoder):
  """The trunk and projection, without the random classifier."""
  return network.clone(classes=0)


def _small(reference):
  """A preprocessing that leaves few enough pixels."""
  side = _PIXEL_SIDE
  if reference is not None:
    side = min(side, reference.preprocessing.size)
    whole = reference.preprocessing
    if whole.size == side:
      return whole
  return Preprocessing(side, side)


def is_classifier(subject: Subject) -> bool:
  """Whether its network has logits."""
  return bool(getattr(subject.encoder, "classes", 0))


def class_names(
  config: ml_collections.ConfigDict, subject: Subject, labels: Sequence[str]
) -> Sequence[str]:
  """Names of a classifier's classes; () if their numbers are the labels'.

  They are those of `config.eval.class_names`; of the images that a run trained
  on; or, of 1,000 classes, ImageNet's. Labels with none of these names are
  numbers, if there are as many. Raises UserError if the file has another number
  of names.
  """
  count, path = subject.encoder.classes, config.eval.class_names
  if path:
    names = classes.read_names(path)
    if len(names) != count:
      raise errors.UserError(
        f"{path} has {len(names)} names, but {subject.name} has {count} classes"
      )
    return names
  names = _trained_on(subject)
  if len(names) != count and count == len(imagenet.classes()):
    names = imagenet.classes()
  if len(names) != count:
    return ()
  parts = {part for label in labels for part in label.split("|")}
  are_known = parts & set(names) or all(part.isdigit() for part in parts)
  return names if are_known or len(labels) != count else ()


def _trained_on(subject):
  """Labels of the images that a run was trained on; () if unknown."""
  workdir = files.user_path(subject.weights or ".")
  workdir = workdir.parent.parent if workdir.name.isdigit() else workdir
  if not (workdir / "config.json").is_file():
    return ()
  try:
    config = resolved.of_run(workdir)
    return sources.open_source(config.data.train).label_names
  except errors.UserError as error:
    _log.info("the classes of %s have no names: %s", subject.name, error)
    return ()


def check_classes(subject: Subject, labels: Sequence[str]) -> None:
  """Refuses a classifier whose labels are not those of the test images.

  Raises:
    UserError: says how many each has.
  """
  classes = subject.encoder.classes
  if classes != len(labels):
    some = ", ".join(errors.shown(name) for name in labels[:3])
    raise errors.UserError(
      f"{subject.name} classifies {classes} labels, but the test images have"
      f" {len(labels)} ({some}, ...); test on the data that it was trained for,"
      " or leave out --evals accuracy"
    )
