import pytest

from configs import seer_rg256
from seer_jax.config import remat

GIB = 2**30


def recipe(**changes):
  config = seer_rg256.get_config()
  config.precision, config.model.scan = "bf16", False
  for key, value in changes.items():
    config[key] = value
  return config


def test_no_memory_of_its_own_keeps_everything():
  assert remat.least(recipe(), 512, 0)[0] == "none"


def test_the_least_that_fits_is_taken():
  found = [remat.least(recipe(), 512, gib * GIB)[0] for gib in (95, 30, 26, 8)]
  assert found[0] == "none" and found[-1] == "block"
  counts = [int(each.removeprefix("first-")) for each in found[1:3]]
  assert 0 < counts[0] < counts[1] < 27
  rung, why = remat.least(recipe(), 512, 28 * GIB)
  room = remat.MARGIN * 28 * GIB
  dearer = f"first-{int(rung.removeprefix('first-')) - 1}"
  assert remat.estimate(recipe(), 512, rung) <= room
  assert remat.estimate(recipe(), 512, dearer) > room
  assert dearer in why and "of 28.0 GiB" in why


def test_what_a_compiler_needed_corrects_the_estimate():
  config = recipe()
  plain = remat.least(config, 512, 28 * GIB)[0]
  corrected = remat.least(config, 512, 28 * GIB, scale=0.95)[0]
  assert int(corrected.removeprefix("first-")) < int(
    plain.removeprefix("first-")
  )


@pytest.mark.parametrize("fsdp", [1, 8])
@pytest.mark.parametrize("scan", [False, True])
def test_each_block_that_is_computed_again_takes_less(fsdp, scan):
  config = recipe()
  config.mesh.fsdp, config.model.scan = fsdp, scan
  rungs = ["none", *(f"first-{n}" for n in range(1, 27)), "block"]
  sizes = [remat.estimate(config, 512, rung) for rung in rungs]
  # The first costs the room to compute it again.
  assert sizes[1:] == sorted(sizes[1:], reverse=True)
  assert sizes[-1] < sizes[0]


def test_the_next_quicker_one_is_known():
  config = recipe()
  for value, wanted in (
    ("none", None),
    ("first-1", "none"),
    ("block", "first-26"),
  ):
    config.model.remat = value
    assert remat.dearer(config) == wanted
