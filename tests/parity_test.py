"""Ten optimiser steps against published SwAV, and against other meshes."""

import functools
import math
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seer_jax import config as config_lib
from seer_jax import conv, optim, recipe, tasks
from seer_jax import mesh as mesh_lib
from seer_jax import step as step_lib

STEPS = 10
BATCH = 8
FREEZE = 3
# At this rate every tensor goes at least five times the tolerance in ten steps,
# and rounding is not blown up: at 1.0, float32 may end 4e-4 away from float64
# (in the queue), at 4.8 PyTorch's own float32 ends 1e-2 away.
RATE = 0.5
LOW_RATE = 0.2

# Prototypes, BatchNorm in the head, queue, assigning crops.
CASES = {
  "one-head": ((12,), True, 16, (0, 1)),
  "two-heads": ((12, 20), True, 16, (0, 1)),
  # As SEER's largest: no BatchNorm in the head, no queue.
  "no-queue": ((12,), False, 0, (1,)),
}
every_case = pytest.mark.parametrize("case", CASES)


class Run(NamedTuple):
  """Ten steps; leaves are numpy arrays by their paths."""

  config: config_lib.ConfigDict
  model: object
  first: dict[str, np.ndarray]
  last: dict[str, np.ndarray]
  frozen: dict[str, np.ndarray]  # After the last step of frozen prototypes.
  losses: list[float]
  queue: np.ndarray | None


class Ready(tasks.SwAV):
  """SwAV on crops that are augmented already."""

  def view(self, batch, key):
    del key
    return batch["crops"]


def make_config(case: str, rate: float = RATE) -> config_lib.ConfigDict:
  prototypes, batch_norm, queue_length, assign_crops = CASES[case]
  config = config_lib.base()
  config.steps, config.batch_size = STEPS, BATCH
  config.crops.counts, config.crops.sizes = (2, 2), (16, 8)
  # Stages of 1, 1 and 2 blocks: the last one's shortcut is the identity.
  config.model.numbers = (4, 16, 16.0, 2.0, 8)
  config.model.stem_stride, config.model.strides = 1, (2, 2, 2)
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
  here = recipe.Situation(
    images=80, side=16, devices=1, accelerated=False, bf16=False, cores=2
  )
  recipe.complete(config, here)
  config_lib.check_each(config)
  config_lib.check_together(config)
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


def born(config, mesh):
  """The task and its first state, as `train.run` makes them."""
  task = Ready(config, jnp.float32)
  tx, _ = optim.make(config.optim, config.steps, config.batch_size)
  fresh = jax.jit(
    lambda: step_lib.init(task, tx, config.seed),
    out_shardings=mesh_lib.replicated(mesh),
  )
  with jax.set_mesh(mesh):
    return task, fresh()


def build(config, mesh):
  """The task, a first state and the jitted step of `train.run`."""
  # Born on one device, so that only the steps differ between meshes.
  task, now = born(config, mesh_lib.make(1))
  tx, _ = optim.make(config.optim, config.steps, config.batch_size)
  everywhere = mesh_lib.replicated(mesh)
  step = jax.jit(
    step_lib.train_step(task, tx, config),
    donate_argnums=0,
    out_shardings=everywhere,
  )
  return task, jax.device_put(now, everywhere), step


def to_device(crops, mesh):
  rows = mesh_lib.rows(mesh)
  none = np.zeros(len(crops[0]), np.float32)
  return {
    "crops": jax.device_put(list(crops), rows),
    "stand_ins": jax.device_put(none, rows),
  }


@functools.cache
def run(case: str, devices: int, rate: float = RATE) -> Run:
  config, mesh = make_config(case, rate), mesh_lib.make(devices)
  losses, frozen = [], {}
  task, now, step = build(config, mesh)
  first = by_path(now)
  with jax.set_mesh(mesh):
    for number, crops in enumerate(batches(), 1):
      now, window = step(now, to_device(crops, mesh))
      losses.append(float(window["loss"]))
      if number == FREEZE:
        frozen = by_path(now)
  queue = now.extra["queue"]
  queue = None if queue is None else np.array(queue["z_AxQxP"])
  return Run(config, task.model, first, by_path(now), frozen, losses, queue)


def published(reference, ours: Run):
  """The same steps in PyTorch, in float64; also the losses."""
  network = reference.Network(ours.model.architecture, ours.config.model)
  reference.load(network, unprefixed(ours.first))
  trainer = reference.Trainer(network.double(), ours.config)
  losses = [
    trainer.step([x.astype(np.float64) for x in crops]) for crops in batches()
  ]
  network.normalize_prototypes()  # seer_jax does so after its last step too.
  return trainer, losses


def unprefixed(leaves):
  return {path.split("/", 1)[1]: leaf for path, leaf in leaves.items()}


def distance(a: np.ndarray, b: np.ndarray) -> float:
  """The largest difference, or its share of the largest entry if greater."""
  apart = np.abs(a - b).max()
  return max(apart, apart / max(np.abs(b).max(), 1e-12))


