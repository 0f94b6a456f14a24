"""`seer-jax eval` and `prepare` by groups, shifts and corruptions."""

import json
import re

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seer_jax.data.preprocessing import Preprocessing
from seer_jax.data.published import imagenet
from seer_jax.models import architectures, encoder
from seer_jax.weights import convert, lazy_weights


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
  """Weights of a small network with ImageNet's classes, untrained."""
  network = encoder.Encoder(
    architectures.Architecture((1,) * 4, (8, 8, 16, 16), (8,) * 4),
    classes=1000,
    preprocessing=Preprocessing(16, 16),
  )
  x = jnp.zeros((1, 16, 16, 3))
  variables = dict(jax.jit(network.init)(jax.random.key(0), x))
  path = tmp_path_factory.mktemp("weights") / "weights"
  opened = lazy_weights.in_memory("a test", network, variables)
  list(convert.convert(opened, path, "orbax"))
  return path


def planted(folder, *names):
  rng = np.random.default_rng(0)
  for name in names:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    image = rng.integers(0, 255, (20, 24, 3), dtype=np.uint8)
    cv2.imwrite(str(folder / name), image)
  return folder


def figures(folder, name):
  lines = (folder / "evals.jsonl").read_text().splitlines()
  return [
    json.loads(line)["figures"]
    for line in lines
    if json.loads(line)["eval"] == name
  ]


def test_shifted_sets_are_one_command(classifier, seer, tmp_path):
  """Without training images: no evaluator here looks at a bank."""
  ids = imagenet.classes()
  val = planted(tmp_path / "val", *(f"{ids[i]}/{i}.png" for i in range(12)))
  shifted = planted(tmp_path / "a", *(f"{ids[i]}/{i}.png" for i in (3, 5)))
  command = (
    *("eval", classifier, "--evals", "shifts,accuracy", "--test", val),
    *("--shifts", f"imagenet_a={shifted}", "--out", tmp_path / "out"),
  )
  status, out, err = seer(*command)
  assert status == 0, err
  (found,) = figures(tmp_path / "out", "shifts")
  assert set(found) == {
    f"shift/imagenet_a{end}"
    for end in ("", "/top5", "/clean", "/gap", "/effective")
  }
  # Two classes are allowed, so both are among the first five.
  assert found["shift/imagenet_a/top5"] == 1
  assert seer(*command)[1] == out
  # Another image in the folder is another measurement.
  planted(shifted, f"{ids[4]}/4.png")
  assert seer(*command)[0] == 0
  assert len(figures(tmp_path / "out", "shifts")) == 2


def test_associations_need_names_and_are_split(classifier, seer, tmp_path):
  people = planted(
    tmp_path / "utk", *(f"{30 + i}_{i % 2}_0_x.png" for i in range(8))
  )
  table = tmp_path / "utk.csv"
  assert seer("prepare", "utkface", people, table)[:2] == (0, f"{table}\n")
  names = tmp_path / "names.txt"
  names.write_text("\n".join(f"class {i}" for i in range(999)) + "\nape\n")
  command = (
    *("eval", classifier, "--evals", "associations", "--test", table),
    *("--by", "gender,gender*age", "--config.eval.smallest_group=4"),
    f"--config.eval.class_names={names}",
  )
  status, out, err = seer(*command, "--out", tmp_path / "out")
  assert status == 0, err
  (found,) = figures(tmp_path / "out", "associations")
  assert {"associations/non-human/t=0/gender=male", "associations/non-human/t=0"
         } <= set(found)  # fmt: skip
  assert found["associations/non-human/t=0/gender=female/n"] == 4
  assert "gender=female (n = 4)" in out
  names.write_text("a\n")
  status, _, err = seer(*command, "--out", tmp_path / "other")
  assert status == 2 and "has 1 names, but" in err and err.count("\n") == 1


def test_corruptions_are_kept_kind_by_kind(seer, tmp_path, monkeypatch):
  data = planted(
    tmp_path / "data", *(f"{'ab'[i % 2]}/{i}.png" for i in range(40))
  )
  command = (
    *("eval", "pixels", "--evals", "corruptions", "--train", data),
    *("--out", tmp_path / "out", "--config.eval.knn_k=(1,)"),
    "--config.eval.severities=(1,)",
  )
  kinds = "--config.eval.corruptions=('fog','contrast')"
  status, out, err = seer(*command, kinds)
  assert status == 0, err
  names = [line.split()[0] for line in out.splitlines()[1:]]
  assert names == [
    *("corruptions/clean", "corruptions/fog/1", "corruptions/fog"),
    *("corruptions/contrast/1", "corruptions/contrast"),
    *("corruptions/mean", "corruptions/kept"),
  ]
  assert len(figures(tmp_path / "out", "corruptions")) == 2
  # A third kind is measured, and the others are not measured again.
  kinds = "--config.eval.corruptions=('fog','contrast','pixelate')"
  assert seer(*command, kinds)[0] == 0
  assert len(figures(tmp_path / "out", "corruptions")) == 3


