"""Other projects' RegNets against ours, of the same weights, both ways."""

import jax
import numpy as np
import pytest

import seer_jax
from seer_jax.models import architectures, encoder
from seer_jax.weights import convert, lazy_weights, load, name_maps

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
pytestmark = pytest.mark.extras
import peers  # noqa: E402  It needs PyTorch.

_BOUND = 1e-4  # Relative error of features and logits, in float32.


def seen(network, variables, images_Nx3xHxW):
  return jax.jit(network.apply)(variables, images_Nx3xHxW.transpose(0, 2, 3, 1))


def agree(path, theirs, features_of, sides):
  """Loads a file, and compares what both make of images (`-s` prints it)."""
  network, variables = seer_jax.load(path)
  for side in sides:
    images = peers.images(side)
    found = seen(network, variables, images)
    with torch.no_grad():
      wanted = {"avgpool": features_of(torch.tensor(images))}
      if network.classes:
        logits = theirs(torch.tensor(images))
        wanted["logits"] = getattr(logits, "logits", logits)
    for name, values in wanted.items():
      error = peers.error(found[name], values)
      print(
        architectures.name_of(network.architecture), side, name, f"{error:.1e}"
      )
      assert error < _BOUND
  return network


def the_same(again, theirs):
  """Every tensor bit for bit; what is made of an image, as near as threads."""
  ours, wanted = again.state_dict(), theirs.state_dict()
  assert ours.keys() == wanted.keys()
  assert all(torch.equal(ours[name], wanted[name]) for name in wanted)
  images = torch.tensor(peers.images(64))
  with torch.no_grad():
    found, expected = again.eval()(images), theirs(images)
  for key in ("logits", "pooler_output"):
    found = getattr(found, key, found)
    expected = getattr(expected, key, expected)
  torch.testing.assert_close(found, expected)


def written(path, out, to):
  lines = list(convert.convert(load.open_weights(path), out, to))
  assert "left over: nothing" in lines


_TIMM = [
  ("regnetx_002", (224,)),
  ("regnetx_004_tv", (224,)),
  ("regnety_002", (224, 384)),
  ("regnety_008_tv", (224,)),
  ("regnetz_040", (224,)),
  *(
    pytest.param(name, (224, 384), marks=pytest.mark.slow)
    for name in (
      "regnety_080",
      "regnety_160",
      "regnety_320",
      "regnety_640",
      "regnety_1280",
      "regnety_2560",
    )
  ),
]


@pytest.mark.parametrize(("name", "sides"), _TIMM)
def test_timm(tmp_path, name, sides):
  timm = peers.timm()
  theirs = peers.randomize(timm.create_model(name, num_classes=10))
  path, back = tmp_path / "a.pth", tmp_path / "b.safetensors"
  torch.save(theirs.state_dict(), path)

  def features(images):
    return theirs.forward_features(images).mean((2, 3))

  network = agree(path, theirs, features, sides)
  assert architectures.name_of(network.architecture) == architectures.canonical(
    name
  )
  written(path, back, "timm")
  path.unlink()
  again = timm.create_model(name, num_classes=10).eval()
  load_file = pytest.importorskip("safetensors.torch").load_file
  again.load_state_dict(load_file(back), strict=True)
  the_same(again, theirs)


@pytest.mark.parametrize(
  ("name", "sides"),
  [("regnet_x_400mf", (224,)), ("regnet_y_400mf", (224,))],
)
def test_torchvision(tmp_path, name, sides):
  models = peers.torchvision().models
  theirs = peers.randomize(getattr(models, name)(num_classes=10))
  path, back = tmp_path / "a.pth", tmp_path / "b.pth"
  torch.save(theirs.state_dict(), path)

  def features(images):
    return theirs.trunk_output(theirs.stem(images)).mean((2, 3))

  network = agree(path, theirs, features, sides)
  assert architectures.name_of(network.architecture) == architectures.canonical(
    name
  )
  written(path, back, "torchvision")
  again = getattr(models, name)(num_classes=10).eval()
  again.load_state_dict(torch.load(back, weights_only=True), strict=True)
  the_same(again, theirs)


