"""A run that an older version began goes on where it was.

`run_5a3f62a.tar.xz` is a workdir of commit 5a3f62a: the digits run with a small
network, 12 steps, of whose checkpoints the one of step 4 is left; its
metrics.jsonl is that of the whole run.
"""

import pathlib
import shutil

import numpy as np
import pytest
import runs

import seer_jax

ARCHIVE = pathlib.Path(__file__).with_name("run_5a3f62a.tar.xz")
COMMAND = (
  "--config=configs/digits.py",
  "--config.steps=12",
  "--config.batch_size=8",
  "--config.checkpoint.every=4",
  "--config.checkpoint.keep=10",
  "--config.model.regnet=(1, 8, 8.0, 2.0, 8)",
  "--config.model.strides=(2,)",
  "--config.model.stem_width=8",
  "--config.model.head.hidden=(8,)",
  "--config.model.head.out=8",
  "--config.model.prototypes=(4,)",
  "--config.swav.queue_length=16",
  "--config.swav.queue_start=2",
  "--config.swav.freeze_steps=2",
  "--config.log.every=2",
  "--config.eval.every=6",
  "--config.eval.batch_size=64",
  "--config.eval.max_images=128",
  # What the recipe was.
  "--config.crops.sizes=(16,)",
  "--config.crops.scales=((0.4, 1.0),)",
  "--config.crops.ratio=(0.75, 1.3333333333333333)",
  "--config.augment.brightness=0.4",
  "--config.augment.contrast=0.4",
  "--config.augment.blur=0.0",
  "--config.swav.instance_weight=0.0",
  "--config.optim.lr=3.5",
)


@pytest.fixture
def workdir(tmp_path):
  shutil.unpack_archive(ARCHIVE, tmp_path, filter="data")
  return tmp_path


def test_it_goes_on_to_the_same_numbers(workdir):
  wanted = runs.metrics_of(workdir)
  code, _, err = runs.run(*COMMAND, f"--workdir={workdir}")
  assert code == 0, err
  assert "resumed at step 4 of 12" in err
  found = runs.metrics_of(workdir)
  assert [line["step"] for line in found] == [line["step"] for line in wanted]
  for ours, theirs in zip(found, wanted, strict=True):
    if "stand_ins" in theirs:  # Renamed since.
      theirs["replacements"] = theirs.pop("stand_ins")
    assert ours.keys() >= theirs.keys()  # More is measured today.
    # XLA compiles tests otherwise than runs; 8 steps of noise lie between.
    for name, value in theirs.items():
      np.testing.assert_allclose(ours[name], value, rtol=0.02, err_msg=name)


def test_its_weights_are_loaded(workdir):
  model, variables = seer_jax.load(workdir)
  x_NxSxSx3 = np.zeros((2, 16, 16, 3), np.float32)
  assert np.isfinite(model.apply(variables, x_NxSxSx3)["projection"]).all()
