"""Functions with the weights in them, and what is checked of every export."""

import dataclasses
import sys

import jax
import numpy as np
import pytest
import weights_test

from seer_jax.data.preprocessing import Preprocessing
from seer_jax.models import architectures
from seer_jax.runtime import errors
from seer_jax.weights import convert, lazy_weights, load
from seer_jax.weights.exports import check, onnx


def test_one_function_for_any_batch(tmp_path):
  network, variables = weights_test.network_of(classes=7)
  network = network.clone(preprocessing=Preprocessing(64, 48))
  opened = lazy_weights.in_memory("a test", network, variables)
  path = tmp_path / "a.stablehlo"
  list(convert.convert(opened, path, "stablehlo"))
  exported = jax.export.deserialize(bytearray(path.read_bytes()))
  assert set(exported.platforms) == {"cpu", "cuda", "tpu"}
  for count in (1, 3):
    shape = (count, 48, 48, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    found = exported.call(pixels)
    wanted = network.apply(
      variables, network.preprocessing.normalize(np.float32(pixels))
    )
    for name in ("avgpool", "logits"):
      np.testing.assert_allclose(found[name], wanted[name], atol=1e-5)


_LETTERS = {
  "x": dataclasses.replace(weights_test._SMALL, se_ratio=0.0),
  "y": weights_test._SMALL,
  "z": architectures.Architecture(
    (1, 2),
    (16, 24),
    (8, 8),
    strides=(2, 2),
    bottleneck=4.0,
    linear=True,
    last_activation=True,
  ),
}


@pytest.mark.parametrize(
  ("letter", "heads"),
  [
    ("x", {}),
    ("y", weights_test._SWAV),
    ("y", weights_test._FEW),
    ("z", {"classes": 7}),
  ],
)
def test_onnx_equals_the_network_at_any_size(tmp_path, letter, heads):
  onnxruntime = pytest.importorskip("onnxruntime")
  network, variables = weights_test.network_of(_LETTERS[letter], **heads)
  network = network.clone(preprocessing=Preprocessing(40, 32))
  opened = lazy_weights.in_memory("a test", network, variables)
  *_, checked, wrote = convert.convert(opened, tmp_path / "a.onnx", "onnx")
  assert "images of 32 x 32 and of 64 x 33 pixels differ by" in checked
  assert wrote == f"wrote {tmp_path / 'a.onnx'}"
  session = onnxruntime.InferenceSession(tmp_path / "a.onnx")
  (given,) = session.get_inputs()
  assert given.shape == ["batch", "height", "width", 3]
  names = {each.name for each in session.get_outputs()}
  wanted = {"projection": "out", "logits": "classes"}
  assert names == {"avgpool"} | {
    name for name, key in wanted.items() if heads.get(key)
  }


@pytest.mark.slow
@pytest.mark.parametrize(
  "name", ["regnetx_32gf", "regnety_32gf", "regnetz_4gf"]
)
def test_large_trunks_as_onnx(tmp_path, name):
  """SEER's RG-32 has a projection of three layers and prototypes besides."""
  seer = {"hidden": (4096, 4096), "out": 256, "prototype_counts": (16000,)}
  heads = seer if name == "regnety_32gf" else {"classes": 1000}
  network, variables = weights_test.network_of(
    architectures.find(name), **heads
  )

  def tamed(leaf):
    """As much leaves a layer as enters: gates of 1e20 hang on rounding."""
    return (
      leaf * 10 / np.prod(leaf.shape[:-1]) ** 0.5 if leaf.ndim > 1 else leaf
    )

  opened = lazy_weights.in_memory(
    "a test", network, jax.tree.map(tamed, variables)
  )
  *_, checked, _ = convert.convert(opened, tmp_path / "a.onnx", "onnx")
  print(name, checked)


@pytest.mark.parametrize("to", ["stablehlo", "onnx"])
def test_an_export_that_differs_is_refused(tmp_path, monkeypatch, to):
  """Whatever the reason; here each function is of another network."""
  other = weights_test.network_of(_LETTERS["x"])[0].clone(
    preprocessing=Preprocessing(40, 32)
  )
  network, variables = weights_test.network_of()
  network = network.clone(preprocessing=Preprocessing(40, 32))
  serialized, *rest = convert._FUNCTIONS[to]
  monkeypatch.setitem(
    convert._FUNCTIONS,
    to,
    (
      lambda *_: serialized(other, weights_test.network_of(_LETTERS["x"])[1]),
      *rest,
    ),
  )
  opened = lazy_weights.in_memory("a test", network, variables)
  with pytest.raises(errors.UserError, match="differs from the network by"):
    list(convert.convert(opened, tmp_path / "a", to))
  assert not list(tmp_path.iterdir())
  list(convert.convert(opened, tmp_path / "a", to, checked=False))
  assert (tmp_path / "a").exists()


def test_an_answer_that_is_not_a_number_is_no_agreement():
  small = Preprocessing(40, 32)
  network, variables = weights_test.network_of(_LETTERS["x"])
  network = network.clone(preprocessing=small)

  def call(pixels):
    return {"avgpool": np.full((len(pixels), 80), np.nan, np.float32)}

  with pytest.raises(errors.UserError, match="by nan of the largest value"):
    check.function(call, network, variables, False)


def test_arrays_that_were_not_written_as_they_are_are_told(tmp_path):
  opened = weights_test.opened_of()
  path = tmp_path / "a.safetensors"
  lines = list(convert.convert(opened, path, "timm"))
  assert f"checked: {len(opened.shapes)} arrays read back" in lines[-2]
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)
  with pytest.raises(errors.UserError, match="differs from its source"):
    check.arrays(load.open_weights(path), opened)


def test_without_onnx_its_extra_is_named(monkeypatch):
  monkeypatch.setitem(sys.modules, "onnx", None)
  with pytest.raises(errors.UserError, match=r"pip install -e '\.\[onnx\]'"):
    onnx.serialized(*weights_test.network_of())
