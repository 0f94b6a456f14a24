"""Fields of the JSON beside weights: honoured, or refused by name."""

import dataclasses
import json

import pytest
from weights_test import opened_of

import seer_jax
from seer_jax.models import architectures
from seer_jax.runtime import errors
from seer_jax.weights import convert

ARCHITECTURE = architectures.Architecture(
  (1, 2, 1, 1), (16, 24, 48, 80), (8, 8, 8, 8)
)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
  """Folders with the arrays and the JSON of Hugging Face and of timm."""
  base = tmp_path_factory.mktemp("exported")
  opened = opened_of(ARCHITECTURE, classes=7)
  list(convert.convert(opened, base / "huggingface", "huggingface"))
  list(convert.convert(opened, base / "timm" / "model.safetensors", "timm"))
  (base / "timm" / "config.json").write_text(
    json.dumps(
      {
        "architecture": "regnety_002",
        "num_classes": 7,
        "pretrained_cfg": {
          "input_size": [3, 224, 224],
          "crop_pct": 0.9,
          "crop_mode": "center",
          "interpolation": "bicubic",
          "mean": [0.5, 0.5, 0.5],
          "std": [0.2, 0.2, 0.2],
        },
      }
    )
  )
  return base


def change(exported, tmp_path, whose, file="config.json", **fields):
  """A copy whose JSON says something else; ... removes a field."""
  for path in (exported / whose).iterdir():
    (tmp_path / path.name).write_bytes(path.read_bytes())
  said = json.loads((tmp_path / file).read_text()) | fields
  kept = {key: value for key, value in said.items() if value is not ...}
  (tmp_path / file).write_text(json.dumps(kept))
  return tmp_path


@pytest.mark.parametrize(
  "name, value",
  [
    ("hidden_act", "gelu"),
    ("hidden_act", ["relu"]),
    ("downsample_in_first_stage", "no"),
    ("num_channels", 1),
    ("embedding_size", 64),
    ("hidden_sizes", [16, 24, 48, 88]),
    ("hidden_sizes", ...),  # transformers' own are others.
    ("depths", [1, 2, 1, 2]),
    ("groups_width", 16),
    ("groups_width", "x"),
    ("groups_width", 0),
    ("layer_type", "x"),
    ("model_type", "resnet"),
    ("quantization_config", {"bits": 4}),
  ],
)
def test_what_changes_the_output_is_refused(exported, tmp_path, name, value):
  folder = change(exported, tmp_path, "huggingface", **{name: value})
  for path in (folder, folder / "model.safetensors"):
    with pytest.raises(errors.UserError) as caught:
      seer_jax.load(path)
    line = str(caught.value)
    assert f"config.json has {name}=" in line
    if value == [1, 2, 1, 2]:
      assert "depths=[1, 2, 1, 2]: the arrays have [1, 2, 1, 1];" in line


def test_a_first_stage_that_keeps_its_size_is_honoured(exported, tmp_path):
  folder = change(
    exported, tmp_path, "huggingface", downsample_in_first_stage=False
  )
  model, _ = seer_jax.load(folder)
  assert model.architecture.strides == (1, 2, 2, 2)
  assert seer_jax.load(exported / "huggingface")[0].architecture.strides == (
    (2,) * 4
  )


@pytest.mark.parametrize("stem_width", [32, 16])
def test_such_a_network_goes_to_hugging_face_and_back(tmp_path, stem_width):
  """With a stem of its width, its first block has no shortcut."""
  arch = dataclasses.replace(
    ARCHITECTURE, strides=(1, 2, 2, 2), stem_width=stem_width
  )
  opened = opened_of(arch)
  list(convert.convert(opened, tmp_path / "a", "huggingface"))
  assert seer_jax.load(tmp_path / "a")[0].architecture == arch
  with pytest.raises(errors.UserError, match="strides other than 2"):
    list(convert.convert(opened, tmp_path / "a.pth", "torchvision"))


@pytest.mark.parametrize(
  "fields, words",
  [
    ({"model_args": {"act_layer": "silu"}}, "model_args.act_layer=silu"),
    ({"model_args": {"output_stride": 16}}, "model_args.output_stride=16"),
    ({"model_args": ["act_layer"]}, 'model_args=["act_layer"]'),
    ({"global_pool": "max"}, "global_pool=max"),
    ({"num_classes": 8}, "num_classes=8"),
    ({"model_args": {"num_classes": 7}, "global_pool": "avg"}, ""),
  ],
)
def test_arguments_of_timm_s_models(exported, tmp_path, fields, words):
  folder = change(exported, tmp_path, "timm", **fields)
  if not words:
    assert seer_jax.load(folder)[0].preprocessing.resize == 248
    return
  with pytest.raises(errors.UserError) as caught:
    seer_jax.load(folder)
  assert f"config.json has {words}:" in str(caught.value)


@pytest.mark.parametrize(
  "fields",
  [
    {"resample": 0},
    {"resample": ...},
    {"do_normalize": False},
    {"do_rescale": False},
    {"size": {"height": 224}},
    {"crop_pct": 0},
    {"crop_pct": 5e-324},
    {"size": float("inf")},
    {"image_mean": [0.5]},
    {"image_std": "abc"},
  ],
)
def test_images_that_cannot_be_prepared_so_are_refused(
  exported, tmp_path, fields
):
  name = "preprocessor_config.json"
  folder = change(exported, tmp_path, "huggingface", name, **fields)
  with pytest.raises(
    errors.UserError, match=f"{name} has no valid preprocessing"
  ) as caught:
    seer_jax.load(folder)
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json"])
@pytest.mark.parametrize("text", ["[" * 100_000, "{", "\xff", '{"a": 1e999'])
def test_damaged_json_is_one_line(exported, tmp_path, file, text):
  folder = change(exported, tmp_path, "huggingface")
  (folder / file).write_text(text, encoding="latin-1")
  with pytest.raises(errors.UserError, match=f"{file} is not JSON") as caught:
    seer_jax.load(folder)
  assert "\n" not in str(caught.value)