@pytest.mark.parametrize(
  ("kind", "classes", "stem", "downsample"),
  [
    *(("x", 0, 32, True), ("x", 7, 32, True)),
    *(("y", 0, 32, True), ("y", 7, 32, True)),
    ("y", 7, 32, False),
    ("x", 0, 24, False),  # Its first block has no shortcut.
  ],
)
def test_hugging_face(tmp_path, kind, classes, stem, downsample):
  transformers = peers.transformers()
  config = transformers.RegNetConfig(
    depths=[1, 2, 2, 1],
    hidden_sizes=[24, 48, 104, 208],
    groups_width=8,
    layer_type=kind,
    num_labels=classes or 2,
    embedding_size=stem,
    downsample_in_first_stage=downsample,
  )
  of = (
    transformers.RegNetForImageClassification
    if classes
    else transformers.RegNetModel
  )
  theirs = peers.randomize(of(config))
  theirs.save_pretrained(tmp_path / "a")

  def features(images):
    trunk = theirs.regnet if classes else theirs
    return trunk(images).pooler_output[:, :, 0, 0]

  agree(tmp_path / "a", theirs, features, (224, 384))
  written(tmp_path / "a", tmp_path / "b", "huggingface")
  again, told = of.from_pretrained(tmp_path / "b", output_loading_info=True)
  assert not any(told.values()), told
  the_same(again, theirs)


def vissl_trunk(theirs):
  """timm's state dict under VISSL's names, counters included."""
  arch = architectures.MODELS["regnety_200mf"]
  pairs = {
    timm.theirs: vissl.theirs
    for timm, vissl in zip(
      name_maps.pairs(name_maps.target("timm", encoder.Encoder(arch))),
      name_maps.pairs(name_maps.target("vissl", encoder.Encoder(arch))),
      strict=True,
    )
  }
  found = {}
  for name, value in theirs.state_dict().items():
    if name.endswith("num_batches_tracked"):
      norm = name.removesuffix("num_batches_tracked")
      new = pairs[f"{norm}running_var"].removesuffix("running_var")
      found[f"{new}num_batches_tracked"] = value
    elif not name.startswith("head."):
      found[pairs[name]] = value
  return found


def vissl_file(path, trunk, heads, slices=False):
  """As VISSL saves: whole, or a file for each array."""
  if slices:
    folder = path.parent / f"{path.stem}_layers"
    folder.mkdir()
    for kind in (trunk, heads):
      for number, (name, value) in enumerate(kind.items()):
        file = folder / f"{id(kind)}{number}.torch"
        torch.save({"type": "slice", "weight": value}, file)
        kind[name] = str(file)
  torch.save(
    {
      "type": "slice_list" if slices else "consolidated",
      "phase_idx": 78,
      "loss": np.float64(5.2),
      "classy_state_dict": {
        "train": False,
        "losses": [np.float32(1.5), 2.0],
        "base_model": {
          "model": {"trunk": trunk, "heads": heads},
          "meta": {"trunk": {}, "heads": {}},
        },
      },
    },
    path,
  )
  return path


