import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seer_jax.config import keys
from seer_jax.models import encoder
from seer_jax.runtime import mesh as mesh_lib
from seer_jax.tasks import state, swav, swav_loss

EPSILONS = [0.05, 0.03, 0.01]


def unit(seed: int, *shape: int) -> np.ndarray:
  rows = np.random.default_rng(seed).standard_normal(shape)
  rows /= np.linalg.norm(rows, axis=-1, keepdims=True)
  return rows.astype(np.float32)


def cosines(seed: int, rows: int, prototypes: int, width: int = 24):
  """Scores as they come; a quarter of the rows sit on a prototype (score 1)."""
  z_NxP, kernel_KxP = unit(seed, rows, width), unit(seed + 1, prototypes, width)
  planted = rows // 4
  z_NxP[:planted] = kernel_KxP[np.arange(planted) % prototypes]
  return z_NxP @ kernel_KxP.T


def multi_crop_scores(seed: int, batch: int, views: int, prototypes: int):
  flat = cosines(seed, batch * views, prototypes)
  return flat.reshape(batch, views, prototypes)


# Codes.


@pytest.mark.parametrize("iterations", [0, 1, 3, 10])
@pytest.mark.parametrize("epsilon", EPSILONS)
def test_codes_equal_the_published_algorithm(reference, epsilon, iterations):
  torch = reference.torch
  scores_NxK = cosines(0, 64, 12)
  ours = swav_loss.sinkhorn(jnp.asarray(scores_NxK), epsilon, iterations)
  theirs = reference.sinkhorn(torch.tensor(scores_NxK), epsilon, iterations)
  np.testing.assert_allclose(ours, theirs.numpy(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize("iterations", [1, 3, 10])
@pytest.mark.parametrize("epsilon", EPSILONS)
def test_codes_with_a_queue_equal_the_published_algorithm(
  reference, epsilon, iterations, used
):
  torch = reference.torch
  scores_BxVxK = multi_crop_scores(0, 16, 3, 12)
  queue_AxQxK = np.stack([cosines(5, 32, 12), cosines(7, 32, 12)])
  ours = swav_loss.assign(
    jnp.asarray(scores_BxVxK),
    (2, 0),
    epsilon,
    iterations,
    jnp.asarray(queue_AxQxK),
    jnp.asarray(used),
  )
  for a, crop in enumerate((2, 0)):
    theirs = reference.assign(
      torch.tensor(scores_BxVxK[:, crop]),
      epsilon,
      iterations,
      torch.tensor(queue_AxQxK[a]) if used else None,
    )
    np.testing.assert_allclose(ours[:, a], theirs.numpy(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("epsilon", EPSILONS)
def test_rows_of_codes_sum_to_one_and_columns_balance(epsilon):
  scores_NxK = jnp.asarray(cosines(0, 96, 8))
  codes_NxK = swav_loss.sinkhorn(scores_NxK, epsilon, 200)
  np.testing.assert_allclose(codes_NxK.sum(axis=1), 1, rtol=1e-5)
  np.testing.assert_allclose(codes_NxK.sum(axis=0), 96 / 8, rtol=1e-2)


def test_columns_are_nearer_to_balance_with_every_iteration():
  scores_NxK = jnp.asarray(cosines(0, 96, 8))

  def imbalance(iterations):
    codes_NxK = swav_loss.sinkhorn(scores_NxK, 0.05, iterations)
    return float(jnp.abs(codes_NxK.sum(axis=0) - 96 / 8).max())

  found = [imbalance(iterations) for iterations in (0, 1, 3, 10, 30)]
  assert found == sorted(found, reverse=True)


def published_power_law(scores_NxK, epsilon, iterations, power):
  """VISSL's steps in float64: rows to their shares, then columns."""
  q_KxN = np.exp(np.float64(scores_NxK.T) / epsilon)
  q_KxN /= q_KxN.sum()
  share_K = 1 / np.arange(1, len(q_KxN) + 1) ** power
  share_K /= share_K.sum()
  for _ in range(iterations):
    q_KxN *= (share_K / q_KxN.sum(1))[:, None]
    q_KxN /= q_KxN.sum(0) * q_KxN.shape[1]
  return (q_KxN / q_KxN.sum(0)).T


@pytest.mark.parametrize("power", [0.25, 1.0])
@pytest.mark.parametrize("iterations", [1, 3, 10])
@pytest.mark.parametrize("epsilon", EPSILONS)
def test_power_law_codes_equal_the_published_algorithm(
  epsilon, iterations, power
):
  scores_NxK = cosines(0, 64, 12)
  ours = swav_loss.sinkhorn(
    jnp.asarray(scores_NxK), epsilon, iterations, power=power
  )
  theirs = published_power_law(scores_NxK, epsilon, iterations, power)
  np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


def test_power_law_codes_give_prototypes_their_shares():
  scores_NxK = jnp.asarray(cosines(0, 96, 8))
  codes_NxK = swav_loss.sinkhorn(scores_NxK, 0.05, 200, power=0.5)
  share_K = np.arange(1, 9) ** -0.5
  share_K *= 96 / share_K.sum()
  np.testing.assert_allclose(codes_NxK.sum(axis=0), share_K, rtol=1e-2)


def test_a_power_of_zero_changes_no_bit():
  scores_BxVxK = jnp.asarray(multi_crop_scores(0, 16, 3, 12))
  equal = swav_loss.assign(scores_BxVxK, (0, 1), 0.05, 3)
  zero = swav_loss.assign(scores_BxVxK, (0, 1), 0.05, 3, power=0.0)
  np.testing.assert_array_equal(equal, zero)


def test_no_gradient_flows_through_codes():
  scores_NxK = jnp.asarray(cosines(0, 16, 8))
  gradient = jax.grad(lambda s: swav_loss.sinkhorn(s, 0.05, 3)[:, 0].sum())
  assert not gradient(scores_NxK).any()


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("epsilon", EPSILONS)
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_codes_of_half_precision_scores_are_those_of_the_rounded_scores(
  dtype, epsilon, devices
):
  # exp(1 / 0.05) overflows float16; nothing may be computed in it.
  rounded_BxVxK = jnp.asarray(multi_crop_scores(0, 32, 2, 12), dtype)
  expected = swav_loss.assign(
    rounded_BxVxK.astype(jnp.float32), (0, 1), epsilon, 3
  )
  mesh = mesh_lib.make(devices)
  with jax.set_mesh(mesh):
    codes = jax.jit(lambda s: swav_loss.assign(s, (0, 1), epsilon, 3))(
      jax.device_put(rounded_BxVxK, mesh_lib.rows(mesh))
    )
  assert codes.dtype == jnp.float32
  assert np.isfinite(codes).all()
  np.testing.assert_allclose(codes, expected, rtol=0, atol=1e-5)


# The loss.


LAYOUTS = [
  pytest.param(2, (0, 1), id="2+0"),
  pytest.param(6, (0, 1), id="2+4"),
  pytest.param(4, (2,), id="one-assigning-crop"),
]


def torch_loss(reference, scores_BxVxK, assign_crops):
  """The loss and its gradient with respect to the scores."""
  torch = reference.torch
  leaf = torch.tensor(scores_BxVxK).double().requires_grad_()
  scores_VxBxK = leaf.swapaxes(0, 1)
  codes = [
    reference.assign(scores_VxBxK[crop], 0.05, 3) for crop in assign_crops
  ]
  loss = reference.swapped_loss(scores_VxBxK, codes, assign_crops, 0.1)
  loss.backward()
  return loss.item(), leaf.grad.numpy()


def jax_loss(scores_BxVxK, assign_crops):
  def loss_of(scores_BxVxK):
    codes_BxAxK = swav_loss.assign(scores_BxVxK, assign_crops, 0.05, 3)
    return swav_loss.swapped_loss(scores_BxVxK, codes_BxAxK, assign_crops, 0.1)

  return jax.value_and_grad(loss_of)(jnp.asarray(scores_BxVxK))


@pytest.mark.parametrize(("views", "assign_crops"), LAYOUTS)
def test_the_loss_and_its_gradient_equal_the_published_ones(
  reference, views, assign_crops
):
  scores_BxVxK = multi_crop_scores(0, 8, views, 12)
  loss, gradient = jax_loss(scores_BxVxK, assign_crops)
  expected, expected_gradient = torch_loss(
    reference, scores_BxVxK, assign_crops
  )
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
  scale = np.abs(expected_gradient).max()
  np.testing.assert_allclose(
    gradient / scale, expected_gradient / scale, rtol=0, atol=1e-5
  )


@pytest.mark.parametrize(("views", "assign_crops"), LAYOUTS)
def test_the_loss_of_small_scores_is_the_logarithm_of_the_prototypes(
  views, assign_crops
):
  scores_BxVxK = 0.01 * multi_crop_scores(0, 64, views, 30)
  loss, _ = jax_loss(scores_BxVxK, assign_crops)
  np.testing.assert_allclose(loss, np.log(30), rtol=1e-2)


@pytest.mark.parametrize("crops", [2, 3])
def test_the_instance_loss_is_the_cross_entropy_of_an_images_other_crops(crops):
  z_BxAxP = unit(0, 5, crops, 16)
  expected = []
  for image, crop in np.ndindex(5, crops):
    rows = [row for row in np.ndindex(5, crops) if row != (image, crop)]
    similarity = np.array([z_BxAxP[image, crop] @ z_BxAxP[row] for row in rows])
    p = np.exp(similarity / 0.2)
    p /= p.sum()
    expected += [
      -np.log(p[at]) for at, (other, _) in enumerate(rows) if other == image
    ]
  loss = swav_loss.instance_loss(jnp.asarray(z_BxAxP), 0.2)
  np.testing.assert_allclose(loss, np.mean(expected), rtol=1e-5)


def test_the_instance_loss_is_the_same_on_eight_devices():
  mesh8 = mesh_lib.make()
  z_BxAxP = unit(0, 16, 2, 16)
  slope = jax.jit(jax.value_and_grad(lambda z: swav_loss.instance_loss(z, 0.2)))
  alone = slope(z_BxAxP)
  with jax.set_mesh(mesh8):
    split = slope(jax.device_put(z_BxAxP, mesh_lib.rows(mesh8)))
  for ours, theirs in zip(alone, split, strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_images_alike_cost_the_instance_loss_the_logarithm_of_the_others():
  z_BxAxP = np.broadcast_to(unit(0, 1, 1, 16), (4, 2, 16))
  loss, slope = jax.value_and_grad(lambda z: swav_loss.instance_loss(z, 0.2))(
    jnp.asarray(z_BxAxP)
  )
  np.testing.assert_allclose(loss, np.log(7), rtol=1e-5)
  assert np.isfinite(slope).all()


class _Scores:
  """A network whose crops are its scores: the loss without a trunk."""

  prototype_counts = (12, 20)

  def apply(self, variables, crops, method=None, **others):
    del crops, others
    scores = tuple(variables["params"].values())
    if method == "scores":  # Of the crops that assign.
      return tuple(scores_BxVxK[:, :2] for scores_BxVxK in scores)
    z_BxVxP = jnp.zeros((*scores[0].shape[:2], 4))
    views = encoder.Views(z_BxVxP, z_BxVxP, scores)
    return views, {"batch_stats": {}}


def test_the_task_averages_the_loss_over_prototype_heads(
  reference, monkeypatch
):
  config = keys.base()
  monkeypatch.setattr(encoder, "create", lambda config: _Scores())
  monkeypatch.setattr(encoder, "of_images", lambda config: None)
  monkeypatch.setattr(swav.SwAV, "view", lambda self, batch: [])
  task = swav.SwAV(config, jnp.float32)
  heads = {
    "a": multi_crop_scores(0, 8, 6, 12),
    "b": multi_crop_scores(2, 8, 6, 20),
  }
  now = state.State(
    step=0,
    params=heads,
    batch_stats={},
    opt_state=None,
    extra={"queue": None},
    loss_scale=None,
    nonfinite_steps=0,
    window=None,
  )
  (loss, _), gradients = jax.value_and_grad(task.loss, has_aux=True)(
    heads, now, {}
  )
  expected = [
    torch_loss(reference, scores_BxVxK, (0, 1))
    for scores_BxVxK in heads.values()
  ]
  np.testing.assert_allclose(
    loss, np.mean([loss for loss, _ in expected]), rtol=1e-5
  )
  for name, (_, gradient) in zip(heads, expected, strict=True):
    scale = np.abs(gradient).max() / 2
    np.testing.assert_allclose(
      gradients[name] / scale, gradient / 2 / scale, rtol=0, atol=1e-5
    )


def test_the_config_sets_the_power_of_codes(monkeypatch):
  config = keys.base()
  config.swav.codes_power = 1.0
  monkeypatch.setattr(encoder, "create", lambda config: _Scores())
  monkeypatch.setattr(encoder, "of_images", lambda config: None)
  task = swav.SwAV(config, jnp.float32)
  scores_BxVxK = jnp.asarray(multi_crop_scores(0, 16, 2, 12))
  heads = {"a": scores_BxVxK, "b": scores_BxVxK}
  names = [field.name for field in dataclasses.fields(state.State)]
  rest = dict.fromkeys(names) | {"extra": {"queue": None}}
  found = task.targets(heads, state.State(**rest), scores_BxVxK)
  expected = swav_loss.assign(scores_BxVxK, (0, 1), 0.05, 3, power=1.0)
  np.testing.assert_array_equal(found.codes_BxAxK[0], expected)


# The log.


def test_even_use_of_prototypes_has_entropy_one():
  use = swav.prototype_use(np.full(8, 3.0))
  assert use["prototypes/entropy"] == pytest.approx(1)
  assert use["prototypes/in_use"] == 8
  assert use["prototypes/max_share"] == pytest.approx(1 / 8)


def test_one_prototype_for_all_has_entropy_zero():
  use = swav.prototype_use(np.array([0.0, 9.0, 0.0]))
  assert use == {
    "prototypes/entropy": 0.0,
    "prototypes/in_use": 1,
    "prototypes/max_share": 1.0,
  }


# The queue.


def batch_of(number: int, crops: int = 2, rows: int = 4) -> jax.Array:
  """Features that tell which batch, row and crop they are: 10 b + r, crop."""
  rows_B = 10.0 * number + jnp.arange(rows)
  return jnp.stack(
    [jnp.stack([rows_B, jnp.full(rows, crop)], -1) for crop in range(crops)], 1
  )


def test_the_queue_is_not_full_until_its_last_place_is_taken():
  queue = swav_loss.empty_queue(2, 12, 2)
  full = []
  for number in range(1, 5):
    queue = swav_loss.update_queue(queue, batch_of(number), jnp.array(True))
    full.append(bool(swav_loss.is_full(queue)))
  assert full == [False, False, True, True]


def test_the_queue_keeps_the_newest_in_front_and_drops_the_oldest():
  queue = swav_loss.empty_queue(2, 12, 2)
  for number in range(1, 6):
    queue = swav_loss.update_queue(queue, batch_of(number), jnp.array(True))
  expected = [50, 51, 52, 53, 40, 41, 42, 43, 30, 31, 32, 33]
  for crop in range(2):
    np.testing.assert_array_equal(queue["z_AxQxP"][crop, :, 0], expected)
    np.testing.assert_array_equal(queue["z_AxQxP"][crop, :, 1], crop)


def test_the_queue_equals_the_published_one(reference):
  queue, theirs = swav_loss.empty_queue(2, 12, 2), reference.Queue(2, 12, 2)
  for number in range(1, 6):
    assert (
      bool(swav_loss.is_full(queue)) == theirs.is_used(0) == theirs.is_used(1)
    )
    z_BxAxP = batch_of(number)
    queue = swav_loss.update_queue(queue, z_BxAxP, jnp.array(True))
    for a in range(2):
      theirs.push(a, reference.torch.tensor(np.array(z_BxAxP[:, a])))
    np.testing.assert_array_equal(queue["z_AxQxP"], theirs.z_AxQxP.numpy())


def test_the_queue_rests_before_its_start():
  queue = swav_loss.update_queue(
    swav_loss.empty_queue(1, 8, 2), batch_of(1, 1), jnp.array(False)
  )
  assert not queue["z_AxQxP"].any()
  assert queue["filled"] == 0


def test_a_queue_that_is_not_used_leaves_the_codes_alone():
  scores_BxVxK = jnp.asarray(multi_crop_scores(0, 16, 2, 12))
  queue_AxQxK = jnp.asarray(np.stack([cosines(5, 32, 12), cosines(7, 32, 12)]))
  without = swav_loss.assign(scores_BxVxK, (0, 1), 0.05, 3)
  for used, same in ((False, True), (True, False)):
    codes = swav_loss.assign(
      scores_BxVxK, (0, 1), 0.05, 3, queue_AxQxK, jnp.array(used)
    )
    assert np.allclose(codes, without, atol=1e-6) == same


def test_no_gradient_flows_into_the_queue():
  def total(z_BxAxP):
    queue = swav_loss.empty_queue(2, 8, 2)
    return swav_loss.update_queue(queue, z_BxAxP, jnp.array(True))[
      "z_AxQxP"
    ].sum()

  assert not jax.grad(total)(batch_of(1)).any()


# Prototypes.


def test_prototypes_are_put_back_on_the_sphere():
  kernel_PxK = 3 * jax.random.normal(jax.random.key(0), (16, 12))
  there = encoder.normalize(kernel_PxK)
  np.testing.assert_allclose(jnp.linalg.norm(there, axis=0), 1, rtol=1e-6)
  cosine_K = jnp.sum(there * kernel_PxK, 0) / jnp.linalg.norm(
    kernel_PxK, axis=0
  )
  np.testing.assert_allclose(cosine_K, 1, rtol=1e-6)
