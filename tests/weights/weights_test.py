"""Weights in and out, in every format, without any of the peers."""

import dataclasses
import functools
import json
import pathlib
import shutil
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import seer_jax
from seer_jax import commands
from seer_jax.data.preprocessing import Preprocessing
from seer_jax.models import architectures, encoder
from seer_jax.runtime import errors
from seer_jax.runtime import mesh as mesh_lib
from seer_jax.weights import (
  convert,
  lazy_weights,
  model_zoo,
  name_maps,
)
from seer_jax.weights.exports import orbax
from seer_jax.weights.formats import safetensors_file, torch_file

_SMALL = architectures.Architecture(
  (1, 2, 1, 1), (16, 24, 48, 80), (8, 8, 8, 8)
)
_SWAV = {
  "hidden": (32, 24),
  "out": 16,
  "batch_norm": True,
  "prototype_counts": (20, 30),
}
_FEW = {"hidden": (32,), "batch_norm": True, "classes": 7}


@functools.cache
def shapes_of(architecture, **heads):
  """A network and the shapes of its variables."""
  network = encoder.Encoder(architecture, **heads)
  return network, jax.eval_shape(
    lambda: network.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
  )


def network_of(architecture=_SMALL, **heads):
  """A network and variables that are random, statistics included."""
  network, abstract = shapes_of(architecture, **heads)
  rng = np.random.default_rng(0)

  def draw(path, leaf):
    values = rng.normal(size=leaf.shape, scale=0.1).astype(np.float32)
    positive = mesh_lib.path_of(path).endswith(("var", "scale"))
    return 1 + np.abs(values) if positive else values

  return network, jax.tree.map_with_path(draw, abstract)


def opened_of(*args, **heads):
  return lazy_weights.in_memory("a test", *network_of(*args, **heads))


def converted(opened, out, to):
  lines = list(convert.convert(opened, out, to))
  return lines, *seer_jax.load(out)


def same(ours, theirs):
  """Whether two trees of variables are, bit for bit."""
  for path, leaf in jax.tree.leaves_with_path(theirs):
    name = mesh_lib.path_of(path)
    other = ours
    for key in path:
      other = other[key.key]
    np.testing.assert_array_equal(leaf, other, err_msg=name)
  return True


OUT = {
  "vissl": "a.torch",
  "timm": "a.safetensors",
  "torchvision": "a.pth",
  "huggingface": "a",
  "orbax": "a",
}


@pytest.mark.parametrize("to", OUT)
@pytest.mark.parametrize("se_ratio", [0.0, 0.25])
def test_there_and_back_is_the_same(tmp_path, to, se_ratio):
  arch = dataclasses.replace(_SMALL, se_ratio=se_ratio)
  opened = opened_of(arch, classes=7)
  lines, network, back = converted(opened, tmp_path / OUT[to], to)
  assert network.architecture == arch
  assert network.classes == 7
  assert same(network_of(arch, classes=7)[1], back)
  assert lines[-1] == f"wrote {tmp_path / OUT[to]}"
  assert "left over: nothing" in lines


@pytest.mark.parametrize("to", ["vissl", "orbax"])
@pytest.mark.parametrize(
  "heads", [_SWAV, _SWAV | {"batch_norm": False}, _FEW, {}]
)
def test_heads_go_along_where_there_is_a_place(tmp_path, to, heads):
  opened = opened_of(**heads)
  _, network, back = converted(opened, tmp_path / OUT[to], to)
  assert same(network_of(**heads)[1], back)
  for name, value in heads.items():
    assert getattr(network, name) == value


def test_heads_without_a_place_are_dropped_and_told(tmp_path):
  lines, network, _ = converted(
    opened_of(**_SWAV), tmp_path / "a.safetensors", "timm"
  )
  assert network.out == 0
  dropped = [line.split()[0] for line in lines if "dropped" in line]
  assert dropped == ["head", "prototypes_0", "prototypes_1"]


