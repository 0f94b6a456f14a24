"""`seer-jax eval` and `labels`, on a tiny run of digits."""

import json

import numpy as np
import pytest
import runs

from seer_jax.apps import evaluate
from seer_jax.evals import feature_store, features

RECIPE = """
from seer_jax import config as config_lib


def get_config():
  config = config_lib.labelled()
  config.task = "{task}"
  config.steps, config.batch_size = 4, 16
  config.optim.lr = 0.5
  config.log.every = 2
  config.probe.rates = (1.0, 10.0)
  return config
"""


@pytest.fixture
def recipes(tmp_path):
  paths = []
  for task in ("probe", "finetune"):
    path = tmp_path / f"{task}.py"
    path.write_text(RECIPE.format(task=task))
    paths += [f"--{'linear' if task == 'probe' else task}", path]
  return paths


def lines_of(folder):
  text = (folder / "evals.jsonl").read_text()
  return [json.loads(line) for line in text.splitlines()]


def test_several_side_by_side_and_once(tiny, seer, tmp_path, monkeypatch):
  command = (
    *("eval", tiny, "untrained", "pixels", "--evals", "stats,knn,logistic"),
    *("--config.eval.knn_k=(5,20)", "--config.eval.knn_temperature=(0.1,1.0)"),
    *("--config.eval.shares=(0.1,)", "--config.eval.shots=(2,)"),
    "--config.eval.seeds=2",
  )
  status, out, err = seer(*command)
  assert status == 0, err
  head, *rows = out.splitlines()
  assert head.split() == [str(tiny), "untrained", "pixels"]
  names = [row.split()[0] for row in rows]
  assert {"features/rankme", "knn/k=5,T=0.1", "knn/k=20,T=1/top5"} <= set(names)
  assert "logistic/10%" in names and "logistic/2-shot" in names
  assert any("±" in row for row in rows)
  markdown = (tmp_path / "evals" / "evals.md").read_text()
  assert markdown.startswith(f"|  | {str(tiny).replace('_', chr(92) + '_')} |")
  assert len(lines_of(tmp_path / "evals")) == 9

  # Again: every figure is in the file, and no image is read.
  def no_more(*arguments):
    raise AssertionError("features were computed again")

  monkeypatch.setattr(features.Extractor, "rows", no_more)
  assert seer(*command)[:2] == (0, out)
  # Another k: features are on the disk.
  more = "--config.eval.knn_k=(3,)"
  status, out, _ = seer("eval", tiny, "--evals", "knn", more)
  assert status == 0 and "knn/k=3" in out


def test_a_probe_and_fine_tuning_of_a_checkpoint(
  tiny, seer, recipes, tmp_path, shared_steps
):
  checkpoint = tiny / "checkpoints" / "20"
  status, out, err = seer(
    *("eval", checkpoint, "--evals", "linear,finetune@50%"),
    *(*recipes, "--seeds", 2),
  )
  assert status == 0, err
  rows = {row.split()[0]: row for row in out.splitlines()[1:]}
  for name in ("linear", "linear/res2", "linear/avgpool"):
    assert "±" in rows[name]
  assert "±" in rows["finetune@50%"]
  found = lines_of(tmp_path / "evals")
  assert [line["eval"] for line in found] == [
    f"{name}#{seed}" for name in ("linear", "finetune@50%") for seed in (0, 1)
  ]
  heads = found[0]["figures"]
  chosen = max(
    (name for name in heads if "/choice/" in name), key=lambda n: heads[n]
  )
  assert heads["linear"] == heads[chosen.replace("/choice", "")]
  # The workdir of a fine-tuning run is weights too, with a head.
  workdir = next((tmp_path / "evals" / "runs").glob("*finetune*-0-*"))
  status, out, err = seer("eval", workdir, "--evals", "accuracy")
  assert status == 0, err
  assert f"{found[2]['figures']['finetune@50%']:.3f}" in out


