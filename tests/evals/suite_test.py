"""Which evaluators run, and on which images."""

import shutil

import photos
import pytest

from seer_jax import config as config_lib
from seer_jax.data import sources
from seer_jax.data.preprocessing import Preprocessing
from seer_jax.evals import suite
from seer_jax.runtime import errors
from seer_jax.runtime import mesh as mesh_lib


class Pixels:
  preprocessing = Preprocessing(8, 8, mean=(0, 0, 0), std=(1, 1, 1))

  def apply(self, variables, x_NxHxWx3):
    return {"avgpool": x_NxHxWx3.mean(-1).reshape(len(x_NxHxWx3), -1)}


def config_of(**changes):
  config = config_lib.base()
  config.data.train.kind, config.data.train.split = "digits", "train"
  config.data.test.kind, config.data.test.split = "digits", "test"
  config.eval.max_images = 120
  config.update_from_flattened_dict(changes)
  return config


def measured(config):
  source = suite.open_source(config, "train")
  images = suite.sets(config, source)
  mesh = mesh_lib.make(1)
  evaluation = suite.Evaluation(config, images, Pixels(), "float32", mesh)
  return evaluation.run({})


def test_a_run_is_evaluated_by_what_its_config_names():
  found = measured(
    config_of(
      **{
        "eval.evals": ("knn", "logistic", "svm"),
        "eval.knn_k": (5,),
        "eval.shares": (0.5,),
        "eval.shots": (3,),
        "eval.seeds": 2,
      }
    )
  )
  assert list(found) == [
    *("knn/k=5", "knn/k=5/top5"),
    *("logistic/50%", "logistic/50%/std"),
    *("logistic/3-shot", "logistic/3-shot/std"),
    *("svm/50%", "svm/50%/std", "svm/3-shot", "svm/3-shot/std"),
  ]
  assert found["logistic/50%"] > 0.6 and found["svm/50%"] > 0.6


def test_one_label_is_told_apart_from_nothing(tmp_path, caplog):
  caplog.set_level("INFO")
  photos.plant(tmp_path, 16)
  shutil.rmtree(tmp_path / "dogs")
  kind = {
    "data.train.kind": "folder",
    "data.train.path": str(tmp_path),
    "data.train.split": "",
    "data.test.kind": "",
  }
  found = measured(config_of(**kind, **{"eval.evals": ("knn", "stats")}))
  assert not any(name.startswith("knn") for name in found)
  assert "features/rank" in found
  assert "kNN is skipped: the images have a single label" in caplog.text


def test_an_unknown_evaluation_is_refused():
  with pytest.raises(
    errors.UserError, match="'knm', which does not exist.*stats, knn"
  ):
    measured(config_of(**{"eval.evals": ("knm",)}))


def split(**changes):
  config = config_of(**changes)
  return suite.split(config, suite.open_source(config, "train"))


def names(source, indices):
  return {source.id_of(i) for i in indices}


@pytest.mark.parametrize("kind", ["", "digits"])
def test_nothing_is_trained_on_that_is_tested_or_chooses(kind):
  changes = {"task": "probe", "data.test.kind": kind, "eval.max_images": 2000}
  source, sets = split(**changes)
  trained = names(source, range(len(source)))
  tested = names(sets.query.source, sets.query.indices)
  choosing = names(sets.choice.source, sets.choice.indices)
  assert len(trained | choosing) == len(trained) + len(choosing)
  assert len(choosing) == round(0.1 * (len(trained) + len(choosing)))
  if not kind:
    assert not tested & (trained | choosing)
    assert len(tested | trained | choosing) == 1297
  again = split(**changes)[1].choice
  assert names(again.source, again.indices) == choosing


def test_swav_trains_on_all_images():
  config = config_of()
  source = suite.open_source(config, "train")
  assert suite.split(config, source)[0] is source


def test_a_classifier_needs_labels(tmp_path):
  photos.plant(tmp_path, 8)
  for path in (tmp_path / "cats", tmp_path / "dogs"):
    source = sources.open_source({"path": str(path)})
    with pytest.raises(errors.UserError, match="not labelled"):
      suite.need_labels(source, "config.data.train")
