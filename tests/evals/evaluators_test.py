"""Evaluators of fairness, robustness, retrieval: devices, padding, kills."""

import csv

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seer_jax import config as config_lib
from seer_jax.data.preprocessing import Preprocessing
from seer_jax.evals import boxes, feature_store, suite
from seer_jax.models import architectures, encoder
from seer_jax.runtime import errors
from seer_jax.runtime import mesh as mesh_lib

COUNT = 61
NAMES = ("face", "dog", "prison", "animal")


class Classifier:
  """Logits, a map and features that are fixed functions of the pixels."""

  preprocessing = Preprocessing(16, 16, mean=(0, 0, 0), std=(1, 1, 1))
  classes = 4

  def apply(self, variables, x_NxHxWx3):
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(3, 6)).astype(np.float32)
    maps = x_NxHxWx3[:, ::4, ::4] @ mix
    pooled = jnp.concatenate([maps.mean((1, 2)), maps.std((1, 2))], -1)
    head = rng.normal(size=(12, 4)).astype(np.float32)
    return {"res5": maps, "avgpool": pooled, "logits": 8 * pooled @ head}


@pytest.fixture(scope="module")
def table(tmp_path_factory):
  """Photographs of two shapes with attributes; every copy has a label."""
  folder = tmp_path_factory.mktemp("evaluators")
  rng = np.random.default_rng(1)
  rows = []
  for at in range(COUNT):
    if at % 3 == 0:
      coarse = rng.integers(0, 255, (4, 4, 3), dtype=np.uint8)
    size = (48, 32) if at % 2 else (40, 40)
    noise = rng.normal(scale=5, size=(*size[::-1], 3))
    image = np.clip(cv2.resize(coarse, size) + noise, 0, 255).astype(np.uint8)
    cv2.imwrite(str(folder / f"{at}.png"), image)
    rows.append(
      {
        "path": f"{at}.png",
        "label": NAMES[at // 3 % 4],
        "sex": "fm"[at % 2],
        "house": f"h{at // 2}",
        "latitude": at - 30,
        "longitude": 2 * at,
      }
    )
  path = folder / "table.csv"
  with path.open("w", newline="") as file:
    writer = csv.DictWriter(file, rows[0])
    writer.writeheader()
    writer.writerows(rows)
  white = folder / "white"
  white.mkdir()
  for at in range(9):
    image = rng.integers(0, 255, (32, 48, 3), dtype=np.uint8)
    cv2.imwrite(str(white / f"{at}.png"), cv2.blur(image, (5, 5)))
  cells = folder / "cells.csv"
  cells.write_text("latitude,longitude\n0,0\n10,90\n-20,120\n30,20\n")
  return path


def config_of(table, *evals, **changes):
  config = config_lib.base()
  for part in (config.data.train, config.data.test):
    part.kind, part.path = "list", str(table)
  config.eval.evals, config.eval.by = evals, ("sex",)
  config.eval.smallest_group, config.eval.resamples = 5, 50
  config.eval.neighbours, config.eval.knn_k = (1, 5), (5,)
  config.eval.corruptions, config.eval.severities = ("fog", "snow"), (1, 4)
  config.eval.cells = str(table.parent / "cells.csv")
  retrieval = config.eval.retrieval
  retrieval.longest, retrieval.round_to = 48, 16
  retrieval.components = 4
  retrieval.whiten = str(table.parent / "white")
  config.update_from_flattened_dict(changes)
  return config


def measured(config, devices=1, batch_size=64, names=NAMES, **options):
  config.eval.batch_size = batch_size
  images = suite.sets(config, suite.open_source(config, "train"))
  evaluation = suite.Evaluation(
    config,
    images,
    Classifier(),
    "float32",
    mesh_lib.make(devices),
    class_names=names,
    **options,
  )
  return evaluation.run({})


ALL = (
  *("knn", "accuracy", "associations", "same", "corruptions", "retrieval"),
  "geolocation",
)


@pytest.fixture(scope="module")
def once(table):
  return measured(config_of(table, *ALL))


def assert_same(found, wanted):
  assert list(found) == list(wanted)
  for name, value in wanted.items():
    assert found[name] == pytest.approx(value, abs=1e-6, nan_ok=True), name


@pytest.mark.parametrize(("devices", "batch_size"), [(8, 64), (8, 24), (1, 7)])
def test_devices_batches_and_padding_change_no_figure(
  table, once, devices, batch_size
):
  """61 images are divided by no batch and no number of devices.

  VISSL's kNN asserts that they are, and its analyses read what the first of
  several processes wrote.
  """
  assert 0 < once["associations/human/t=0.3"] < 1 > once["retrieval/mAP"]
  found = measured(config_of(table, *ALL), devices, batch_size)
  assert_same(found, once)
  assert found["accuracy/n"] == found["geolocation/25km/n"] == COUNT


class Killed(BaseException):
  pass


@pytest.mark.parametrize("stop", [1, 3, 9])
def test_an_interrupted_extraction_resumes_to_the_same_figures(
  table, once, stop, tmp_path
):
  calls = []

  def between():
    calls.append(1)
    if len(calls) == stop:
      raise Killed

  evals = "associations", "same", "retrieval", "geolocation"
  for _ in range(2):
    store = feature_store.FeatureStore(tmp_path)
    config = config_of(table, *evals)
    if not calls:
      with pytest.raises(Killed):
        measured(config, batch_size=8, between=between, store=store)
      continue
    found = measured(config, batch_size=8, store=store)
  assert_same(found, {k: v for k, v in once.items() if k in found})


@pytest.fixture(scope="module")
def network():
  """A RegNet with several groups, whose convolution sees parts of a batch."""
  model = encoder.Encoder(
    architectures.Architecture((1, 1), (16, 32), (8, 8), strides=(2, 2)),
    classes=4,
    preprocessing=Preprocessing(16, 16),
  )
  x = jnp.zeros((1, 16, 16, 3))
  return model, dict(jax.jit(model.init)(jax.random.key(0), x))


def test_a_regnet_gives_the_same_figures_on_eight_devices(table, network):
  found = []
  for devices in (1, 8):
    config = config_of(
      table,
      *("accuracy", "retrieval", "geolocation"),
      **{"eval.retrieval.tap": "res3", "eval.batch_size": 16},
    )
    images = suite.sets(config, suite.open_source(config, "train"))
    mesh = mesh_lib.make(devices)
    with jax.set_mesh(mesh):
      evaluation = suite.Evaluation(
        config, images, network[0], "float32", mesh, class_names=NAMES
      )
      found.append(evaluation.run(network[1]))
  assert_same(found[1], found[0])


def test_a_copy_is_found_and_no_query_finds_itself(table, once):
  """The database is the queries, of which two or more are nearly the same."""
  assert 0.3 < once["retrieval/mAP"] < 1
  assert {"retrieval/mAP/sex=f", "retrieval/mAP/sex/gap"} <= set(once)


def test_other_variables_are_measured_anew(table):
  """As at the evaluations of a run in training."""

  class Scaled(Classifier):
    def apply(self, variables, x_NxHxWx3):
      scale = variables["params"]["scale"]
      return super().apply({}, x_NxHxWx3 * scale)

  config = config_of(
    table, "associations", "geolocation", "retrieval", "same", "corruptions"
  )
  images = suite.sets(config, suite.open_source(config, "train"))
  evaluation = suite.Evaluation(
    config, images, Scaled(), "float32", mesh_lib.make(1), class_names=NAMES
  )
  first, other, again = (
    evaluation.run({"params": {"scale": jnp.float32(scale)}})
    for scale in (1, -1, 1)
  )
  assert first == again
  for kind in ("associations", "geolocation", "retrieval", "corruptions"):
    assert any(
      value != other[name]
      for name, value in first.items()
      if name.startswith(kind) and value == value
    ), kind


def test_views_are_not_random(table):
  """VISSL's fairness transforms crop at random, so figures vary."""
  config = config_of(table, "same", "associations")
  assert measured(config) == measured(config)


def test_units_and_masks_come_from_the_config(table):
  config = config_of(table, "accuracy", **{"eval.unit": "house"})
  found = measured(config)
  assert found["accuracy/n"] == (COUNT + 1) // 2
  config = config_of(table, "accuracy", **{"eval.mask_classes": True})
  names = (*NAMES[:3], "other")
  with pytest.raises(errors.UserError, match="'animal', but it is no class"):
    measured(config, names=names)


def boxed(table, folder, text):
  path = folder / "boxed.csv"
  header, *rows = table.read_text().splitlines()[:11]
  path.write_text(
    "\n".join([f"{header},x0,y0,x1,y1", *(f"{row},{text}" for row in rows)])
  )
  for image in table.parent.glob("?.png"):
    (folder / image.name).write_bytes(image.read_bytes())
  return path


def test_boxes_of_the_table_are_what_is_seen(table, tmp_path):
  path = boxed(table, tmp_path, "-4,8,20,24")
  config = config_of(path, "same")
  images = suite.sets(config, suite.open_source(config, "train"))
  query = boxes.of_config(config, images.query, Classifier())
  image = cv2.imread(str(tmp_path / "1.png"))[..., ::-1]
  found = query.view(image, 1)
  wanted = Classifier.preprocessing.view(image[8:24, 0:20])
  np.testing.assert_array_equal(found, wanted)
  config.eval.published_views = True
  query = boxes.of_config(config, images.query, Classifier())
  assert query.view(image, 1).shape == (16, 16, 3)
  path = boxed(table, tmp_path, "0,8,20,")
  config = config_of(path, "same")
  with pytest.raises(errors.UserError, match="10 of 10 images have no box"):
    boxes.of_config(config, images.query, Classifier())


@pytest.mark.parametrize(
  ("evals", "changes", "words"),
  [
    (("associations",), {"names": ()}, "need the names"),
    (("geolocation",), {"eval.cells": ""}, "needs config.eval.cells"),
    (("same",), {"eval.neighbours": (100,)}, "asks for 100 of only 61"),
    (("corruptions",), {"eval.corruptions": ("fogg",)}, "'fogg', which does"),
    (("shifts",), {}, "no shifted set is given"),
    (("shifts",), {"eval.shifts": ("imagenet_b=x",)}, "give NAME=FOLDER"),
    (("knn",), {"eval.by": ("age",)}, "has no column 'age'"),
    (("knn",), {"eval.by": ("label*",)}, "has no column ''"),
    (
      ("retrieval",),
      {"eval.retrieval.components": 6, "eval.retrieval.pooling": "gem"},
      "needs more than 6 vectors|whitening to 6",
    ),
    (("retrieval",), {"eval.retrieval.whiten": "TABLE"}, "whiten is the data"),
  ],
)
def test_what_is_missing_is_one_line(table, evals, changes, words):
  names = changes.pop("names", NAMES)
  if changes.get("eval.retrieval.whiten") == "TABLE":
    changes["eval.retrieval.whiten"] = str(table)
  if changes.get("eval.retrieval.components"):
    some = table.parent / "some"
    some.mkdir(exist_ok=True)
    for at in range(6):
      (some / f"{at}.png").write_bytes(
        (table.parent / f"{at}.png").read_bytes()
      )
    changes["eval.retrieval.whiten"] = str(some)
  with pytest.raises(errors.UserError, match=words) as raised:
    measured(config_of(table, *evals, **changes), names=names)
  assert "\n" not in str(raised.value)


def test_the_published_ground_truth_decides_what_is_right(table, tmp_path):
  """Easy: itself; hard: the first of the others with its label; junk: more."""
  truth = tmp_path / "truth.json"
  queries = [
    {"easy": [q], "hard": [(q + 1) % COUNT], "junk": [(q + 2) % COUNT]}
    for q in range(COUNT)
  ]
  truth.write_text(str({"queries": queries}).replace("'", '"'))
  config = config_of(
    table, "retrieval", **{"eval.retrieval.ground_truth": str(truth)}
  )
  found = measured(config)
  assert found["retrieval/easy/mAP"] == 1
  hard, medium = (found[f"retrieval/{each}/mAP"] for each in ("hard", "medium"))
  assert 0 < hard < medium < 1
  truth.write_text(str({"queries": queries[1:]}).replace("'", '"'))
  with pytest.raises(errors.UserError, match="is for 60 queries"):
    measured(config)
  truth.write_text("{}")
  with pytest.raises(errors.UserError, match="no right answers"):
    measured(config)