def test_a_z_goes_to_those_who_have_it(tmp_path):
  arch = dataclasses.replace(_SMALL, bottleneck=4.0, linear=True)
  opened = opened_of(arch, classes=3)
  _, network, back = converted(opened, tmp_path / "a.torch", "vissl")
  assert network.architecture == arch
  assert same(network_of(arch, classes=3)[1], back)
  for to in ("timm", "torchvision", "huggingface"):
    with pytest.raises(errors.UserError, match="RegNetZ"):
      list(convert.convert(opened, tmp_path / OUT[to], to))
    assert not (tmp_path / OUT[to]).exists()


def test_small_strides_are_refused_before_anything_is_written(tmp_path):
  arch = dataclasses.replace(_SMALL, stem_stride=1)
  with pytest.raises(errors.UserError, match="strides"):
    list(convert.convert(opened_of(arch), tmp_path / "a", "huggingface"))
  assert not list(tmp_path.iterdir())


def test_hidden_layers_stand_before_the_classifier():
  network, variables = network_of(**_FEW)
  images = jax.random.normal(jax.random.key(1), (2, 64, 64, 3))
  found = network.apply(variables, images)
  head = variables["params"]["head"]["linear0"]
  stats = variables["batch_stats"]["head"]["bn0"]
  norm = variables["params"]["head"]["bn0"]
  x = found["avgpool"] @ head["kernel"] + head["bias"]
  x = (x - stats["mean"]) / np.sqrt(stats["var"] + 1e-5)
  x = np.maximum(x * norm["scale"] + norm["bias"], 0)
  last = variables["params"]["classifier"]
  np.testing.assert_allclose(
    found["logits"], x @ last["kernel"] + last["bias"], rtol=1e-4, atol=1e-5
  )
  assert "projection" not in found


def vissl_file(path, rename=lambda name: name, drop=(), more=None, **heads):
  """A checkpoint as a training job of VISSL leaves it."""
  opened = opened_of(**heads)
  lines = list(convert.convert(opened, path, "vissl"))
  assert lines
  saved = torch_file.read(path)
  network = saved["classy_state_dict"]["base_model"]["model"]
  arrays = {}

  def entry(name, tensor):
    arrays[name] = tensor.read()
    return torch_file.Entry(name, tensor.shape, tensor.dtype)

  trunk = {
    rename(name): entry(name, tensor)
    for name, tensor in network["trunk"].items()
    if name not in drop
  } | (more or {})
  arrays |= dict.fromkeys(more or (), np.zeros((2, 3), np.float32))
  rest = {
    "heads": {
      name: entry(name, tensor) for name, tensor in network["heads"].items()
    }
  }
  saved = {
    "phase_idx": 0,
    "iteration": 244000,
    "classy_state_dict": {
      "train": True,
      "losses": [],
      "base_model": {
        "model": {"trunk": trunk} | rest,
        "meta": {"trunk": {}, "heads": {}},
      },
      "optimizer": {"state": {}, "param_groups": [{"lr": None}]},
    },
  }
  torch_file.write(path, saved, arrays.__getitem__)
  return path


def test_groups_of_blocks_leave_no_trace(tmp_path):
  def grouped(name):
    before, _, rest = name.partition(".block2-")
    return f"{before}.block2-part{rest[0]}.block2-{rest}" if rest else name

  path = vissl_file(tmp_path / "a.torch", grouped)
  names = torch_file.read(path)["classy_state_dict"]["base_model"]["model"]
  assert any(".block2-part1.block2-1." in name for name in names["trunk"])
  assert same(network_of()[1], seer_jax.load(path)[1])