def test_ranked_without_labels(tiny, seer):
  first = tiny / "checkpoints" / "10"
  status, out, err = seer("eval", first, tiny, "pixels", "--without-labels")
  assert status == 0, err
  _, ranks, *rows = out.splitlines()
  assert ranks.split()[-3:] == ["1", "2", "3"]
  rankme = next(row for row in rows if row.startswith("features/rankme"))
  values = [float(value) for value in rankme.split()[1:]]
  assert values == sorted(values, reverse=True)
  assert "prototypes/unique" in out and "features/alpha" in out


@pytest.mark.slow
def test_a_curve_over_labels(tiny, seer, recipes, tmp_path, shared_steps):
  status, _, err = seer(
    *("labels", tiny, "--shares", "5,20", "--seeds", 2),
    *(*recipes[2:], "--seeds-trained", 1, "--out", "curve"),
  )
  assert status == 0, err
  found = [line["eval"] for line in lines_of(tmp_path / "curve")]
  assert found == [
    *("scratch@5%#0", "scratch@20%#0", "finetune@5%#0", "finetune@20%#0"),
    *[f"logistic@{share}%#{seed}" for share in (5, 20) for seed in (0, 1)],
    *("logistic@5%#0", "logistic@20%#0"),
  ]


def test_what_a_curve_shows(tiny, seer, tmp_path, monkeypatch):
  """The command around measurements that are given."""
  steps = {"scratch": (0.2, 0.4), "finetune": (0.4, 0.5)}
  monkeypatch.setattr(
    evaluate.Evaluation,
    "trained_with",
    lambda self, subject, name, share, seed: steps[name][share == 0.2],
  )
  monkeypatch.setattr(
    evaluate.Evaluation,
    "logistic",
    lambda self, subject, share, seed: share + 0.01 * seed,
  )
  status, out, err = seer(
    *("labels", tiny, "--shares", "5,20", "--seeds", 2),
    *("--seeds-trained", 1, "--out", "curve"),
  )
  assert status == 0, err
  head, first, second, *said = out.splitlines()
  assert head.split("  ")[0] == "labels"
  assert first.split() == [
    *("5", "%", "(65)", "20.0", "40.0"),
    *("5.5", "±", "0.7", "5.0"),
  ]
  assert second.startswith("20 % (259)")
  assert said == [
    "fine-tune: matches supervised with 4.0 times fewer labels, at 5 % of them;"
    " 2.5 times in the median over shares",
    "probe: needs as many labels as training from scratch, or more",
  ]
  names = {path.name for path in (tmp_path / "curve").iterdir()}
  assert {"labels.md", "labels.png", "labels.svg"} <= names
  status, _, err = seer("labels", tiny, "--shares", "20,5")
  assert status == 2 and "give rising percentages" in err


def plant(folder, classes, count=12):
  import cv2

  rng = np.random.default_rng(0)
  for label in classes:
    (folder / label).mkdir(parents=True, exist_ok=True)
    for i in range(count):
      pixels = rng.integers(0, 255, (16, 16, 3), np.uint8)
      cv2.imwrite(str(folder / label / f"{i}.png"), pixels)
  return folder


def test_mistakes_are_one_line(tiny, seer, recipes, tmp_path):
  two = plant(tmp_path / "two", ("a", "b"))
  one = plant(tmp_path / "one", ("a",))
  other = plant(tmp_path / "other", ("a", "c"))
  none = plant(tmp_path / "none", (".",))
  data = "--train", two, "--test", two
  for arguments, words in (
    ((tiny, "--train", none, "--test", two), "not labelled"),
    ((tiny, "--train", two, "--test", one), "all of one class, 'a'"),
    (
      (tiny, "--train", two, "--test", other),
      "different labels: only one of them has b, c",
    ),
    ((tiny, *data), "asks for 200 neighbours, but there are only 24"),
    ((tiny, tiny, *data), "is given twice"),
    (("untrained", *data), "give those too"),
    ((tiny, "--evals", "knm", *data), "'knm', which does not exist"),
    ((tiny, "--evals", "knn@1%", *data), "only linear, finetune, scratch"),
    (("nowhere", *data), "there is no file nowhere"),
    (
      (tiny, "--evals", "linear@50%", "--train", two),
      "give --train and --test",
    ),
    ((tiny, "--seeds", "0", *data), "--seeds is 0"),
    ((tiny, "--evals", "accuracy", *data), "measures nothing"),
    (
      (tiny, "--evals", "logistic", "--config.eval.shots=(13,)", *data),
      "13-shot needs 13 images of each label, but label 0 has 12",
    ),
    (
      (tiny, "--evals", "logistic", "--config.eval.taps=('res5',)", *data),
      "the network has no tap res5",
    ),
  ):
    status, out, err = seer("eval", *arguments)
    assert status == 2, (arguments, out, err)
    last = err.strip().splitlines()[-1]
    assert last.startswith("error: ") and words in last, last


