"""Features of any encoder: a run's, a loaded file's, one that is no network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import seer_jax
from seer_jax.data import sources
from seer_jax.data.preprocessing import Preprocessing
from seer_jax.evals import feature_stats, features, knn
from seer_jax.models import architectures, encoder
from seer_jax.runtime import mesh as mesh_lib
from seer_jax.weights import convert, lazy_weights

SIDE = 16


class Means:
  """An encoder without variables: the mean of each channel."""

  preprocessing = Preprocessing(SIDE, SIDE, mean=(0, 0, 0), std=(1, 1, 1))

  def apply(self, variables, x_NxHxWx3):
    return {"avgpool": x_NxHxWx3.mean((1, 2))}


def images(count=19):
  source = sources.open_source({"kind": "digits", "split": "train"})
  return features.ImageSet(source, range(count))


def test_anything_with_apply_and_preprocessing_is_an_encoder():
  found = features.Extractor(Means(), mesh_lib.make(1), batch_size=16).of(
    {}, images()
  )
  assert found.features_NxD.shape == (19, 3)
  assert 0 < found.features_NxD.min() < found.features_NxD.max() < 1
  assert found.labels_N.tolist() == [
    images().source.label_of(i) for i in range(19)
  ]


@pytest.fixture(scope="module")
def network():
  """A small RegNet with heads, and variables."""
  network = encoder.Encoder(
    architectures.Architecture(
      (1,) * 4, (8, 8, 16, 16), (8,) * 4, se_ratio=0.25
    ),
    preprocessing=Preprocessing(SIDE, SIDE, "bilinear"),
  )
  x = jnp.zeros((1, SIDE, SIDE, 3))
  return network, dict(jax.jit(network.init)(jax.random.key(0), x))


@pytest.mark.parametrize("to", ["orbax", "timm"])
def test_features_of_an_exported_network_are_those_of_the_network(
  network, tmp_path, to
):
  model, variables = network
  mesh = mesh_lib.make(1)
  wanted = features.Extractor(model, mesh, batch_size=16).of(
    variables, images()
  )
  name = "weights.safetensors" if to == "timm" else "weights"
  opened = lazy_weights.in_memory("a test", model, variables)
  list(convert.convert(opened, tmp_path / name, to))
  loaded, arrays = seer_jax.load(tmp_path / name)
  if to == "timm":  # A file of arrays says nothing of images.
    loaded = loaded.clone(preprocessing=model.preprocessing)
  found = features.Extractor(loaded, mesh, batch_size=16).of(arrays, images())
  np.testing.assert_allclose(
    found.features_NxD, wanted.features_NxD, rtol=1e-5, atol=1e-6
  )


def test_features_do_not_depend_on_devices_or_batches(network):
  model, variables = network
  one, eight = (
    features.Extractor(model, mesh_lib.make(devices), batch_size=batch)
    for devices, batch in ((1, 19), (8, 16))
  )
  np.testing.assert_allclose(
    one.of(variables, images()).features_NxD,
    eight.of(variables, images()).features_NxD,
    atol=1e-5,
  )


class Broken(Means):
  """Gives features that are not finite for the darkest images."""

  def __init__(self, count):
    self.count = count

  def apply(self, variables, x_NxHxWx3):
    x_NxD = x_NxHxWx3.reshape(len(x_NxHxWx3), -1)
    bad_N = jnp.argsort(jnp.argsort(x_NxD.mean(1))) < self.count
    return {"avgpool": x_NxD.at[:, 1].divide(jnp.where(bad_N, 0, 1))}


@pytest.mark.parametrize("count", [0, 1, 99, 100])
def test_features_that_are_not_finite_are_left_out_and_counted(count, caplog):
  bank, query = images(100), images(100)
  extract = features.Extractor(Broken(count), mesh_lib.make(1), batch_size=100)
  found = extract.of({}, bank)
  assert np.isfinite(found.features_NxD).all()
  assert len(found.features_NxD) == len(found.labels_N) == 100 - count
  spread = dict(feature_stats.Spread(extract, bank).run({}))
  assert spread.get("features/nonfinite", 0) == pytest.approx(count / 100)
  grid = knn.Grid((1, 20), (0.07,), ("cosine",), ("avgpool",))
  right = dict(knn.Knn(extract, bank, query, grid).run({}))
  everything = [*spread.values(), *right.values()]
  assert np.isfinite(everything).all()
  assert right["knn/k=1"] == (count < 100)
  assert (f"{count} of 100" in caplog.text) == bool(count)
