"""Names of hardware, published figures, and what to install to plan for it."""

import importlib.util

import pytest

from seer_jax.planning import accelerators, chips
from seer_jax.runtime import errors
from seer_jax.runtime import mesh as mesh_lib

# kind: GiB, TFLOP/s at its precision, GB/s of memory; from the vendors' pages.
PUBLISHED = {
  "v100": (32, 125, 900),
  "v100-16": (16, 125, 900),
  "a100": (40, 312, 1555),
  "a100-80": (80, 312, 2039),
  "h100": (80, 989.4, 3350),
  "h200": (141, 989.4, 4800),
  "b200": (180, 2250, 8000),
  "v4": (32, 275, 1200),
  "v5e": (16, 197, 819),
  "v5p": (95, 459, 2765),
  "v6e": (32, 918, 1640),
}


@pytest.mark.parametrize("kind", chips.CHIPS)
def test_figures_are_the_published_ones(kind):
  chip = chips.CHIPS[kind]
  memory, rate, bandwidth = PUBLISHED[kind]
  # Drivers keep some for themselves, and vendors count in powers of ten.
  assert 0.92 * memory < chip.memory / chips.GIB <= 1.01 * memory
  assert chip.peak[chip.precision] == rate * 1e12 == max(chip.peak.values())
  assert chip.bandwidth == bandwidth * 1e9
  assert chip.network < chip.link < chip.bandwidth


@pytest.mark.parametrize("kind", chips.CHIPS)
def test_hardware_is_made_for_the_precision_that_recipes_choose(kind):
  chip = chips.CHIPS[kind]
  platform, capability = "tpu", ""
  if chip.gpu:
    platform, capability = "gpu", ".".join(map(str, chip.gpu.capability))
  assert mesh_lib.native_precision(platform, capability)[0] == chip.precision


@pytest.mark.parametrize(
  ("name", "same", "note"),
  [
    ("V100:64x8", "v100:64x8", ""),
    ("v100-32:2x8", "v100:2x8", ""),
    ("a100-40:2x8", "a100:2x8", ""),
    ("a100-80:2x8", "a100-80:2x8", ""),
    ("v5e:16x16", "v5e:16x16", ""),
    ("v5litepod-256", "v5e:16x16", "256 chips"),
    ("v6e-8", "v6e:2x4", "8 chips"),
    ("v5p-1024", "v5p:8x8x8", "1024 TensorCores, 512 chips"),
    ("v4-8", "v4:2x2x1", "8 TensorCores, 4 chips"),
    ("2xv5p:8x8x8", "2xv5p:8x8x8", ""),
    ("4xv5e-256", "4xv5e:16x16", "256 chips"),
  ],
)
def test_other_names_are_understood_and_it_is_said_how(name, same, note):
  topology = accelerators.parse(name)
  assert topology.name == same
  assert note in topology.note
  assert bool(topology.note) == bool(note)


@pytest.mark.parametrize(
  ("name", "says"),
  [
    ("b900:1x8", "v100, v100-16, a100"),
    ("v100", "such as v100:64x8"),
    ("v100:512", "hosts x GPUs per host, at most 8"),
    ("v100:32x16", "hosts x GPUs per host, at most 8"),
    ("v100:0x8", "hosts x GPUs per host"),
    ("v5e:4x4x4", "2 sides and at most 256 chips"),
    ("v5e:32x32", "2 sides and at most 256 chips"),
    ("v5p:8x8", "3 sides and at most 6144 chips"),
    ("v5p-7", "counts TensorCores, two per chip"),
    ("v5e-6", "such as v5e:4x4"),
    ("2xv100:4x8", "only TPUs have slices, as in 2xv5p:8x8x8"),
    ("0xv5e:4x4", "TPUs have slices"),
  ],
)
def test_names_of_nothing_are_answered_with_those_of_something(name, says):
  with pytest.raises(errors.UserError) as caught:
    accelerators.parse(name)
  assert says in str(caught.value)
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
  ("name", "extra"), [("v5e:4x4", "plan-tpu"), ("h100:2x8", "plan-gpu")]
)
def test_without_a_compiler_it_says_what_to_install(monkeypatch, name, extra):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(errors.UserError) as caught:
    accelerators.devices(accelerators.parse(name))
  assert f"pip install 'seer_jax[{extra}]'" in str(caught.value)


@pytest.mark.skipif(
  importlib.util.find_spec("jax_cuda12_plugin") is None,
  reason="needs the compiler for GPUs: pip install -e '.[plan-gpu]'",
)
@pytest.mark.parametrize("kind", [k for k, c in chips.CHIPS.items() if c.gpu])
def test_gpus_that_are_not_there_have_devices(kind):
  devices = accelerators.devices(accelerators.parse(f"{kind}:3x4"))
  chip = chips.CHIPS[kind]
  major, minor = chip.gpu.capability
  assert [each.process_index for each in devices] == [0] * 4 + [1] * 4 + [2] * 4
  assert {each.compute_capability for each in devices} == {f"{major}.{minor}"}
  assert {each.device_kind for each in devices} == {chip.gpu.name}


@pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None,
  reason="needs the compiler for TPUs: pip install -e '.[plan-tpu]'",
)
@pytest.mark.parametrize(
  "name", ["v4:4x4x4", "v5e:1x1", "v5p:2x2x2", "v6e:4x4", "2xv5e:4x4"]
)
def test_a_tpu_chip_is_one_device(name):
  topology = accelerators.parse(name)
  devices = accelerators.devices(topology)
  assert len(devices) == topology.size
  assert {each.platform for each in devices} == {"tpu"}
  slices = {getattr(each, "slice_index", 0) or 0 for each in devices}
  assert slices == set(range(topology.slices))
