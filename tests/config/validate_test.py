"""Every shipped config holds together, down to the shapes of one step."""

import importlib
import itertools
import json
import pathlib

import jax
import jax.numpy as jnp
import pytest

from configs import hardware
from seer_jax import tasks
from seer_jax.config import auto, from_flags, keys, resolved, validate
from seer_jax.data import pipeline
from seer_jax.models import encoder
from seer_jax.runtime import errors
from seer_jax.training import optim
from seer_jax.training import step as step_lib

CONFIGS = sorted(
  path.stem
  for path in (pathlib.Path(__file__).parents[2] / "configs").glob("*.py")
)


# Networks of these differ from that of seer_rg256 in numbers alone.
LIKE_RG256 = ("seer_rg64", "seer_rg128")


@pytest.mark.parametrize(
  "name",
  [
    pytest.param(name, marks=pytest.mark.slow) if name in LIKE_RG256 else name
    for name in CONFIGS
  ],
)
def test_every_config_resolves_and_its_step_keeps_the_shapes(name, native_conv):
  config = importlib.import_module(f"configs.{name}").get_config()
  here = auto.RunContext(
    images=50_000,
    side=64,
    devices=1,
    platform="cpu",
    precision=("fp32", "a test"),
    cores=2,
    labels=10,
  )
  auto.complete(config, here)
  validate.check_each(config)
  validate.check_together(config)
  # Of equal blocks one is traced.
  arch = encoder.architecture(config.model)
  config.model.depths = (1,) * len(arch.depths)
  config.model.widths = arch.widths
  config.model.group_widths = arch.group_widths
  config.model.strides = arch.strides
  task = tasks.create(config)
  tx, _ = optim.make(config.optim, config.steps, config.batch_size, task)
  before = jax.eval_shape(lambda: step_lib.init(task, tx, config))
  batch = {
    "crops": tuple(
      jax.ShapeDtypeStruct((config.batch_size, count, size, size, 3), jnp.uint8)
      for count, size in zip(
        config.crops.counts, config.crops.sizes, strict=True
      )
    ),
    "replacements": jax.ShapeDtypeStruct((config.batch_size,), jnp.float32),
  }
  if pipeline.has_labels(config):
    batch["label"] = jax.ShapeDtypeStruct((config.batch_size,), jnp.int32)
  step = step_lib.train_step(task, tx, config)
  after, window = jax.eval_shape(step, before, batch)
  assert after == before
  assert window["loss"].shape == ()


@pytest.mark.parametrize(
  ("wrong", "near"),
  [
    ("batch_sise", "batch_size"),
    ("swav.epsilom", "swav.epsilon"),
    ("epsilon", "swav.epsilon"),
    ("data.train.pth", "data.train.path"),
    ("learning_rate_of_the_whole_thing", None),
  ],
)
def test_a_misspelt_key_has_a_nearest_one(wrong, near):
  assert keys.nearest_key(keys.base(), wrong) == near


def test_unknown_keys_and_wrong_types_raise():
  config = keys.base()
  config.lock()
  with pytest.raises(AttributeError):
    config.batchsize = 3
  with pytest.raises(TypeError):
    config.batch_size = "many"


@pytest.mark.parametrize(
  ("key", "value"),
  [
    ("batch_size", 0),
    ("steps", -1),
    ("mesh.data", 0),
    ("mesh.data", True),
    ("crops.sizes", ()),
    ("crops.scales", (0.4, 1.0)),
    ("crops.ratio", (0, 1)),
    ("model.prototypes", ()),
    ("model.strides", (2, 3)),
    ("swav.epsilon", 0.0),
    ("optim.name", "adam"),
    ("eval.knn_k", ()),
    ("seed", -1),
  ],
)
def test_a_value_that_never_works_is_named(key, value):
  config = keys.base()
  with config.ignore_type():
    keys.put(config, key, value)
  with pytest.raises(errors.UserError, match=rf"config.{key} is .*must"):
    validate.check_each(config)


def claimed(workdir):
  """A workdir that a run with an open batch has begun and saved in."""
  config = keys.base()
  config.batch_size, config.crops.sizes = 48, (40, 16)
  resolved.write(workdir, config)
  (workdir / "checkpoints" / "5").mkdir(parents=True)
  return config


