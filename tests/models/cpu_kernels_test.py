import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seer_jax.models import cpu_kernels
from seer_jax.models.batch_norm import BatchNorm


@pytest.fixture
def kernels():
  if not cpu_kernels.is_there():
    pytest.skip("needs a C++ compiler")


def norm_and_gradients(relu, added, shape):
  """(loss, its gradients by all operands, output, running statistics)."""
  keys = jax.random.split(jax.random.key(0), 5)
  x = 2 * jax.random.normal(keys[0], shape) + 3
  # No sum is within rounding of zero, where the ReLU's gradient jumps.
  add = jnp.sign(jax.random.normal(keys[1], shape)) * 20 if added else None
  weights = jax.random.normal(keys[2], shape)
  module = BatchNorm()
  variables = module.init(keys[3], x, True)
  params = {
    name: value + 0.1 * jax.random.normal(keys[4], value.shape)
    for name, value in variables["params"].items()
  }
  params["bias"] = params["bias"] + (0 if added else 20)

  def loss(params, x, add):
    y, changed = module.apply(
      {"params": params, "batch_stats": variables["batch_stats"]},
      x,
      True,
      add,
      relu,
      mutable=["batch_stats"],
    )
    return jnp.sum(jnp.sin(y) * weights), (y, changed)

  slope = jax.value_and_grad(loss, (0, 1, 2) if added else (0, 1), True)
  compiled = jax.jit(slope).lower(params, x, add).compile()
  return compiled(params, x, add), compiled.as_text()


@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("shape", [(4, 3, 3, 24), (7, 13), (2, 40, 40, 48)])
def test_batch_norm_and_its_gradients_are_those_of_xla(
  kernels, relu, added, shape
):
  found, text = norm_and_gradients(relu, added, shape)
  assert "SeerBatchNormGradients" in text
  with cpu_kernels.portable():
    wanted, text = norm_and_gradients(relu, added, shape)
  assert "Seer" not in text
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-4),
    found,
    wanted,
  )


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_shows(kernels, bad):
  """A step must see it, to leave it out."""
  x = jnp.ones((8, 16)).at[3, 5].set(bad)
  one = jnp.ones(16)
  y, _, _ = cpu_kernels.batch_norm(x, one, one, one, None, True, 1e-5)
  assert not np.isfinite(y[:, 5]).any()
  assert np.isfinite(np.delete(y, 5, axis=1)).all()


def test_sums_are_the_same_each_time(kernels):
  x = jax.random.normal(jax.random.key(0), (8, 20, 20, 48))
  kernel = jax.random.normal(jax.random.key(1), (3, 3, 8, 48))
  call = jax.jit(
    lambda x, k: cpu_kernels.grouped_conv_gradients(x, k, jnp.sin(x), 1)
  )
  first = call(x, kernel)
  again = [call(x, kernel) for _ in range(5)]
  for each in again:
    jax.tree.map(np.testing.assert_array_equal, each, first)


@pytest.fixture
def cache(monkeypatch, tmp_path):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  return tmp_path / "seer_jax" / "kernels"


def test_kernels_are_built_once(kernels, cache, monkeypatch):
  runs = []
  build = cpu_kernels.subprocess.run
  monkeypatch.setattr(
    cpu_kernels.subprocess,
    "run",
    lambda *args, **kwargs: runs.append(args) or build(*args, **kwargs),
  )
  compiler = cpu_kernels._compiler()
  assert cpu_kernels._built(compiler) == cpu_kernels._built(compiler)
  assert len(runs) == 1
  assert [path.suffix for path in cache.iterdir()] == [".so"]


@pytest.mark.parametrize(
  ("compiler", "words"),
  [("no-such-compiler", "no C++ compiler"), ("false", "cannot build")],
)
def test_without_a_compiler_everything_works_slower(
  cache, monkeypatch, caplog, compiler, words
):
  monkeypatch.setenv("CXX", compiler)
  with caplog.at_level("INFO"):
    assert not cpu_kernels.is_there.__wrapped__()
  assert words in caplog.text
  assert not list(pathlib.Path(cache).glob("*.so"))