def test_everything_unmatched_is_told_at_once(tmp_path):
  gone = "_feature_blocks.res3.block2-1.f.se.excitation.0.bias"
  extra = torch_file.Entry("_feature_blocks.other.weight", (2, 3), _F4)
  path = vissl_file(
    tmp_path / "a.torch",
    drop=(gone, "_feature_blocks.conv1.stem.1.bias"),
    more={extra.name: extra},
  )
  with pytest.raises(errors.UserError) as caught:
    seer_jax.load(path)
  line = str(caught.value)
  assert f"{gone} is missing" in line
  assert "conv1.stem.1.bias is missing" in line
  assert "other.weight (2, 3) is unknown" in line
  assert "\n" not in line


_F4 = np.dtype("f4")


def test_an_array_of_another_shape_is_told_with_both(tmp_path):
  name = "_feature_blocks.res4.block3-0.f.a.0.weight"
  path = vissl_file(
    tmp_path / "a.torch",
    drop=(name,),
    more={name: torch_file.Entry(name, (2, 3), _F4)},
  )
  with pytest.raises(errors.UserError, match="this trunk needs") as caught:
    seer_jax.load(path)
  assert f"{name} is (2, 3), but this trunk needs (48, 24, 1, 1)" in str(
    caught.value
  )


def sliced(tmp_path, older=False, relocate=True):
  """Goyal et al.'s sliced form: a list of files, one an array."""
  whole = vissl_file(tmp_path / "whole.torch", **_SWAV)
  network = torch_file.read(whole)["classy_state_dict"]["base_model"]["model"]
  path = tmp_path / "there" / "conso.torch"
  folder = path.parent / "conso_layers"
  folder.mkdir(parents=True)
  names = {"trunk": {}, "heads": {}}
  for kind in names:
    for number, (name, tensor) in enumerate(network[kind].items()):
      file = folder / f"{kind}{number:040x}.torch"
      entry = torch_file.Entry("weight", tensor.shape, tensor.dtype)
      torch_file.write(
        file,
        {"type": "slice", "weight": entry},
        lambda _, tensor=tensor: tensor.read(),
      )
      names[kind][name] = str(file)
  saved = {"type": "slice_list"}
  if older:
    saved["layers"] = names
  else:
    saved["classy_state_dict"] = {"base_model": {"model": names}}
  torch_file.write(path, saved, {}.__getitem__)
  if relocate:
    shutil.move(path.parent, tmp_path / "moved")
    path = tmp_path / "moved" / "conso.torch"
  return path


@pytest.mark.parametrize("older", [False, True])
def test_slices_are_read_wherever_they_were_moved(tmp_path, older):
  path = sliced(tmp_path, older)
  _, variables = seer_jax.load(path)
  assert same(network_of(**_SWAV)[1], variables)


def test_a_missing_slice_is_named(tmp_path):
  path = sliced(tmp_path)
  gone = sorted((path.parent / "conso_layers").iterdir())[3]
  gone.unlink()
  with pytest.raises(errors.UserError, match=f"{gone.name} is missing"):
    seer_jax.load(path)


@pytest.mark.parametrize("name", ["../../secret.torch", "/etc/passwd", ".."])
def test_a_slice_cannot_lie_outside_its_folder(tmp_path, name):
  entry = torch_file.Entry("w", (2,), _F4)
  secret = tmp_path / "secret.torch"
  torch_file.write(secret, {"weight": entry}, lambda _: np.zeros(2, "f4"))
  path = tmp_path / "a" / "a.torch"
  network = {"trunk": {"_feature_blocks.conv1.stem.0.weight": name}}
  saved = {"classy_state_dict": {"base_model": {"model": network}}}
  torch_file.write(path, saved, {}.__getitem__)
  before = sorted(tmp_path.rglob("*"))
  assert commands.main(["convert", str(path)]) == 2
  assert sorted(tmp_path.rglob("*")) == before


def test_shards_of_devices_are_refused_with_the_way_out(tmp_path):
  path = tmp_path / "a.torch"
  torch_file.write(
    path, {"type": "shard_list", "shards": ["a"]}, {}.__getitem__
  )
  with pytest.raises(errors.UserError, match="convert_sharded_checkpoint"):
    seer_jax.load(path)