def test_a_workdir_keeps_its_config_but_for_what_touches_no_result(tmp_path):
  config = claimed(tmp_path)
  config.data.workers = 7
  resolved.write(tmp_path, config)
  config.seed = 1
  with pytest.raises(errors.UserError, match="seed was 0, is 1"):
    resolved.write(tmp_path, config)
  assert json.loads((tmp_path / "config.json").read_text())["seed"] == 0


def test_a_workdir_without_checkpoint_holds_nothing_to_keep(tmp_path):
  config = keys.base()
  resolved.write(tmp_path, config)
  config.seed = 1
  resolved.write(tmp_path, config)
  assert json.loads((tmp_path / "config.json").read_text())["seed"] == 1


def test_a_run_goes_on_with_the_choices_it_began_with(tmp_path):
  claimed(tmp_path)
  config = keys.base()
  resolved.load(tmp_path, config)
  assert config.batch_size == 48
  assert config.crops.sizes == (40, 16)


def test_a_damaged_config_of_a_run_is_told(tmp_path):
  claimed(tmp_path)
  (tmp_path / "config.json").write_text("{")
  with pytest.raises(errors.UserError, match="damaged"):
    resolved.load(tmp_path, keys.base())


# Steps of a run, and its rates: of seer_rg256 and seer_rg10b as SEER's own
# scheduler computes them; of the others by its rules, written out by hand. The
# warm-up starts at the rate of one node's images (VISSL's auto_lr_scaling).
RATES = {
  "swav_imagenet": {
    0: 0.6,
    1: 0.601343,
    1000: 1.942775,
    3127: 4.798859,
    3128: 4.792608,
    62557: 2.4024,
    125113: 0.0048,
  },
  "seer_rg32": {
    0: 0.3,
    1000: 0.8625,
    7999: 4.799437,
    8000: 4.787292,
    122000: 2.4024,
    243999: 0.0048,
  },
  "seer_rg128": {
    0: 0.3,
    1000: 0.8625,
    7999: 4.799437,
    8000: 4.8,
    244139: 4.8,
  },
  "seer_rg256": {
    0: 0.15,
    1000: 1.33125,
    7999: 9.598819,
    8000: 9.498725,
    61035: 4.8048,
    122069: 0.0096,
  },
  "seer_rg10b": {
    0: 0.15,
    1: 0.151664,
    1000: 1.813637,
    5499: 9.298341,
    5500: 9.256395,
    8000: 9.207906,
    63004: 4.654650,
    126007: 0.0093,
  },
}


RATES["seer_rg64"] = RATES["seer_rg32"]
# Epochs of 1,000 steps, and rates from an epoch on.
EPOCHS = {
  "linear_vissl:imagenet": (28, {0: 1e-2, 8: 1e-3, 16: 1e-4, 24: 1e-5}),
  "linear_vissl:places205": (14, {0: 1e-2, 4: 1e-3, 8: 1e-4, 12: 1e-5}),
  "linear_vissl:inaturalist18": (84, {0: 1e-2, 24: 1e-3, 48: 1e-4, 72: 1e-5}),
  "linear_vissl:iwildcam": (84, {0: 1e-2, 24: 1e-3, 48: 1e-4, 72: 1e-5}),
  "linear_vissl:small": (28, {0: 1e-2, 8: 1e-3, 16: 1e-4, 24: 1e-5}),
  "linear_vissl:clevr_count": (50, {0: 1e-2, 25: 5.05e-3, 49.999: 1e-4}),
  "linear_vissl:clevr_dist": (100, {0: 1e-2, 50: 5.05e-3, 99.999: 1e-4}),
  "linear_vissl:ucf101": (50, {0: 1e-2, 25: 5.05e-3, 49.999: 1e-4}),
  "linear_vissl:patch_camelyon": (28, {0: 3e-3, 14: 1.515e-3, 27.999: 3e-5}),
  "finetune_vissl:seer": (35, {0: 0.0125, 30: 0.00125}),
  "finetune_vissl:imagenet": (
    105,
    {0: 0.1, 30: 1e-2, 60: 1e-3, 90: 1e-4, 100: 1e-5},
  ),
  "finetune_vissl:cosine": (100, {0: 0.25, 50: 0.125, 99.999: 2.5e-7}),
  "finetune_vissl:inaturalist18": (24, {0: 0.1, 7: 1e-2, 14: 1e-3, 21: 1e-4}),
  "finetune_vissl:geolocation": (
    15,
    {0: 0.1, 4: 1e-2, 8: 1e-3, 12: 1e-4, 13: 1e-5, 14: 1e-6},
  ),
  "finetune_vissl:semisup": (70, {0: 0.05, 30: 0.005}),
  "finetune_vissl:swav_1percent": (20, {0: 0.02, 12: 0.004, 16: 0.0008}),
  "finetune_vissl:swav_10percent": (20, {0: 0.01, 12: 0.002, 16: 0.0004}),
}
for same in ("seer_384", "seer_384_swav", "two_rates", "places205", "small"):
  EPOCHS[f"finetune_vissl:{same}"] = EPOCHS["finetune_vissl:imagenet"]


