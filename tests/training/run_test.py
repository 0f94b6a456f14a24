"""Mistakes that show once the data is looked at, and bad single images."""

import json

import cv2
import jax
import numpy as np
import pytest
from photos import plant, tiny

import seer_jax
from configs import digits
from seer_jax import commands
from seer_jax.runtime import errors
from seer_jax.training import run
from seer_jax.weights import checkpoint

pytestmark = pytest.mark.usefixtures("shared_steps")


def test_a_labelled_folder_is_trained_on_and_checked_by_knn(tmp_path, capsys):
  config = tiny(plant(tmp_path / "photos", 40))
  run.run(config, tmp_path / "run")
  assert "knn/k=20 top-1" in capsys.readouterr().out


def test_few_images_come_with_a_word_about_released_weights(tmp_path, caplog):
  config = tiny(plant(tmp_path / "photos", 40))
  with caplog.at_level("INFO"):
    run.begin(config, None)
  assert "40 images are few for pre-training" in caplog.text
  assert "--weights seer_32" in caplog.text


def test_a_flat_folder_needs_no_labels(tmp_path, capsys):
  photos = plant(tmp_path / "photos", 40)
  for image in photos.glob("*/*.jpg"):
    image.rename(photos / image.name)
  run.run(tiny(photos), tmp_path / "run")
  out = capsys.readouterr().out
  assert "knn" not in out
  assert "effective rank" in out


def test_bad_images_get_replacements_and_are_listed_once(tmp_path):
  photos = plant(tmp_path / "photos", 40)
  (photos / "cats" / "001.jpg").write_bytes(b"")
  whole = (photos / "dogs" / "002.jpg").read_bytes()
  (photos / "dogs" / "002.jpg").write_bytes(whole[: len(whole) // 2])
  run.run(tiny(photos), tmp_path / "run")
  listed = (tmp_path / "run" / "bad_images.txt").read_text().splitlines()
  assert sorted(listed) == ["cats/001.jpg", "dogs/002.jpg"]
  lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
  replacements = [json.loads(line).get("replacements", 0) for line in lines]
  assert sum(replacements) >= 2


def corrupted(whole):
  """A JPEG, harmed in ten ways."""
  middle = len(whole) // 2
  return {
    "empty": b"",
    "a byte": whole[:1],
    "head only": whole[:20],
    "cut": whole[:middle],
    "no head": whole[20:],
    "text": b"<html>404</html>",
    "zeros": bytes(len(whole)),
    "noise": np.random.default_rng(0).bytes(len(whole)),
    "another format": b"\x89PNG\r\n\x1a\n" + whole[8:],
    "no size": whole.replace(b"\xff\xc0", b"\xff\xc4", 1),
  }


def test_one_file_in_ten_harmed_in_ten_ways(tmp_path):
  photos = plant(tmp_path / "photos", 120)
  images = sorted(photos.glob("*/*.jpg"))
  harmed = set()
  for image, data in zip(
    images[::12], corrupted(images[0].read_bytes()).values(), strict=True
  ):
    image.write_bytes(data)
    harmed.add(image.relative_to(photos).as_posix())
  config = tiny(photos, data__max_bad=0.2)
  assert config.steps * config.batch_size >= 120  # Every image.
  run.run(config, tmp_path / "run")
  listed = (tmp_path / "run" / "bad_images.txt").read_text().splitlines()
  assert len(listed) == 10 and set(listed) == harmed
  lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
  replacements = [json.loads(line).get("replacements", 0) for line in lines]
  assert sum(replacements) >= 10


def test_too_many_bad_images_stop_the_run(tmp_path):
  photos = plant(tmp_path / "photos", 40)
  for image in sorted(photos.glob("cats/*.jpg"))[:10]:
    image.write_bytes(b"no image")
  with pytest.raises(errors.UserError, match=r"unusable.*max_bad"):
    run.run(tiny(photos), tmp_path / "run")


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    ({"batch_size": 64}, r"batch_size is 64, but there are only 40"),
    (
      {"batch_size": 12, "mesh__data": 8},
      r"cannot be split evenly over 8 devices",
    ),
    ({"mesh__data": 99}, r"mesh.fsdp is 99 x 1, but JAX sees 8"),
    ({"swav__queue_length": 12}, r"queue_length is 12.*multiple"),
    ({"swav__assign_crops": (0, 2)}, r"assign_crops is \(0, 2\)"),
    ({"swav__epsilon": 0.0}, r"epsilon is 0"),
    ({"crops__counts": (2, 4)}, r"crops.scales is .*counts=\(2, 4\)"),
    ({"crops__scales": ((0.4, 1.2),)}, r"crops.scales"),
    ({"optim__name": "adam"}, r"optim.name is 'adam'"),
    ({"precision": "fp8"}, r"precision is 'fp8'"),
    (
      {"model__trunk": "resnet50", "model__regnet": ()},
      r"model.trunk: there is no trunk 'resnet50'",
    ),
    ({"model__regnet": (1, 2)}, r"model.regnet"),
    ({"data__train__kind": "floder"}, r"floder"),
    ({"data__test__kind": "folder"}, r"folder"),
  ],
)
def test_impossible_settings_are_refused_before_anything_is_written(
  tmp_path, changes, words
):
  config = tiny(plant(tmp_path / "photos", 40), **changes)
  with pytest.raises(errors.UserError, match=words) as caught:
    run.run(config, tmp_path / "run")
  assert "\n" not in str(caught.value)
  assert not (tmp_path / "run").exists()


