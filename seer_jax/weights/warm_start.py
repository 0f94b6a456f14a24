"""Training from weights: what they determine of a config, and their arrays."""

import logging
from typing import Any

import jax
import ml_collections

from seer_jax.config import keys
from seer_jax.models import encoder
from seer_jax.runtime import errors
from seer_jax.runtime import mesh as mesh_lib
from seer_jax.tasks import base, state
from seer_jax.weights import lazy_weights, load

_log = logging.getLogger(__name__)


def decide(config: ml_collections.ConfigDict) -> None:
  """Sets the keys that the weights of a config determine, if it has any.

  The trunk, and by default the projection and the preprocessing. Raises
  UserError if there are no such weights, or the config describes another trunk,
  or a head that they do not have.
  """
  if not config.weights:
    return
  network = load.open_weights(config.weights).model
  arch = network.architecture
  if arch.linear or arch.bottleneck != 1:
    raise errors.UserError(
      f"config.weights={config.weights} is a RegNetZ or has wide bottlenecks:"
      " training from it is not supported; seer-jax eval is"
    )
  described = config.model.trunk or config.model.regnet or config.model.depths
  for key in ("stem_stride", "strides"):
    if config.model[key] is None:
      config.model[key] = getattr(arch, key)
  if not described:
    for key in ("depths", "widths", "group_widths", "se_ratio", "stem_width"):
      config.model[key] = getattr(arch, key)
  _check_trunk(config, arch)
  _decide_heads(config, network)
  prepared, default = network.preprocessing, keys.base()
  for key, value in (
    ("eval.resize", prepared.resize if config.eval.size is None else None),
    ("eval.size", prepared.size),
    ("eval.interpolation", prepared.interpolation),
    ("augment.mean", prepared.mean),
    ("augment.std", prepared.std),
  ):
    if value is not None and keys.get(config, key) == keys.get(default, key):
      keys.put(config, key, value)
  if config.crops.sizes is None and config.crops.counts == (1,):
    config.crops.sizes = (config.eval.size,)


def _check_trunk(config, arch):
  try:
    found = encoder.architecture(config.model)
    words = f"depths {found.depths}, widths {found.widths}"
  except errors.UserError as error:
    found, words = None, str(error)
  if found != arch:
    raise errors.UserError(
      f"config.weights={config.weights} have depths {arch.depths}, widths"
      f" {arch.widths} and strides {arch.strides}, but config.model has"
      f" {words}. Remove the keys of config.model: the weights determine them"
    )


def _decide_heads(config, network):
  head = config.model.head
  if network.hidden or network.out:
    head.hidden, head.batch_norm = tuple(network.hidden), network.batch_norm
    if network.out:
      head.out = network.out
  elif config.task == "finetune" and config.finetune.head == "swav":
    raise errors.UserError(
      f"config.weights={config.weights} have no projection, but"
      ' config.finetune.head="swav" takes its first layer; use "linear"'
    )
  if network.prototype_counts and config.model.prototypes is None:
    config.model.prototypes = tuple(network.prototype_counts)


def begin(
  fresh: state.State,
  task: base.Task,
  config: ml_collections.ConfigDict,
  mesh: jax.sharding.Mesh,
) -> state.State:
  """A fresh state with the arrays of the config's weights.

  Arrays that the weights lack, or have in another shape (a classifier of other
  labels), stay fresh, which is logged. Raises UserError if an array of the
  trunk is missing or has another shape.
  """
  if not config.weights:
    return fresh
  loaded = lazy_weights.variables(load.open_weights(config.weights), mesh)
  arrays = {
    mesh_lib.path_of(path): leaf
    for path, leaf in jax.tree.leaves_with_path(loaded)
  }
  kept: list[str] = []

  def take(tree: Any) -> Any:
    def one(path, leaf):
      name = mesh_lib.path_of(path)
      found = arrays.get(name)
      if found is not None and found.shape == leaf.shape:
        return found
      if "/trunk/" in name:
        raise errors.UserError(
          f"config.weights={config.weights}: {name} has shape"
          f" {getattr(found, 'shape', None)}, not {leaf.shape}"
        )
      kept.append(name)
      return leaf

    return jax.tree.map_with_path(one, tree)

  begun = task.with_weights(fresh, take)
  _log.info(
    "%s arrays from %s; fresh: %s",
    len(arrays),
    config.weights,
    ", ".join(kept) or "none of the network",
  )
  return begun