def test_copies_are_found_by_a_hash_too(seer, tmp_path):
  tables = {}
  for which in ("originals", "copies"):
    # Of equal names and equal pixels.
    folder = planted(tmp_path / which, *(f"{i}.png" for i in range(6)))
    lines = [f"{folder / f'{i}.png'},{i}" for i in range(6)]
    tables[which] = tmp_path / f"{which}.csv"
    tables[which].write_text("path,label\n" + "\n".join(lines) + "\n")
  command = "eval", "phash", "pixels", "--evals", "retrieval", "--train"
  both = tables["originals"], "--test", tables["copies"]
  # A limit of the images must not cut the database.
  status, out, err = seer(*command, *both, "--config.eval.max_images=3")
  assert status == 0, err
  rows = [line.split() for line in out.splitlines()[1:]]
  assert rows == [
    [f"retrieval/{name}", "1.000", "1.000"]
    for name in ("mAP", "mP@1", "mP@5", "mP@10")
  ]
  table = tmp_path / "wrong.csv"
  table.write_text(tables["copies"].read_text() + "gone.png,7\n")
  status, _, err = seer(*command, tables["originals"], "--test", table)
  assert (
    status == 2 and "1 of 7 query images cannot be used, the first gone" in err
  )
  # Without another image of its label no query has a right answer.
  itself = tables["originals"], "--test", tables["originals"]
  status, _, err = seer(*command, *itself)
  assert status == 2 and "no query has a right answer" in err


@pytest.mark.slow
def test_places_are_learned_by_the_common_loop(seer, tmp_path):
  """Red photographs are in Paris, blue ones in Sydney."""
  folder = tmp_path / "photos"
  folder.mkdir()
  rng, lines = np.random.default_rng(0), []
  for at in range(64):
    image = rng.integers(0, 60, (24, 24, 3), dtype=np.uint8)
    image[..., 2 * (at % 2)] += 150
    cv2.imwrite(str(folder / f"{at}.png"), image)
    lines.append(f"{at}.png," + ("48.9,2.4" if at % 2 else "-33.9,151.2"))
  places, cells = tmp_path / "places.csv", tmp_path / "cells.csv"
  places.write_text("path,latitude,longitude\n" + "\n".join(lines) + "\n")
  cells.write_text(
    "class_label,latitude_mean,longitude_mean\n0,48.8,2.3\n1,-33.8,151.1\n"
  )
  table = tmp_path / "train.csv"
  status, _, err = seer(
    *("prepare", "geolocation", folder, table, "--metadata", places),
    *("--cells", cells),
  )
  assert status == 0, err
  config = tmp_path / "finetune.py"
  config.write_text(
    "from seer_jax import config as config_lib\n\n\n"
    "def get_config():\n"
    "  config = config_lib.labelled()\n"
    '  config.task = "finetune"\n'
    "  config.steps, config.batch_size, config.optim.lr = 30, 16, 0.5\n"
    "  config.crops.sizes = (16,)\n"
    "  config.model.regnet = (1, 16, 16.0, 2.0, 8)\n"
    "  config.model.strides = (2,)\n"
    "  config.report.images = 0\n"
    "  return config\n"
  )
  status, _, err = seer(
    *("train", "--config", config, "--workdir", tmp_path / "run"),
    *("--config.data.train.kind=list", f"--config.data.train.path={table}"),
  )
  assert status == 0, err
  status, _, err = seer(
    *("eval", tmp_path / "run", "--evals", "geolocation", "--test", table),
    f"--config.eval.cells={cells}",
  )
  assert status == 0, err
  (found,) = figures(tmp_path / "evals", "geolocation")
  # The cells' means are 12 and 14 km from the photographs.
  assert found["geolocation/1km"] == 0 and found["geolocation/25km"] == 1
  assert 12 < found["geolocation/median_km"] < 15


@pytest.mark.parametrize(
  ("more", "words"),
  [
    (("--by", "age"), "has no column 'age'"),
    (("--attributes", "x.txt", "--by", "a"), "give a .csv or .parquet"),
    (("--attributes", "x.csv", "--by", "a"), "cannot read .*x.csv"),
    (("--by", "label"), "largest group has 3 of the 30"),
  ],
)
def test_mistakes_are_one_line_and_leave_no_result(seer, tmp_path, more, words):
  planted(tmp_path, *(f"{i}.png" for i in range(6)))
  lines = [f"{i}.png,{'ab'[i % 2]}" for i in range(6)]
  (tmp_path / "table.csv").write_text("path,label\n" + "\n".join(lines) + "\n")
  table = tmp_path / "table.csv"
  status, _, err = seer(
    *("eval", "pixels", "--train", table, "--test", table, "--evals", "knn"),
    *("--config.eval.knn_k=(1,)", *more),
  )
  assert status == 2 and err.count("\n") == 1
  assert re.search(words, err), err
  assert not (tmp_path / "evals" / "evals.md").exists()
