"""SEER's recipes, shrunk, on the storage that they are meant for."""

import importlib
import json

import numpy as np
import pytest
import tfds_sets
from photos import plant

from seer_jax.data import pack, sources
from seer_jax.runtime.parallel import process_pool
from seer_jax.training import run

# The smallest network with all parts; SEER's crops, heads and optimiser stay.
SHRUNK = {
  "batch_size": 16,
  "steps": 4,
  "crops.sizes": (16, 8),
  "model.regnet": (1, 16, 16.0, 2.0, 8),
  "model.strides": (2,),
  "model.head.hidden": (16, 16),
  "model.head.out": 8,
  "model.prototypes": (8,),
  "mesh.data": 1,
  "checkpoint.every": 2,
  "log.every": 1,
  "report.images": 0,
}


def train(recipe, tmp_path, **source):
  config = importlib.import_module(f"configs.{recipe}").get_config()
  config.update_from_flattened_dict(SHRUNK)
  config.data.train.update(source)
  run.run(config, tmp_path / "run")
  lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
  found = [json.loads(line) for line in lines]
  losses = [line["loss"] for line in found if "loss" in line]
  assert len(losses) == 4
  assert np.isfinite(losses).all()
  assert sorted(
    int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir()
  ) == [2, 4]
  return found


def test_rg32_learns_from_array_records(tmp_path, monkeypatch):
  """BatchNorm in the head, two groups of norms, ten iterations of Sinkhorn."""
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  source = sources.Folder(str(plant(tmp_path / "photos", 40)))
  shards = tmp_path / "shards"
  pack.pack(
    source,
    shards,
    shard=16,
    side=0,
    max_pixels=1 << 20,
    pool=process_pool.Local(),
  )
  found = train("seer_rg32", tmp_path, kind="array_record", path=str(shards))
  # The warm-up of 8,000 steps is a share of the run, and starts at 0.3.
  rates = [line["lr"] for line in found if "lr" in line]
  assert rates[0] == pytest.approx(0.3 / 4096 * 16)
  assert max(rates) < 4.8 / 4096 * 16


@pytest.mark.slow
def test_rg256_learns_from_tfds(tmp_path, monkeypatch):
  """No BatchNorm in the head."""
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  data = tfds_sets.prepare(tmp_path / "tfds")
  changes = {"kind": "tfds", "name": "pets", "path": str(data)}
  monkeypatch.setitem(SHRUNK, "model.bn_groups", 2)
  train("seer_rg256", tmp_path, split="train", **changes)