def config_of(name):
  name, _, argument = name.partition(":")
  get_config = importlib.import_module(f"configs.{name}").get_config
  return get_config(*filter(None, [argument]))


@pytest.mark.parametrize("name", [*RATES, *EPOCHS])
def test_recipes_have_the_published_rate_at_every_step(name):
  config = config_of(name)
  if name in EPOCHS:
    epochs, rates = EPOCHS[name]
    assert config.epochs == epochs
    steps = 1000 * epochs
    rates = {round(1000 * epoch): rate for epoch, rate in rates.items()}
    # A rate lasts to the last step before the next.
    if config.optim.milestones:
      starts = sorted(rates)
      rates |= {
        later - 1: rates[first]
        for first, later in itertools.pairwise([*starts, steps])
      }
  else:
    rates, steps = RATES[name], config.steps or 125_114
  _, rate = optim.make(config.optim, steps, config.batch_size)
  for step, published in rates.items():
    assert float(rate(step)) == pytest.approx(published, rel=2e-6, abs=6e-7)


def test_every_published_recipe_has_its_rates():
  wanted = {name for name in CONFIGS if name.startswith(("seer_", "swav_"))}
  linear, finetune = (
    importlib.import_module(f"configs.{name}")
    for name in ("linear_vissl", "finetune_vissl")
  )
  wanted |= {
    f"linear_vissl:{each}" for each in linear._STEPPED | linear._COSINE
  }
  wanted |= {f"finetune_vissl:{each}" for each in finetune._RECIPES}
  ours = {"finetune_vissl:strong"}  # Published by nobody.
  assert wanted - ours == RATES.keys() | EPOCHS.keys()


@pytest.mark.parametrize("chip", hardware.NAMES)
@pytest.mark.parametrize(
  "name", [name for name in CONFIGS if name.startswith("se")]
)
def test_every_recipe_has_a_form_for_every_hardware(name, chip):
  config = importlib.import_module(f"configs.{name}").get_config(chip)
  validate.check_each(config)
  size = {"seer_rg10b": 9.6e9, "seer_rg256": 1.4e9}.get(name, 0)
  memory = importlib.import_module(f"configs.hardware.{chip}").MEMORY_GIB
  assert size * 8 / config.mesh.fsdp < memory / 2 * 2**30
  assert config.precision == ("fp16" if chip == "v100" else "bf16")


def test_unknown_hardware_is_a_user_error():
  with pytest.raises(errors.UserError, match=r"'v7'; known are a100"):
    importlib.import_module("configs.seer_rg256").get_config("v7")


def test_every_key_has_a_check_that_its_default_passes():
  config = keys.base()
  for key, value in keys.flatten(config):
    check = keys.KEYS[key].check
    assert callable(check.holds) and check.must, key
    assert value is None or check.passes(value), (key, value)
    assert not check.passes(object()), key  # It refuses something.
  assert sorted(dict(keys.flatten(config))) == sorted(keys.KEYS)


def test_a_run_with_a_renamed_key_resumes_and_says_so(tmp_path, caplog):
  config = keys.base()
  config.model.regnet = (1, 8, 8.0, 2.0, 8)
  resolved.write(tmp_path, config)
  (tmp_path / "checkpoints" / "5").mkdir(parents=True)
  path = tmp_path / "config.json"
  path.write_text(path.read_text().replace("model.regnet", "model.numbers"))
  with caplog.at_level("INFO", logger="seer_jax"):
    resolved.write(tmp_path, config)
  assert "model.numbers is now called model.regnet" in caplog.text
  with pytest.raises(
    errors.UserError, match=r"now called config\.model\.regnet"
  ):
    from_flags.read("configs/digits.py", ["--config.model.numbers=(1,)"])
