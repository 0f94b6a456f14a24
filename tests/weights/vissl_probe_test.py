"""Files of VISSL's linear probes: a frozen trunk and several heads on it."""

import jax
import numpy as np
import pytest
import weights_test

import seer_jax
from seer_jax import commands
from seer_jax.weights import convert
from seer_jax.weights.formats import torch_file

# (channels of a BatchNorm or 0, numbers that a head reads): res4 in two cells
# with one, the mean with one and without.
HEADS = ((48, 96), (80, 80), (0, 80))
CLASSES = 7


def probe_file(path, heads=HEADS):
  """The file, and what its heads hold."""
  opened = weights_test.opened_of()
  list(convert.convert(opened, path, "vissl"))
  saved = torch_file.read(path)["classy_state_dict"]["base_model"]["model"]
  trunk = {name: tensor.read() for name, tensor in saved["trunk"].items()}
  rng = np.random.default_rng(0)
  arrays = {}
  for number, (channels, width) in enumerate(heads):
    linear = f"{number}.clf.clf.0" if channels else f"{number}.clf.0"
    arrays[f"{linear}.weight"] = rng.normal(size=(CLASSES, width))
    arrays[f"{linear}.bias"] = rng.normal(size=CLASSES)
    if channels:
      norm = f"{number}.channel_bn"
      arrays[f"{norm}.weight"] = rng.normal(size=channels)
      arrays[f"{norm}.bias"] = rng.normal(size=channels)
      arrays[f"{norm}.running_mean"] = rng.normal(size=channels)
      arrays[f"{norm}.running_var"] = 0.1 + rng.random(channels)
  arrays = {name: np.float32(values) for name, values in arrays.items()}

  def entries(parts):
    return {
      name: torch_file.Entry(name, each.shape, each.dtype)
      for name, each in parts.items()
    }

  model = {"trunk": entries(trunk), "heads": entries(arrays)}
  saved = {"classy_state_dict": {"base_model": {"model": model}}}
  torch_file.write(path, saved, (trunk | arrays).__getitem__)
  return arrays


def answers(path):
  network, variables = seer_jax.load(path)
  x = jax.random.normal(jax.random.key(1), (3, 64, 64, 3))
  found = network.apply(variables, x)
  return network, np.asarray(found["avgpool"]), found["logits"]


def test_the_first_head_on_the_mean_becomes_the_classifier(tmp_path, capsys):
  path = tmp_path / "a.torch"
  heads = probe_file(path)
  network, x, logits = answers(path)
  assert network.classes == CLASSES
  norm = {
    name.removeprefix("1.channel_bn."): each
    for name, each in heads.items()
    if name.startswith("1.channel_bn.")
  }
  x = (x - norm["running_mean"]) / np.sqrt(norm["running_var"] + 1e-5)
  x = x * norm["weight"] + norm["bias"]
  wanted = x @ heads["1.clf.clf.0.weight"].T + heads["1.clf.clf.0.bias"]
  np.testing.assert_allclose(logits, wanted, rtol=1e-4, atol=1e-4)
  assert commands.main(["convert", str(path)]) == 0
  said = capsys.readouterr().out
  assert "linear head 0 is left out: it takes 96 numbers, not the 80" in said
  assert "linear head 2 is left out: 1.clf.clf.0 is used" in said
  # Written again it is a plain classifier, and answers the same.
  assert not commands.main(
    ["convert", str(path), str(tmp_path / "b.torch"), "--to=vissl"]
  )
  np.testing.assert_array_equal(answers(tmp_path / "b.torch")[2], logits)


def test_a_probe_of_other_maps_alone_leaves_the_trunk(tmp_path):
  path = tmp_path / "a.torch"
  probe_file(path, HEADS[:1])
  network, variables = seer_jax.load(path)
  assert network.classes == 0
  assert "classifier" not in variables["params"]


def test_a_norm_that_is_missing_is_told(tmp_path, capsys):
  path = tmp_path / "a.torch"
  probe_file(path, [(0, 80)])
  saved = torch_file.read(path)["classy_state_dict"]["base_model"]["model"]
  both = saved["trunk"] | {
    name.replace(".clf.0", ".clf.clf.0"): tensor
    for name, tensor in saved["heads"].items()
  }
  arrays = {name: tensor.read() for name, tensor in both.items()}
  entries = {
    name: torch_file.Entry(name, each.shape, each.dtype)
    for name, each in arrays.items()
  }
  saved = {"classy_state_dict": {"base_model": {"model": {"trunk": entries}}}}
  torch_file.write(path, saved, arrays.__getitem__)
  assert commands.main(["convert", str(path)]) == 2
  assert "0.channel_bn.running_var is missing" in capsys.readouterr().err


@pytest.mark.extras
def test_pytorch_s_head_gives_the_same(tmp_path):
  torch = pytest.importorskip("torch")
  path = tmp_path / "a.torch"
  heads = probe_file(path)
  _, x, logits = answers(path)
  norm, linear = torch.nn.BatchNorm2d(80), torch.nn.Linear(80, CLASSES)
  for layer, name in ((norm, "1.channel_bn."), (linear, "1.clf.clf.0.")):
    layer.load_state_dict(
      {
        key.removeprefix(name): torch.tensor(each)
        for key, each in heads.items()
        if key.startswith(name)
      },
      strict=False,
    )
  norm.eval()
  with torch.no_grad():
    wanted = linear(norm(torch.tensor(x)[:, :, None, None]).flatten(1))
  np.testing.assert_allclose(logits, wanted, rtol=1e-4, atol=1e-4)