def test_an_index_cannot_lead_out_of_its_folder(tmp_path):
  index = tmp_path / "model.safetensors.index.json"
  index.write_text(json.dumps({"weight_map": {"a": "../b.safetensors"}}))
  with pytest.raises(errors.UserError, match="leads out"):
    seer_jax.load(tmp_path)


def test_several_files_are_one(tmp_path):
  opened = opened_of(classes=7)
  list(convert.convert(opened, tmp_path, "huggingface"))
  whole = safetensors_file.read(tmp_path / "model.safetensors")
  names = sorted(whole)
  index = {}
  for part, chosen in enumerate((names[::2], names[1::2])):
    file = f"model-{part}.safetensors"
    arrays = {name: whole[name].read() for name in chosen}
    safetensors_file.write(
      tmp_path / file,
      [(name, each.shape, each.dtype) for name, each in arrays.items()],
      arrays.__getitem__,
      {},
    )
    index |= dict.fromkeys(chosen, file)
  (tmp_path / "model.safetensors").unlink()
  (tmp_path / "model.safetensors.index.json").write_text(
    json.dumps({"weight_map": index})
  )
  assert same(network_of(classes=7)[1], seer_jax.load(tmp_path)[1])


def test_a_published_name_must_hold_what_it_says(tmp_path, monkeypatch):
  """As the file of RG-256 that is of another trunk (its line names both)."""
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  folder = model_zoo.folder_of(model_zoo.SEER["seer_32"])
  folder.mkdir(parents=True)
  vissl_file(folder / "seer_regnet32gf_model_iteration244000.torch")
  with pytest.raises(errors.UserError) as caught:
    seer_jax.load("seer_32")
  line = str(caught.value)
  assert "(232, 696, 1392, 3712)" in line
  assert "(16, 24, 48, 80)" in line


def test_what_was_placed_is_found_and_comes_with_its_preprocessing(
  tmp_path, monkeypatch
):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  it = model_zoo.SEER["seer_256"]
  model_zoo.folder_of(it).mkdir(parents=True)
  vissl_file(model_zoo.folder_of(it) / "model_final_checkpoint_phase0.torch")
  network, _ = seer_jax.load("seer_256")
  assert network.preprocessing == Preprocessing(256, 224, "bilinear")


@pytest.mark.parametrize(
  "name",
  [
    "seer_32",
    "regnety_320.seer",
    "timm/regnety_320.seer",
    "hf-hub:timm/regnety_320.seer",
    "hf_hub:timm/regnety_320.seer",
  ],
)
def test_names_of_timm_and_ours_are_one(name):
  assert model_zoo.find(name) is model_zoo.SEER["seer_32"]


@pytest.mark.parametrize(
  ("bare", "repository"),
  [
    ("regnety_320", "timm/regnety_320.tv2_in1k"),
    ("regnetx_002", "timm/regnetx_002.pycls_in1k"),
    ("regnety_008_tv", "timm/regnety_008_tv.tv2_in1k"),
    ("regnetz_040", "timm/regnetz_040.ra3_in1k"),
    ("regnety_640", "timm/regnety_640.seer_ft_in1k"),
  ],
)
def test_a_name_alone_means_what_timm_prefers(bare, repository):
  found = model_zoo.find(bare)
  assert found.repository == repository
  assert found.trunk == architectures.canonical(bare)


@pytest.mark.parametrize(
  ("name", "reason"),
  [
    ("regnetv_040", "normalize before each convolution"),
    ("regnetv_064.ra3_in1k", "normalize before each convolution"),
    ("hf-hub:timm/regnetz_040_h.ra3_in1k", "convolution after the last"),
    ("regnetz_005", "convolution after the last"),
    ("regnety_040_sgn", "GroupNorm"),
    ("timm/regnetz_d8.ra3_in1k", "except for its name"),
  ],
)
def test_what_is_not_built_is_refused_before_it_is_fetched(name, reason):
  with pytest.raises(errors.UserError, match=reason):
    seer_jax.load(name)


