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

# Names of no weights: raw pixels, and the network as it begins.
PIXELS, UNTRAINED = "pixels", "untrained"
# Larger pictures are shrunk before their pixels are features.
_PIXEL_SIDE = 32


@dataclasses.dataclass(frozen=True)
class Subject:
  """An encoder with its variables.

  Attributes:
    name: as the user gave it; unique in a table.
    weights: that training begins from; "" for a baseline.
    shape_of: weights whose network it has; "" for pixels.
    encoder: an `evals.features.Encoder`.
    variables: of it.
    fingerprint: of the variables.
  """

  name: str
  weights: str
  shape_of: str
  encoder: Any
  variables: Any
  fingerprint: str


@dataclasses.dataclass(frozen=True)
class _Pixels:
  """Normalised pixels of small pictures as features."""

  preprocessing: Preprocessing

  def apply(self, variables: Any, x_NxHxWx3: jax.Array) -> dict[str, jax.Array]:
    """`avgpool`: all pixels of an image, as one vector."""
    del variables
    return {"avgpool": x_NxHxWx3.reshape(len(x_NxHxWx3), -1)}


def opened(names: Sequence[str], seed: int) -> list[Subject]:
  """Opens what is to be evaluated, in order.

  Args:
    names: of workdirs, checkpoints, weights; "pixels"; "untrained", which is
      the network of the first of the others, as drawn with `seed`.
    seed: of that network.

  Raises:
    UserError: one cannot be loaded, is named twice, or "untrained" stands
      alone.
  """
  twice = [name for at, name in enumerate(names) if name in names[:at]]
  if twice:
    raise errors.UserError(f"{twice[0]} is named twice; leave one out")
  networks = [name for name in names if name not in (PIXELS, UNTRAINED)]
  if UNTRAINED in names and not networks:
    raise errors.UserError(
      "untrained is the network of other weights before training; name these"
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
  """The trunk and projection; a classifier of random weights says nothing."""
  return network.clone(classes=0)


def _small(reference):
  """How pictures become few enough pixels."""
  side = _PIXEL_SIDE
  if reference is not None:
    side = min(side, reference.preprocessing.size)
    whole = reference.preprocessing
    if whole.size == side:
      return whole
  return Preprocessing(side, side)


def is_classifier(subject: Subject) -> bool:
  """Whether its network has logits of its own."""
  return bool(getattr(subject.encoder, "classes", 0))


def check_classes(subject: Subject, labels: Sequence[str]) -> None:
  """Refuses a classifier of other labels than those it is tested on.

  Raises:
    UserError: says how many both have.
  """
  classes = subject.encoder.classes
  if classes != len(labels):
    some = ", ".join(errors.shown(name) for name in labels[:3])
    raise errors.UserError(
      f"{subject.name} classifies {classes} labels, but the test images have"
      f" {len(labels)} ({some}, ...); give the data that it was trained for, or"
      " leave out --evals accuracy"
    )
