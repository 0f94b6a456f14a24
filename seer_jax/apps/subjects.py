"""What is evaluated: runs, checkpoints, weights, and two baselines."""

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from seer_jax.data.preprocessing import Preprocessing
from seer_jax.evals import feature_store
from seer_jax.models import encoder as encoder_lib
from seer_jax.runtime import errors
from seer_jax.tasks.state import key_of
from seer_jax.weights import load

_log = logging.getLogger(__name__)

# The baselines: raw pixels, and the network before training.
PIXELS, UNTRAINED = "pixels", "untrained"
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

  def apply(self, variables: Any, x_NxHxWx3: jax.Array) -> dict[str, jax.Array]:
    """`avgpool`: all pixels of an image, as one vector."""
    del variables
    return {"avgpool": x_NxHxWx3.reshape(len(x_NxHxWx3), -1)}


def opened(names: Sequence[str], seed: int) -> list[Subject]:
  """Opens what is to be evaluated, in order.

  Raises UserError if one cannot be loaded or is given twice, or "untrained" is
  given alone.

  Args:
    names: of workdirs, checkpoints or weights; "pixels"; or "untrained", which
      is the network of the first of the others, initialized with `seed`.
    seed: of that network.
  """
  twice = [name for at, name in enumerate(names) if name in names[:at]]
  if twice:
    raise errors.UserError(f"{twice[0]} is given twice; remove one")
  networks = [name for name in names if name not in (PIXELS, UNTRAINED)]
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
  elif name == UNTRAINED:
    network = _bare(reference)
    x = jnp.zeros((1, 64, 64, 3))
    key = key_of(seed, "untrained")
    variables = dict(jax.jit(network.init)(key, x))
  else:
    (network, variables), shape_of = loaded[name], name
  is_baseline = name in (PIXELS, UNTRAINED)
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