@pytest.mark.parametrize(
  ("names", "reason"),
  [
    (("stem.weight", "s1.b1.norm1.weight"), "normalize before each"),
    (("stem.conv.weight", "final_conv.conv.weight"), "after the last stage"),
    (("stem.conv.weight", "stem.bn.weight"), "GroupNorm"),
    (("stages.0.0.conv1_1x1.conv.weight", "final_conv.conv.weight"), "except"),
  ],
)
def test_what_is_not_built_is_known_by_its_arrays(tmp_path, names, reason):
  path = tmp_path / "model.safetensors"
  entries = [torch_file.Entry(name, (2,), np.dtype("<f4")) for name in names]
  safetensors_file.write(path, entries, lambda _: np.zeros(2, "<f4"), {})
  with pytest.raises(errors.UserError, match=reason):
    seer_jax.load(path)


def test_other_repositories_are_taken_by_name():
  found = model_zoo.find("facebook/regnet-y-040")
  assert found.trunk == "regnety_4.0gf"
  assert model_zoo.find("regnety_160.swag_ft_in1k").repository == (
    "timm/regnety_160.swag_ft_in1k"
  )
  assert model_zoo.find("no such file.torch") is None


def test_offline_says_which_file_to_place_where(tmp_path, monkeypatch, capsys):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  monkeypatch.setenv("HF_HUB_OFFLINE", "1")
  assert commands.main(["convert", "seer_128"]) == 2
  line = capsys.readouterr().err
  assert line.count("\n") == 1
  assert str(tmp_path / "seer_jax" / "weights" / "seer_128") in line
  assert "https://dl.fbaipublicfiles.com/vissl/model_zoo/" in line


class Hub:
  """Hugging Face's hub, as far as it is used."""

  def __init__(self, folder, files=(), cached=False):
    self._folder, self._files, self._cached = folder, files, cached
    self.asked = []

  def model_info(self, repository, timeout):
    if not self._files:
      raise ConnectionError("no network")
    siblings = [types.SimpleNamespace(rfilename=name) for name in self._files]
    return types.SimpleNamespace(siblings=siblings)

  def snapshot_download(self, repository, **options):
    if options.get("local_files_only") and not self._cached:
      raise FileNotFoundError("not cached")
    self.asked.append((repository, options))
    return str(self._folder)