def test_data_that_changed_under_a_run_is_refused(tmp_path):
  photos = plant(tmp_path / "photos", 40)
  run.run(tiny(photos), tmp_path / "run")
  next(photos.glob("*/*.jpg")).unlink()
  with pytest.raises(errors.UserError, match="40 images, but there are now 39"):
    run.run(tiny(photos), tmp_path / "run")


def test_images_of_other_names_under_a_run_are_refused(tmp_path):
  photos = plant(tmp_path / "photos", 40)
  run.run(tiny(photos), tmp_path / "run")
  image = next(photos.glob("*/*.jpg"))
  image.rename(image.with_name("other.jpg"))
  with pytest.raises(errors.UserError, match="images with other names"):
    run.run(tiny(photos), tmp_path / "run")


def test_a_workdir_that_is_a_file_is_a_user_error(tmp_path):
  (tmp_path / "run").write_text("")
  with pytest.raises(errors.UserError, match="cannot write to --workdir"):
    run.run(tiny(plant(tmp_path / "photos", 40)), tmp_path / "run")


def test_a_diverging_run_stops_before_it_saves(tmp_path):
  config = tiny(plant(tmp_path / "photos", 40))
  config.optim.name, config.optim.lr = "sgd", 1e30
  config.checkpoint.every = 3
  with pytest.raises(errors.UserError, match="diverged"):
    run.run(config, tmp_path / "run")


def test_formats_without_a_simple_header_are_images_too(tmp_path):
  photos = plant(tmp_path / "photos", 16)
  for image in photos.glob("*/*.jpg"):
    cv2.imwrite(str(image.with_suffix(".tif")), cv2.imread(str(image)))
    image.unlink()
  run.run(tiny(photos), tmp_path / "run")


def test_a_few_labels_among_many_unlabelled_skip_what_cannot_be(
  tmp_path, capsys
):
  photos = plant(tmp_path / "photos", 40)
  for image in sorted(photos.glob("*/*.jpg"))[1:]:
    image.rename(photos / image.name)
  run.run(tiny(photos), tmp_path / "run")
  assert "knn" not in capsys.readouterr().out


def test_an_empty_or_missing_folder_is_a_user_error(tmp_path):
  with pytest.raises(errors.UserError, match="no such folder"):
    run.run(tiny(tmp_path / "nowhere"), tmp_path / "run")
  (tmp_path / "empty").mkdir()
  with pytest.raises(errors.UserError, match="no images"):
    run.run(tiny(tmp_path / "empty"), tmp_path / "run")


@pytest.mark.slow
def test_digits_learn_what_the_readme_promises(tmp_path, capsys):
  run.run(digits.get_config(), tmp_path)
  lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
  before, after = json.loads(lines[0]), json.loads(lines[-1])
  assert after["knn/k=20"] >= 0.97
  assert after["knn/k=20"] >= before["knn/k=20"] + 0.1
  assert json.loads(lines[-2])["loss_over_lnk"] < 0.9
  assert "trained" in capsys.readouterr().out


def test_a_trunk_from_lists_is_trained_loaded_and_taken_elsewhere(tmp_path):
  config = tiny(
    plant(tmp_path / "photos", 40),
    model__regnet=(),
    model__depths=(1,),
    model__widths=(24,),
    model__group_widths=(8,),
    model__stem_stride=2,
    steps=2,
  )
  run.run(config, tmp_path / "run")
  network, variables = seer_jax.load(tmp_path / "run")
  assert network.architecture.widths == (24,)
  assert (network.hidden, network.out) == ((8,), 128)
  images = sorted((tmp_path / "photos" / "cats").iterdir())[:2]
  found = network.apply(variables, network.preprocessing(images))
  assert found["avgpool"].shape == (2, 24)
  assert found["projection"].shape == (2, 128)
  saved = checkpoint.Checkpoints(tmp_path / "run" / "checkpoints").read()
  same = jax.tree.map(np.array_equal, variables["params"], saved["params"])
  assert all(jax.tree.leaves(same))
  out = tmp_path / "out.torch"
  assert (
    commands.main(["convert", str(tmp_path / "run"), str(out), "--to=vissl"])
    == 0
  )
  again, others = seer_jax.load(out)
  assert again.architecture == network.architecture
  same = jax.tree.map(np.array_equal, variables, others)
  assert all(jax.tree.leaves(same))


@pytest.mark.parametrize(
  "changes",
  [
    {"model__depths": (1, 1)},
    {"model__depths": (1, 1), "model__widths": (16, 32)},
    {
      "model__depths": (1, 1),
      "model__widths": (16, 32),
      "model__group_widths": (8, 12),
    },
    {"model__regnet": (), "model__trunk": "regnety_33gf"},
  ],
)
def test_a_trunk_that_is_none_is_refused(tmp_path, changes):
  changes = {"model__strides": (2, 2)} | changes
  config = tiny(plant(tmp_path / "photos", 40), **changes)
  with pytest.raises(errors.UserError, match=r"config\.model"):
    run.run(config, tmp_path / "run")