@pytest.mark.parametrize("form", ["plain", "parts", "sliced"])
@pytest.mark.parametrize("head", ["0.clf.0", "swav"])
def test_vissl_by_timm_s_own_mapping(tmp_path, form, head):
  """Both read the same file; what ours makes of images is what theirs does."""
  timm = peers.timm()
  classes = 10 if head == "0.clf.0" else 0
  made = timm.create_model("regnety_002", num_classes=classes)
  theirs = peers.randomize(made)
  if classes:
    heads = {
      "0.clf.0.weight": theirs.head.fc.weight.detach(),
      "0.clf.0.bias": theirs.head.fc.bias.detach(),
    }
  else:
    heads = {
      "0.projection_head.0.weight": torch.randn(32, 368),
      "0.projection_head.0.bias": torch.randn(32),
      "0.projection_head.2.weight": torch.randn(16, 32),
      "0.projection_head.2.bias": torch.randn(16),
      "0.prototypes0.weight": torch.randn(20, 16),
    }
  trunk = vissl_trunk(theirs)
  path = vissl_file(tmp_path / "whole.torch", dict(trunk), dict(heads))
  saved = torch.load(path, weights_only=False)
  mapped = timm.models.regnet._filter_fn(saved)
  again = timm.create_model("regnety_002", num_classes=classes).eval()
  again.load_state_dict(mapped, strict=True)
  if form == "parts":
    # Of SEER-10B: stage 3 in two groups, of which timm knows nothing.
    trunk = {
      name.replace(
        ".block3-", f".block3-part{int('block3-3' in name)}.block3-"
      ): value
      for name, value in trunk.items()
    }
  if form != "plain":
    path = vissl_file(tmp_path / "a.torch", trunk, heads, form == "sliced")

  def features(images):
    return again.forward_features(images).mean((2, 3))

  network = agree(path, again, features, (224,))
  assert (network.classes, network.out) == ((10, 0) if classes else (0, 16))
  written(path, tmp_path / "b.torch", "vissl")
  back = torch.load(tmp_path / "b.torch", weights_only=True)
  again.load_state_dict(timm.models.regnet._filter_fn(back), strict=True)


def test_a_classifier_behind_hidden_layers(tmp_path):
  """`1.clf.0`, of a network fine-tuned with the projection's first layer."""
  timm = peers.timm()
  theirs = peers.randomize(timm.create_model("regnety_002", num_classes=0))
  hidden = torch.nn.Sequential(
    torch.nn.Linear(368, 48), torch.nn.BatchNorm1d(48), torch.nn.ReLU()
  )
  last = torch.nn.Linear(48, 5)
  peers.randomize(hidden)
  peers.randomize(last)
  heads = {
    f"0.projection_head.{name}": value
    for name, value in hidden.state_dict().items()
  } | {f"1.clf.0.{name}": value for name, value in last.state_dict().items()}
  path = vissl_file(tmp_path / "a.torch", vissl_trunk(theirs), heads)
  network, variables = seer_jax.load(path)
  assert (network.hidden, network.out, network.classes) == ((48,), 0, 5)
  images = peers.images(224)
  with torch.no_grad():
    wanted = last(hidden(theirs(torch.tensor(images))))
  found = seen(network, variables, images)
  assert peers.error(found["logits"], wanted) < _BOUND


@pytest.mark.parametrize(
  "name", ["regnety_320", "regnety_640", "regnety_1280", "regnety_2560"]
)
def test_seer_s_sizes_have_timm_s_shapes(name):
  """Of all SEER's sizes, without their memory."""
  timm = peers.timm()
  with torch.device("meta"):
    theirs = timm.create_model(name, num_classes=1000).state_dict()
  arch = architectures.find(name)
  wanted = lazy_weights.expected(encoder.Encoder(arch, classes=1000))
  it = name_maps.target("timm", encoder.Encoder(arch, classes=1000))
  ours = {
    pair.theirs: tuple(
      wanted[pair.ours][axis] for axis in np.argsort(pair.axes)
    )
    for pair in name_maps.pairs(it)
  }
  counters = set(name_maps.counters(it))
  assert ours == {
    name: tuple(value.shape)
    for name, value in theirs.items()
    if name not in counters
  }
  assert counters <= theirs.keys()


def test_seer_10b_has_hugging_face_s_shapes():
  transformers = peers.transformers()
  arch = architectures.MODELS["seer_10b"]
  config = transformers.RegNetConfig(
    depths=list(arch.depths),
    hidden_sizes=list(arch.widths),
    groups_width=1010,
    num_labels=1000,
  )
  with torch.device("meta"):
    theirs = transformers.RegNetForImageClassification(config).state_dict()
  wanted = lazy_weights.expected(encoder.Encoder(arch, classes=1000))
  it = name_maps.target("huggingface", encoder.Encoder(arch, classes=1000))
  ours = {
    pair.theirs: tuple(
      wanted[pair.ours][axis] for axis in np.argsort(pair.axes)
    )
    for pair in name_maps.pairs(it)
  }
  counters = set(name_maps.counters(it))
  assert ours == {
    name: tuple(value.shape)
    for name, value in theirs.items()
    if name not in counters
  }
