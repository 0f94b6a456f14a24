"""What is advised fits, is possible, and says how it changes the recipe."""

import copy

import pytest

from configs import seer_rg10b, seer_rg128
from seer_jax.config import auto, keys, validate
from seer_jax.planning import advice
from seer_jax.runtime import errors

GIB = 2**30


def resolved(config, devices, **changes):
  """As when advice is asked for: all is computed again, and does not fit."""
  config.model.remat = "block"
  for key, value in changes.items():
    keys.put(config, key.replace("__", "."), value)
  here = auto.RunContext(
    images=10**9,
    side=500,
    devices=devices,
    platform="cuda",
    precision=("bf16", "native"),
    cores=8,
  )
  assert list(auto.complete(config, here))
  validate.check_together(config)
  return config


def model(devices, held, fixed, an_image, tried=None):
  """A compiler whose programs take so many GiB."""

  def measure(config):
    if tried is not None:
      tried.append(config)
    each = config.batch_size / devices / config.accumulate
    saved = 1 if config.model.remat == "block" else 3
    state = held / (config.mesh.fsdp if config.precision != "fp32" else 1)
    return advice.Needs(
      parameters=int(fixed * GIB),
      held=int(state * GIB),
      temporary=int((fixed + an_image * each * saved) * GIB),
    )

  return measure


def advised(config, measure, devices, room):
  return advice.find(
    config,
    measure(config),
    room=int(room * GIB),
    devices=devices,
    per_host=8,
    precision="bf16",
    measure=measure,
  )


def after(config, found):
  for key, value in found.changes.items():
    keys.put(config, key, value)
  validate.check_together(config)
  return config


@pytest.mark.parametrize("images", [32, 96, 512])
@pytest.mark.parametrize("room", [20, 30, 36])
def test_as_many_parts_as_are_needed_and_the_same_result(images, room):
  """Norms' groups are divided as the batch is, and see as many images."""
  config = resolved(
    seer_rg128.get_config("a100"),
    8,
    batch_size=8 * images,
    model__bn_groups=8,
  )
  measure = model(8, held=4, fixed=3, an_image=1)
  found, _ = advised(config, measure, 8, room)
  assert set(found.changes) == {"accumulate", "model.bn_groups"}
  # Eight groups of norms are divided by 2, 4 and 8 parts alone.
  assert bool(found.effects) == (8 % found.changes["accumulate"] > 0)
  trial = after(config, found)
  assert measure(trial).total == found.total <= room * GIB
  # The next smaller number of parts would not have done.
  fewer = [n for n in range(1, trial.accumulate) if images % n == 0]
  trial.accumulate = fewer[-1]
  assert measure(trial).total > 0.97 * room * GIB


def test_what_changes_nothing_comes_first():
  config = resolved(
    seer_rg128.get_config(""), 8, batch_size=256, precision="fp32"
  )
  config.model.remat = "none"
  tried = []
  (found,) = advised(config, model(8, 24, 3, 0.4, tried), 8, 36)
  assert found.changes == {
    "model.remat": "block",
    "precision": "bf16",
    "mesh.fsdp": 8,
  }
  assert not found.effects
  assert len(tried) == 2  # The config's own program is one.


def test_groups_of_norms_divide_what_is_advised():
  """RG-10B with 31 images a device, 62 groups of norms, 256 images in each."""
  measure = model(512, 96, 4, 0.8)
  config = resolved(
    seer_rg10b.get_config("v100"), 512, batch_size=31 * 512, steps=1000
  )
  parts, smaller = advised(config, measure, 512, 29)
  # A prime number of images has but parts of one.
  assert parts.changes == {"accumulate": 31, "model.bn_groups": 2}
  assert not parts.effects
  batch = smaller.changes["batch_size"]
  assert 512 * 10 < batch < 31 * 512
  words = ", ".join(smaller.effects)
  assert f"{batch:,} images a step instead of 15,872" in words
  assert f"instead of {0.3 * 15872 / 256:.4g}" in words
  assert f"--config.steps={-(-1000 * 15872 // batch)} for the same" in words
  for found in (parts, smaller):
    trial = after(copy.deepcopy(config), found)
    # No group begins in the middle of a device.
    assert 512 % trial.model.bn_groups == 0
    assert measure(trial).total == found.total <= 29 * GIB


def test_a_queue_is_a_multiple_of_a_smaller_batch():
  config = resolved(
    seer_rg128.get_config("a100"), 8, batch_size=512, swav__queue_length=1024
  )
  _, smaller = advised(config, model(8, 4, 3, 1), 8, 30)
  trial = after(config, smaller)
  assert trial.swav.queue_length % trial.batch_size == 0
  assert any("a queue of" in each for each in smaller.effects)


def test_an_estimate_that_was_wrong_is_the_start_of_the_next():
  """Parts help less than one program suggests."""
  config = resolved(
    seer_rg128.get_config("a100"), 8, batch_size=512, model__bn_groups=1
  )
  tried = []

  def measure(config):
    each = config.batch_size // 8 // config.accumulate
    tried.append(each)
    return advice.Needs(0, 8 * GIB, int((14 + each) * GIB))

  parts, smaller = advised(config, measure, 8, 30)
  assert max(parts.total, smaller.total) <= 30 * GIB
  assert len(tried) > 3
  words = ", ".join(parts.effects)
  seen = 512 // parts.changes["accumulate"]
  assert f"norms over {seen} images instead of 512" in words


def test_where_the_state_alone_is_too_much_nothing_is_advised():
  config = resolved(seer_rg128.get_config("a100"), 8, batch_size=512)
  assert not advised(config, model(8, 400, 3, 1), 8, 36)


def test_a_compiler_that_gives_up_ends_the_search():
  config = resolved(seer_rg128.get_config("a100"), 8, batch_size=512)
  needs = iter([model(8, 8, 3, 1)(config)])

  def measure(_):
    for each in needs:
      return each
    raise errors.UserError("the compiler gave up")

  assert not advised(config, measure, 8, 36)


def test_what_was_found_before_that_is_kept():
  config = resolved(seer_rg128.get_config("a100"), 8, batch_size=512)
  programs = model(8, 4, 3, 1)

  def measure(trial):
    if trial.batch_size < config.batch_size:
      raise errors.UserError("the compiler gave up")
    return programs(trial)

  (found,) = advised(config, measure, 8, 30)
  assert found.changes["accumulate"] > 1
