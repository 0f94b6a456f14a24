"""Meshes, precisions, accumulation: other ways to the same ten steps."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import ten_steps

from seer_jax.runtime import errors
from seer_jax.runtime import mesh as mesh_lib
from seer_jax.weights import checkpoint


@pytest.fixture
def small_splits(monkeypatch):
  """Splits every kernel, also those whose dimensions no mesh divides."""
  monkeypatch.setattr(mesh_lib, "SPLIT_FROM", 1)


# (data, fsdp); the trunk has kernels such as 1x1x3x16 and SE's of 4 channels.
@pytest.mark.parametrize(
  ("data", "fsdp", "trunk"),
  [
    (2, 1, ten_steps.SMALL),
    (1, 2, ten_steps.SMALL),
    (2, 4, ten_steps.SMALL),
    pytest.param(8, 1, {}, marks=pytest.mark.slow),
    pytest.param(1, 8, {}, marks=pytest.mark.slow),
    pytest.param(2, 4, {}, marks=pytest.mark.slow),
  ],
)
def test_ten_steps_are_the_same_on_every_mesh(small_splits, data, fsdp, trunk):
  # A lower rate than in step_parity_test, for a tenth of its tolerance.
  rate = ten_steps.LOW_RATE
  one = ten_steps.run("one-head", 1, rate, **trunk)
  many = ten_steps.run("one-head", data, rate, fsdp, **trunk)
  np.testing.assert_allclose(one.losses, many.losses, rtol=0, atol=1e-5)
  apart = {
    path: np.abs(leaf - one.last[path]).max()
    for path, leaf in many.last.items()
  }
  apart["queue"] = np.abs(many.queue - one.queue).max()
  assert not {path: by for path, by in apart.items() if by > 1e-5}


@pytest.mark.parametrize(
  ("case", "data"),
  [
    pytest.param("one-head", 2, marks=pytest.mark.slow),
    ("two-heads", 1),
    pytest.param("no-queue", 1, marks=pytest.mark.slow),
  ],
)
def test_four_parts_of_a_batch_equal_the_whole(case, data):
  """With norms frozen, to 1e-5: gradients, codes and queue included."""
  how = ten_steps.SMALL | {"model.frozen_norms": True, "swav.epsilon": 0.05}
  rate = ten_steps.LOW_RATE
  whole = ten_steps.run(case, 1, rate, **how)
  parts = ten_steps.run(case, data, rate, **how, accumulate=4)
  np.testing.assert_allclose(parts.losses, whole.losses, rtol=0, atol=1e-5)
  apart = {
    path: np.abs(leaf - whole.last[path]).max()
    for path, leaf in parts.last.items()
  }
  if whole.queue is not None:
    apart["queue"] = np.abs(parts.queue - whole.queue).max()
  assert not {path: by for path, by in apart.items() if by > 1e-5}


def test_two_parts_equal_a_whole_normalised_in_two_groups():
  """Statistics of the parts are all that tells accumulation from a batch."""
  # Later, rounding is blown up: norms of a few rows are steep.
  how = {"rate": ten_steps.LOW_RATE, "steps": 2} | ten_steps.SMALL
  groups = ten_steps.run("one-head", 1, **how, **{"model.bn_groups": 2})
  parts = ten_steps.run("one-head", 1, **how, accumulate=2)
  np.testing.assert_allclose(parts.losses, groups.losses, rtol=0, atol=1e-5)
  for path, leaf in parts.last.items():
    np.testing.assert_allclose(leaf, groups.last[path], rtol=0, atol=1e-5)


# With the first scale that is chosen for such a batch, 2^14.
FP16 = {"precision": "fp16"}


def test_fp16_computes_in_fp16():
  config = ten_steps.make_config(
    "one-head", ten_steps.LOW_RATE, **ten_steps.SMALL, **FP16
  )
  assert config.loss_scale.first == 2.0**14
  mesh = mesh_lib.make(1)
  _, programs = ten_steps.build(config, mesh)
  batch = ten_steps.to_device(ten_steps.batches()[0], mesh)
  with jax.set_mesh(mesh):
    text = programs.step.trace(programs.abstract, batch).lower().as_text()
  multiplied = re.findall(
    r"stablehlo\.(?:convolution|dot_general).*-> tensor<(.*?)>", text
  )
  # The rest are of prototypes and of Sinkhorn.
  short = [each for each in multiplied if each.endswith("f16")]
  assert len(short) > len(multiplied) / 2, multiplied


def test_an_overflow_in_fp16_skips_one_step_and_nothing_else():
  config = ten_steps.make_config(
    "one-head", ten_steps.LOW_RATE, **ten_steps.SMALL, **FP16
  )
  config.loss_scale.growth_steps = 3
  mesh = mesh_lib.make(1)
  _, programs = ten_steps.build(config, mesh)
  first, scales = config.loss_scale.first, []
  # Not even float32 holds such a loss; then as halvings would find it again.
  forced = {4: 2.0**126, 5: first}
  with jax.set_mesh(mesh):
    now = programs.init()
    for number, crops in enumerate(ten_steps.batches()[:6]):
      if number in forced:
        scale = jnp.float32(forced[number])
        now = now.replace(loss_scale=now.loss_scale.replace(scale=scale))
      before = jax.tree.map(np.array, now)
      now, window = programs.step(now, ten_steps.to_device(crops, mesh))
      scales.append(float(window["loss_scale"]))
      kept = ("params", "batch_stats", "opt_state", "extra")
      same = [
        jax.tree.all(
          jax.tree.map(
            lambda a, b: bool(np.array_equal(a, b)),
            getattr(before, name),
            getattr(jax.tree.map(np.array, now), name),
          )
        )
        for name in kept
      ]
      assert all(same) == (number == 4)
      # The queue starts to fill at step 2.
      assert any(same) == (number in (0, 1, 4))
      assert int(window["skipped"]) == (number == 4)
      assert int(now.step) == number + 1
      assert np.isfinite(float(window["loss"]))
  assert scales[:4] == [first, first, 2 * first, 2 * first]
  assert scales[4] == 2.0**60  # The most it may be.


def test_fp16_takes_the_steps_of_fp32():
  rate = ten_steps.LOW_RATE
  long = ten_steps.run("one-head", 1, rate, **ten_steps.SMALL)
  short = ten_steps.run("one-head", 1, rate, **ten_steps.SMALL, **FP16)
  np.testing.assert_allclose(short.losses, long.losses, rtol=5e-3)
  # None was skipped: together they moved everything to where fp32 did.
  apart, moved = (
    sum(np.sum((a[path] - b[path]) ** 2) for path in long.last)
    for a, b in ((short.last, long.last), (long.last, long.first))
  )
  assert apart < 0.05**2 * moved


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  """The state of eight devices, its shapes, and the folder it was saved in."""
  folder = tmp_path_factory.mktemp("saved")
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(mesh_lib, "SPLIT_FROM", 1)
    config = ten_steps.make_config("one-head", **ten_steps.SMALL)
    mesh = mesh_lib.make(2, 4)
    _, programs = ten_steps.build(config, mesh)
    with jax.set_mesh(mesh):
      now = programs.init()
    kept = checkpoint.Checkpoints(folder)
    kept.save(3, now, programs.unpadded, {"samples": 24})
    kept.close()
  return now, programs.unpadded, folder


@pytest.mark.parametrize("to", [(1, 1), (2, 1), (4, 1), (1, 8), (2, 4), (1, 3)])
def test_a_checkpoint_of_eight_devices_restores_on_any_mesh(
  small_splits, saved, to
):
  now, natural, folder = saved
  abstract = mesh_lib.layout(natural, mesh_lib.make(*to))
  kept = checkpoint.Checkpoints(folder)
  found, position = kept.restore(abstract, natural)
  assert position == {"samples": 24}
  for loaded in (found, kept.read()):
    jax.tree.map(
      lambda n, a, b: np.testing.assert_array_equal(
        *(np.asarray(x)[tuple(map(slice, n.shape))] for x in (a, b))
      ),
      *(by_path(tree) for tree in (natural, now, loaded)),
    )
  jax.tree.map(
    lambda leaf, wanted: leaf.sharding == wanted.sharding or 1 / 0,
    found,
    abstract,
  )
  kept.close()


def by_path(tree):
  return {
    mesh_lib.path_of(path): leaf
    for path, leaf in jax.tree.leaves_with_path(tree)
  }


def test_a_checkpoint_of_another_network_is_refused_with_both_shapes(tmp_path):
  config = ten_steps.make_config("one-head", **ten_steps.SMALL)
  mesh = mesh_lib.make(1)
  _, programs = ten_steps.build(config, mesh)
  kept = checkpoint.Checkpoints(tmp_path)
  with jax.set_mesh(mesh):
    kept.save(1, programs.init(), programs.unpadded, {"samples": 8})
  kept.close()
  kept = checkpoint.Checkpoints(tmp_path)
  config.model.head.out = 12
  _, other = ten_steps.build(config, mesh)
  with pytest.raises(errors.UserError, match=r"another network.*16.*12"):
    kept.restore(other.abstract, other.unpadded)
  kept.close()


def test_every_array_of_a_state_has_a_rule():
  for name in ("larc", "lars", "sgd", "adamw"):
    config = ten_steps.make_config("one-head", **ten_steps.SMALL, **FP16)
    config.optim.name = name
    _, programs = ten_steps.build(config, mesh_lib.make(2, 4))
    assert jax.tree.leaves(programs.abstract)
  with pytest.raises(ValueError, match="no sharding rule"):
    mesh_lib.stored_as("params/mystery", (4, 4), 2)


@pytest.mark.parametrize(
  ("shape", "fsdp", "stored", "spec"),
  [
    ((1, 1, 1024, 2048), 8, (1, 1, 1024, 2048), (None, None, None, "fsdp")),
    # No dimension of SEER-10B's third stage is a multiple of 8.
    ((1, 1, 11110, 11110), 8, (1, 1, 11110, 11112), (None, None, None, "fsdp")),
    ((3, 3, 1010, 4040), 8, (3, 3, 1010, 4040), (None, None, None, "fsdp")),
    ((1, 1, 11110, 4040), 8, (1, 1, 11110, 4040), (None, None, None, "fsdp")),
    ((8, 8), 8, (8, 8), ()),  # Too small.
    ((1, 1, 1024, 2048), 1, (1, 1, 1024, 2048), ()),
  ],
)
def test_kernels_are_split_by_a_dimension_that_divides(
  shape, fsdp, stored, spec
):
  placed = mesh_lib.stored_as("params/a/kernel", shape, fsdp)
  assert placed == (stored, jax.P(*spec))
  # A stored shape would be stored no differently.
  assert mesh_lib.stored_as("params/a/kernel", stored, fsdp) == placed


@pytest.mark.parametrize(
  ("platform", "capability", "precision"),
  [
    ("gpu", "7.0", "fp16"),
    ("gpu", "8.0", "bf16"),
    ("gpu", "10.0", "bf16"),
    ("gpu", "6.1", "fp32"),
    ("gpu", "gfx90a", "fp32"),
    ("cpu", "", "fp32"),
    ("tpu", "", "bf16"),
  ],
)
def test_precision_follows_the_hardware(platform, capability, precision):
  assert mesh_lib.native_precision(platform, capability)[0] == precision