@every_case
def test_ten_steps_equal_the_published_algorithm(reference, case):
  ours = run(case, 1)
  trainer, losses = published(reference, ours)
  np.testing.assert_allclose(ours.losses, losses, rtol=0, atol=1e-4)
  theirs = trainer.network.state_dict()
  apart = {}
  for path, leaf in unprefixed(ours.last).items():
    name, leaf = reference.locate(path, leaf)
    apart[name] = distance(leaf, theirs[name].numpy())
  if ours.queue is not None:
    apart["queue"] = distance(ours.queue, trainer.queue.z_AxQxP.numpy())
  assert not {k: v for k, v in apart.items() if v > 1e-4}
  # Nothing was left out of the comparison but PyTorch's counters.
  left = {name for name in theirs if "num_batches" not in name} - set(apart)
  assert not left


def test_larc_equals_the_published_one_also_where_norms_are_zero(reference):
  torch = reference.torch
  config, rng = make_config("one-head"), np.random.default_rng(0)
  params = {
    "usual": rng.standard_normal((5, 3), np.float32),
    "zero": np.zeros(4, np.float32),
    "resting": rng.standard_normal(6, np.float32),  # Its gradient is zero.
  }
  theirs = {name: torch.tensor(p).double() for name, p in params.items()}
  tx, _ = optim.make(config.optim, STEPS, BATCH)
  options = config.optim
  larc = reference.LarcSgd(
    theirs.values(), options.trust, options.weight_decay, options.momentum
  )
  opt_state = tx.init(params)
  for step in range(STEPS):
    grads = {
      name: rng.standard_normal(p.shape, np.float32) * (name != "resting")
      for name, p in params.items()
    }
    updates, opt_state = tx.update(grads, opt_state, params)
    params = jax.tree.map(jnp.add, params, updates)
    for name, p in theirs.items():
      p.grad = torch.tensor(grads[name]).double()
    larc.step(reference.rate_of(config, step))
  for name, p in theirs.items():
    np.testing.assert_allclose(params[name], p.numpy(), rtol=1e-5, atol=1e-6)


@every_case
def test_ten_steps_move_every_tensor_by_more_than_the_tolerance(case):
  ours = run(case, 1)
  moved = {
    path: distance(leaf, ours.first[path]) for path, leaf in ours.last.items()
  }
  assert not {path: by for path, by in moved.items() if by < 5e-4}


@every_case
def test_prototypes_rest_for_the_frozen_steps_alone(case):
  ours = run(case, 1)
  for path, leaf in ours.first.items():
    if "prototypes" in path:
      # Normalising what is normal may move the last digit.
      np.testing.assert_allclose(ours.frozen[path], leaf, rtol=1e-6, atol=1e-7)
    else:
      assert np.abs(ours.frozen[path] - leaf).max() > 0


def test_one_device_and_eight_take_the_same_ten_steps():
  # A lower rate, because the tolerance is ten times lower as well.
  one, eight = (run("one-head", devices, LOW_RATE) for devices in (1, 8))
  np.testing.assert_allclose(one.losses, eight.losses, rtol=0, atol=1e-5)
  apart = {
    path: np.abs(leaf - one.last[path]).max()
    for path, leaf in eight.last.items()
  }
  apart["queue"] = np.abs(eight.queue - one.queue).max()
  assert not {path: by for path, by in apart.items() if by > 1e-5}


def test_a_state_is_born_the_same_on_one_device_and_on_eight():
  config = make_config("one-head")
  one, eight = (
    by_path(born(config, mesh_lib.make(devices))[1]) for devices in (1, 8)
  )
  for path, leaf in one.items():
    np.testing.assert_allclose(eight[path], leaf, rtol=0, atol=1e-6)


def exchanged(text: str, devices: int) -> dict[str, int]:
  """Elements, over all devices, that each exchange of a program results in.

  Reductions are not among them: what they return is as small on many devices
  as on one.
  """
  operation = re.compile(
    r"= (.*?) (all-gather|(?:ragged-)?all-to-all|collective-permute)"
    r"(?:-start)?\("
  )
  found = {}
  for line in text.splitlines():
    if match := operation.search(line):
      shapes = re.findall(r"\w\[([\d,]*)\]", match[1])
      elements = sum(
        math.prod(int(size) for size in shape.split(",") if size)
        for shape in shapes
      )
      # The result of a gather is the whole, on each device; of others, a part.
      whole = match[2] == "all-gather"
      found[line.strip()] = elements if whole else elements * devices
  return found


def test_a_gather_is_found_in_the_text_of_a_program():
  mesh = mesh_lib.make(8)
  x = jax.device_put(np.zeros((16, 3), np.float32), mesh_lib.rows(mesh))
  gather = jax.jit(lambda x: x + 1, out_shardings=mesh_lib.replicated(mesh))
  text = gather.lower(x).compile().as_text()
  assert list(exchanged(text, 8).values()) == [48]


# The way of the grouped convolution on a CPU, and that on accelerators, which
# alone has to be kept from gathering (see conv.py).
@pytest.mark.parametrize("path", ["_merged", "_native"])
def test_eight_devices_exchange_no_activations(monkeypatch, path):
  monkeypatch.setattr(conv, "_merged", getattr(conv, path))
  config, mesh = make_config("one-head", LOW_RATE), mesh_lib.make(8)
  task, now, step = build(config, mesh)
  with jax.set_mesh(mesh):
    batch = to_device(batches()[0], mesh)
    text = step.lower(now, batch).compile().as_text()
  # The trunk's smallest map is that of the small crops' last stage, 1 x 1. The
  # largest is 128 times that; scores and the queue are smaller than either.
  smallest = BATCH * 2 * task.model.architecture.features
  found = exchanged(text, 8)
  assert found
  assert not {line: by for line, by in found.items() if by >= smallest}
