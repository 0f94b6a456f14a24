"""Eight devices on any machine, and caches that make reruns quick."""

import importlib.util
import os
import pathlib

# Both are read when JAX wakes up: before the first import of it.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
  os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)

import jax
import pytest

_HOME = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
_CACHE = pathlib.Path(_HOME) / "seer_jax" / "xla-tests"
jax.config.update("jax_compilation_cache_dir", str(_CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


@pytest.fixture(scope="session")
def reference():
  """The transcription of published SwAV; skips where there is no PyTorch."""
  pytest.importorskip("torch", reason="parity is measured against PyTorch")
  import torch_reference

  return torch_reference


@pytest.fixture(scope="session")
def torch():
  return pytest.importorskip("torch", reason="parity is against torchvision")


@pytest.fixture(scope="session")
def transforms(torch):
  """torchvision.transforms; skips where there is none."""
  if importlib.util.find_spec("torchvision") is None:
    pytest.skip("parity is measured against torchvision")
  from benchmarks import published_transforms

  return published_transforms.import_torchvision().transforms
