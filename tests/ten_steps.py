"""Ten optimiser steps of a small SwAV, on any mesh: what tests compare."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from seer_jax.config import auto, keys, validate
from seer_jax.runtime import mesh as mesh_lib
from seer_jax.tasks import swav
from seer_jax.training import optim
from seer_jax.training import step as step_lib

STEPS = 10
BATCH = 8
FREEZE = 3
# At this rate every tensor goes at least five times the tolerance in ten steps,
# and rounding is not blown up: at 1.0, float32 may end 4e-4 away from float64
# (in the queue), at 4.8 PyTorch's own float32 ends 1e-2 away.
RATE = 0.5
LOW_RATE = 0.2

# Prototypes, BatchNorm in the head, queue, assigning crops. The first has the
# deepest trunk, of a block that changes its shape and one that does not.
CASES = {
  "one-head": ((12,), True, 16, (0, 1)),
  "two-heads": ((12, 20), True, 16, (0, 1)),
  # As SEER's largest: no BatchNorm in the head, no queue.
  "no-queue": ((12,), False, 0, (1,)),
}
# A trunk of one block, for what does not depend on the trunk.
SMALL = {"model.regnet": (1, 16, 16.0, 2.0, 8), "model.strides": (2,)}


class Run(NamedTuple):
  """Ten steps; leaves are numpy arrays by their paths."""

  config: keys.ConfigDict
  model: object
  first: dict[str, np.ndarray]
  last: dict[str, np.ndarray]
  frozen: dict[str, np.ndarray]  # After the last step of frozen prototypes.
  losses: list[float]
  queue: np.ndarray | None


class Ready(swav.SwAV):
  """SwAV on crops that are augmented already."""

  def view(self, batch):
    return [crops.astype(self.dtype) for crops in batch["crops"]]


def make_config(case: str, rate: float = RATE, **changes) -> keys.ConfigDict:
  prototypes, batch_norm, queue_length, assign_crops = CASES[case]
  config = keys.base()
  config.steps, config.batch_size = STEPS, BATCH
  config.crops.counts, config.crops.sizes = (2, 2), (16, 8)
  # Stages of 1 and 2 blocks: the last one's shortcut is the identity.
  config.model.regnet = (3, 16, 16.0, 2.5, 8)
  config.model.stem_stride, config.model.strides = 2, (2, 2)
  config.model.head.hidden, config.model.head.out = (32,), 16
  config.model.head.batch_norm = batch_norm
  config.model.prototypes = prototypes
  config.swav.assign_crops = assign_crops
  config.swav.freeze_steps = FREEZE
  config.swav.queue_length, config.swav.queue_start = queue_length, 2
  config.optim.lr, config.optim.lr_batch = rate, BATCH
  config.optim.warmup_fraction = 3 / STEPS
  # A bias in front of BatchNorm has no gradient but rounding noise, which LARC
  # would make a step of. More decay than noise, and the step is determined.
  config.optim.weight_decay = 1e-3
  config.log.every = 1
  if case != "one-head":
    changes = SMALL | changes
  config.update_from_flattened_dict(changes)
  here = auto.RunContext(
    images=80,
    side=16,
    devices=1,
    platform="cpu",
    precision=("fp32", "a test"),
    cores=2,
  )
  auto.complete(config, here)
  validate.check_each(config)
  validate.check_together(config)
  return config


def batches() -> list[tuple[np.ndarray, ...]]:
  rng = np.random.default_rng(0)
  return [
    tuple(
      rng.standard_normal((BATCH, 2, size, size, 3), np.float32)
      for size in (16, 8)
    )
    for _ in range(STEPS)
  ]


def by_path(state) -> dict[str, np.ndarray]:
  tree = {"params": state.params, "stats": state.batch_stats}
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): np.array(leaf)
    for path, leaf in jax.tree.leaves_with_path(tree)
  }


def build(config, mesh):
  """The task and its programs, as `run.run` makes them."""
  dtype = {"fp32": jnp.float32, "fp16": jnp.float16}[config.precision]
  task = Ready(config, jnp.dtype(dtype))
  tx, _ = optim.make(config.optim, config.steps, config.batch_size)
  return task, step_lib.build(task, tx, config, mesh)


def born(config, mesh):
  """The first state."""
  with jax.set_mesh(mesh):
    return build(config, mesh)[1].init()


def placed(now, programs, mesh):
  """A state from any mesh, as these programs want it."""
  parts = {
    name: mesh_lib.store(getattr(now, name), name, mesh)
    for name in ("params", "opt_state")
  }
  rest = jax.device_put(
    now.replace(params=None, opt_state=None), mesh_lib.replicated(mesh)
  )
  return rest.replace(**parts)


def to_device(crops, mesh):
  rows = mesh_lib.rows(mesh)
  none = np.zeros(len(crops[0]), np.float32)
  return {
    "crops": jax.device_put(list(crops), rows),
    "replacements": jax.device_put(none, rows),
  }


@functools.cache
def _first(case, **changes):
  """The first state, on the host; neither mesh nor rate change it."""
  return jax.device_get(born(make_config(case, **changes), mesh_lib.make(1)))


@functools.cache
def run(
  case: str,
  data: int,
  rate: float = RATE,
  fsdp: int = 1,
  steps: int = STEPS,
  **changes,
) -> Run:
  """Ten steps on a mesh (or fewer), from a state born on one device."""
  config = make_config(case, rate, **changes)
  now = _first(
    case,
    **{
      key: value
      for key, value in changes.items()
      if key.startswith(("model.", "precision", "loss_scale."))
    },
  )
  mesh = mesh_lib.make(data, fsdp)
  task, programs = build(config, mesh)
  first = by_path(now)
  now = placed(now, programs, mesh)
  losses, frozen = [], {}
  with jax.set_mesh(mesh):
    for number, crops in enumerate(batches()[:steps], 1):
      now, window = programs.step(now, to_device(crops, mesh))
      losses.append(float(window["loss"]))
      if number == FREEZE:
        frozen = by_path(now)
  queue = now.extra["queue"]
  queue = None if queue is None else np.array(queue["z_AxQxP"])
  last = {
    path: leaf[tuple(slice(n) for n in first[path].shape)]
    for path, leaf in by_path(now).items()
  }
  return Run(config, task.model, first, last, frozen, losses, queue)


def distance(a: np.ndarray, b: np.ndarray) -> float:
  """The largest difference, or its share of the largest entry if greater."""
  apart = np.abs(a - b).max()
  return max(apart, apart / max(np.abs(b).max(), 1e-12))