@pytest.mark.parametrize(
  ("key", "words"),
  [
    ("model.trunk=regnety_200mf", "but config.model has"),
    ("classes=3", "config.classes is 3, but the images have 10 labels"),
  ],
)
def test_weights_of_another_trunk_or_other_classes(tiny, tmp_path, key, words):
  text = RECIPE.format(task="finetune")
  text = text.replace(
    "  return", '  config.data.train.kind = "digits"\n  return'
  )
  (tmp_path / "run.py").write_text(text)
  status, _, err = runs.run(
    f"--config={tmp_path / 'run.py'}",
    f"--config.weights={tiny}",
    f"--config.{key}",
    f"--workdir={tmp_path / 'run'}",
  )
  assert status == 2 and words in err.splitlines()[-1]


def test_features_that_are_not_finite_are_refused(
  tiny, seer, tmp_path, monkeypatch
):
  real = features.heads.pooled
  monkeypatch.setattr(
    features.heads, "pooled", lambda taps, tap: real(taps, tap) * np.inf
  )
  status, _, err = seer("eval", tiny, "--evals", "knn")
  assert (
    status == 2 and "features of 100.0% of the images are not finite" in err
  )


def test_without_a_test_set_one_part_is_held_out(seer, tmp_path):
  folder = plant(tmp_path / "two", ("a", "b"), count=20)
  status, _, err = seer(
    *("eval", "pixels", "--train", folder, "--evals", "knn"),
    "--config.eval.knn_k=(32,)",
  )
  assert status == 0, err
  more = seer(
    *("eval", "pixels", "--train", folder, "--evals", "knn"),
    "--config.eval.knn_k=(33,)",
  )
  assert (
    more[0] == 2 and "33 neighbours, but there are only 32 images" in more[2]
  )


class Killed(BaseException):
  pass


def test_a_killed_pass_goes_on_behind_what_is_on_the_disk(tmp_path):
  """With a torn row at the end, as a kill leaves it."""
  from seer_jax.data import sources

  source = sources.open_source({"kind": "digits", "split": "train"})
  images = features.ImageSet(source, list(range(10)))
  asked = []

  def rows(first, stop=10):
    asked.append(first)
    for at in range(first, stop, 2):
      x = np.arange(at, at + 2, dtype=np.float32)[:, None] * [1, 10]
      labels = np.arange(at, at + 2)
      x = x.astype(np.float32)
      yield features.Rows({"avgpool": x}, labels, 2 * labels, at + 2)

  def killed(first):
    yield from rows(first, stop=6)
    raise Killed

  store = feature_store.FeatureStore(tmp_path)
  with pytest.raises(Killed):
    store.get({}, images, "about", killed)
  (folder,) = tmp_path.iterdir()
  with (folder / "avgpool.f32").open("ab") as file:
    file.write(b"torn")
  found = feature_store.FeatureStore(tmp_path).get({}, images, "about", rows)
  assert asked == [0, 6]
  wanted = np.arange(10)[:, None] * [1, 10]
  np.testing.assert_array_equal(found["avgpool"].features_NxD, wanted)
  np.testing.assert_array_equal(found["avgpool"].labels_N, np.arange(10))
  np.testing.assert_array_equal(found["avgpool"].index_N, 2 * np.arange(10))
  # Other variables, images or preprocessing are other features.
  store.get({"params": np.ones(1)}, images, "about", rows)
  store.get({}, features.ImageSet(source, list(range(9))), "about", rows)
  store.get({}, images, "else", rows)
  assert len(list(tmp_path.iterdir())) == 4