def test_the_hub_is_asked_for_one_form_after_the_cache(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  list(convert.convert(opened_of(), tmp_path / "hf", "huggingface"))
  both = ["model.safetensors", "pytorch_model.bin", "config.json"]
  safe, pickled = "model*.safetensors*", "pytorch_model*.bin*"
  for hub, options in (
    (Hub(tmp_path / "hf", both), {"allow_patterns": [safe, "*.json"]}),
    (Hub(tmp_path / "hf", both[1:]), {"allow_patterns": [pickled, "*.json"]}),
    (Hub(tmp_path / "hf", cached=True), {"local_files_only": True}),
  ):
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    assert same(network_of()[1], seer_jax.load("someone/my-regnet")[1])
    assert hub.asked == [("someone/my-regnet", options)]
  monkeypatch.setitem(sys.modules, "huggingface_hub", Hub(tmp_path))
  with pytest.raises(errors.UserError, match="no network"):
    seer_jax.load("someone/my-regnet")


@pytest.mark.parametrize("argument", ["nothing_there.torch", "seer_33"])
def test_a_name_of_nothing_is_one_line(argument, capsys):
  assert commands.main(["convert", argument]) == 2
  line = capsys.readouterr().err
  assert line.count("\n") == 1
  assert "seer_256_in1k" in line


@pytest.mark.parametrize(
  "arguments", [[], ["a", "--to=vissl"], ["a", "b"], ["a", "b", "--to=x"]]
)
def test_a_wrong_command_line_is_one_line(arguments, capsys):
  assert commands.main(["convert", *arguments]) == 2
  assert capsys.readouterr().err.count("\n") == 1


def test_a_file_of_another_network_says_what_is_in_it(tmp_path):
  entry = torch_file.Entry("layer1.0.conv1.weight", (2, 2), _F4)
  path = tmp_path / "resnet.pth"
  torch_file.write(
    path, {entry.name: entry}, lambda _: np.zeros((2, 2), np.float32)
  )
  with pytest.raises(errors.UserError, match=r"layer1\.0\.conv1"):
    seer_jax.load(path)


def test_preprocessing_beside_the_weights_comes_along(tmp_path):
  opened = opened_of(classes=7)
  own = Preprocessing(384, 384, "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
  opened = opened._replace(model=opened.model.clone(preprocessing=own))
  list(convert.convert(opened, tmp_path / "hf", "huggingface"))
  assert seer_jax.load(tmp_path / "hf")[0].preprocessing == own
  timm = {
    "pretrained_cfg": {
      "input_size": [3, 224, 224],
      "crop_pct": 0.95,
      "interpolation": "bicubic",
      "mean": [0.5, 0.5, 0.5],
      "std": [0.5, 0.5, 0.5],
    }
  }
  folder = tmp_path / "timm"
  list(convert.convert(opened, folder / "model.safetensors", "timm"))
  (folder / "config.json").write_text(json.dumps(timm))
  assert seer_jax.load(folder)[0].preprocessing == Preprocessing(
    235, 224, "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
  )


@pytest.mark.parametrize("fsdp", [1, 4])
def test_weights_are_born_as_a_run_stores_them(tmp_path, monkeypatch, fsdp):
  monkeypatch.setattr(mesh_lib, "SPLIT_FROM", 1)
  path = vissl_file(tmp_path / "a.torch", **_SWAV)
  mesh = mesh_lib.make(8 // fsdp, fsdp)
  _, found = seer_jax.load(path, mesh)
  _, variables = network_of(**_SWAV)
  for kind, tree in variables.items():
    wanted = mesh_lib.store(tree, kind, mesh)
    for (where, a), b in zip(
      jax.tree.leaves_with_path(wanted),
      jax.tree.leaves(found[kind]),
      strict=True,
    ):
      assert a.sharding == b.sharding, where
      np.testing.assert_array_equal(a, b)


def test_an_export_that_was_touched_is_refused(tmp_path):
  list(convert.convert(opened_of(), tmp_path / "a", "orbax"))
  with (tmp_path / "a" / orbax.DESCRIPTION).open("a") as file:
    file.write(" ")
  with pytest.raises(errors.UserError, match="damaged"):
    seer_jax.load(tmp_path / "a")
  with pytest.raises(errors.UserError, match="already exists"):
    list(convert.convert(opened_of(), tmp_path / "a", "orbax"))


def test_images_in_any_form_are_prepared_alike(tmp_path):
  from PIL import Image

  pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
  path = tmp_path / "a.png"
  Image.fromarray(pixels).save(path)
  prepare = Preprocessing(40, 32)
  forms = [path, str(path), path.read_bytes(), pixels, Image.open(path)]
  views = prepare(forms)
  assert views.shape == (5, 32, 32, 3)
  assert views.dtype == np.float32
  for view in views:
    np.testing.assert_array_equal(view, views[0])
  with pytest.raises(errors.UserError, match="cannot read the image"):
    prepare(tmp_path / "b.png")


def test_arrays_of_a_block_have_the_names_of_released_files():
  """Written out: two tables that agree with each other may both be wrong."""
  names = {
    "a/kernel": "f.a.0.weight",
    "bn_a/scale": "f.a.1.weight",
    "b/kernel": "f.b.0.weight",
    "bn_b/scale": "f.b.1.weight",
    "se/reduce/kernel": "f.se.excitation.0.weight",
    "se/expand/kernel": "f.se.excitation.2.weight",
    "c/kernel": "f.c.weight",
    "bn_c/scale": "f.final_bn.weight",
    "shortcut/kernel": "proj.weight",
    "bn_shortcut/scale": "bn.weight",
  }
  found = {
    pair.ours: pair.theirs
    for pair in name_maps.pairs(
      name_maps.target("vissl", encoder.Encoder(_SMALL))
    )
  }
  for ours, theirs in names.items():
    name = found[f"params/trunk/stage1_block0/{ours}"]
    assert name.endswith(f"_feature_blocks.res2.block1-0.{theirs}")


@pytest.mark.parametrize(
  ("theirs", "ours"),
  [
    ("regnety_320", "regnety_32gf"),
    ("regnety_2560.seer_ft_in1k", "seer_256gf"),
    ("regnetx_004_tv", "regnetx_400mf_tv"),
    ("regnet_y_8gf", "regnety_8gf_tv"),
    ("regnet_x_1_6gf", "regnetx_1.6gf"),
    ("facebook/regnet-y-10b-seer-in1k", "seer_10b"),
    ("regnetz_040", "regnetz_4gf"),
  ],
)
def test_names_that_users_know(theirs, ours):
  assert architectures.canonical(theirs) == ours


def test_an_unknown_trunk_gets_the_nearest_name():
  with pytest.raises(ValueError, match="did you mean regnety_32gf"):
    architectures.find("regnety32gf")


_MEASURE = """
import resource, sys
def peak():
  for line in open("/proc/self/status"):
    if line.startswith("VmHWM"): return int(line.split()[1]) * 1024
import jax
jax.config.update("jax_platforms", "cpu")
import seer_jax
model, variables = seer_jax.load(sys.argv[1])
print(peak(), sum(leaf.nbytes for leaf in jax.tree.leaves(variables)))
"""


@pytest.mark.parametrize(
  "widths",
  [
    (256, 512, 1024, 3072),
    # 2.0 GB, of which the largest array has 0.6.
    pytest.param((256, 512, 6144, 12288), marks=pytest.mark.slow),
  ],
)
def test_a_large_sliced_file_needs_little_beside_its_target(tmp_path, widths):
  arch = architectures.Architecture((1, 1, 2, 1), widths, (256,) * 4)
  wanted = lazy_weights.expected(encoder.Encoder(arch))
  folder = tmp_path / "big_layers"
  trunk, largest = {}, 0
  for number, pair in enumerate(
    name_maps.pairs(name_maps.target("vissl", encoder.Encoder(arch)))
  ):
    order = np.argsort(pair.axes)
    shape = tuple(wanted[pair.ours][axis] for axis in order)
    file = folder / f"{number:040x}.torch"
    torch_file.write(
      file,
      {"type": "slice", "weight": torch_file.Entry("weight", shape, _F4)},
      lambda _, shape=shape: np.zeros(shape, np.float32),
    )
    trunk[pair.theirs] = str(file)
    largest = max(largest, 4 * int(np.prod(shape)))
  path = tmp_path / "big.torch"
  network = {"trunk": trunk, "heads": {}}
  saved = {
    "type": "slice_list",
    "classy_state_dict": {"base_model": {"model": network}},
  }
  torch_file.write(path, saved, {}.__getitem__)
  run = subprocess.run(
    [sys.executable, "-c", _MEASURE, str(path)],
    capture_output=True,
    text=True,
    check=True,
    cwd=pathlib.Path(__file__).parents[2],
  )
  peak, target = map(int, run.stdout.split())
  print(f"peak {peak / 1e6:,.0f} MB, target {target / 1e6:,.0f} MB,")
  print(f"largest {largest / 1e6:,.0f} MB")
  assert peak - target < 2 * largest + 300e6
