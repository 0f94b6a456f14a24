"""Ten optimiser steps against published SwAV, and against other meshes."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ten_steps import (
  BATCH,
  CASES,
  LOW_RATE,
  SMALL,
  STEPS,
  Run,
  batches,
  born,
  build,
  by_path,
  distance,
  make_config,
  run,
  to_device,
)

from seer_jax.models import cpu_kernels, grouped_conv
from seer_jax.runtime import mesh as mesh_lib
from seer_jax.training import optim

every_case = pytest.mark.parametrize("case", CASES)


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
    updates, opt_state = tx.update(grads, opt_state, params, step=step)
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


def test_a_state_is_born_the_same_on_one_device_and_on_eight():
  config = make_config("one-head", **SMALL)
  one, eight = (
    by_path(born(config, mesh_lib.make(devices))) for devices in (1, 8)
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


# The ways of the grouped convolution on a CPU, with kernels and without, and
# that on accelerators, which alone has to be kept from gathering (see
# grouped_conv.py).
@pytest.mark.parametrize("path", ["_on_cpu", "_merged", "_native"])
def test_eight_devices_exchange_no_activations(monkeypatch, path):
  if path != "_on_cpu":
    monkeypatch.setattr(grouped_conv, "_merged", getattr(grouped_conv, path))
    monkeypatch.setattr(cpu_kernels, "is_there", lambda: False)
  jax.clear_caches()  # Blocks that were traced the other way.
  config = make_config("one-head", LOW_RATE, **SMALL)
  mesh = mesh_lib.make(8)
  task, programs = build(config, mesh)
  with jax.set_mesh(mesh):
    batch = to_device(batches()[0], mesh)
    text = programs.step.lower(programs.abstract, batch).compile().as_text()
  # The trunk's smallest map is that of the small crops' last stage, 2 x 2. The
  # largest is 32 times that; scores and the queue are smaller than either.
  smallest = BATCH * 2 * 2 * 2 * task.model.architecture.features
  found = exchanged(text, 8)
  assert found
  assert not {line: by for line, by in found.items() if by >= smallest}
