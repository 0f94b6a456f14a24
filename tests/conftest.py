"""Eight devices on any machine; what makes tests and reruns quick."""

import fcntl
import gc
import importlib.util
import os
import pathlib

import quick_xla

# Both are read when JAX wakes up: before the first import of it.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
  f"{quick_xla.FLAGS} --xla_force_host_platform_device_count=8"
)

import jax
import pytest

# Tracing makes millions of objects, few of them in cycles. Collecting less
# often saves a tenth to a sixth of the time.
gc.set_threshold(100_000, 20, 20)

_HOME = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
_CACHE = pathlib.Path(_HOME) / "seer_jax" / "xla-tests"
jax.config.update("jax_compilation_cache_dir", str(_CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def pytest_xdist_auto_num_workers(config):
  """A process for each of up to four cores; none for single files and tests."""
  whole = config.args_source != pytest.Config.ArgsSource.ARGS
  return min(os.cpu_count(), 4) if whole else 0


_OF_EXTRAS = {"reference", "torch", "transforms", "browser", "cluster"}


def pytest_collection_modifyitems(items):
  """Marks the tests that skip without an extra, for .ci/run to select."""
  for item in items:
    if _OF_EXTRAS & set(item.fixturenames):
      item.add_marker("extras")


@pytest.fixture(scope="session")
def once(tmp_path_factory, worker_id):
  """`once(name, make)`: a folder, by `make(folder)` of whoever asks first.

  Of all tests of all workers; it may be read and copied, not changed.
  """
  base = tmp_path_factory.getbasetemp()
  # Workers of pytest-xdist have folders of their own below a common one.
  common = (base if worker_id == "master" else base.parent) / "once"
  common.mkdir(exist_ok=True)

  def made(name, make):
    folder, done = common / name, common / f"{name}.done"
    with (common / f"{name}.lock").open("w") as lock:
      fcntl.flock(lock, fcntl.LOCK_EX)
      if not done.exists():
        make(folder)
        done.touch()
    return folder

  return made


@pytest.fixture(scope="session")
def tiny(once):
  """A run of `runs.TINY` that nothing happened to, started as users do.

  What it printed is beside its workdir, with the ending `.out`.
  """
  import runs

  def make(workdir):
    code, out, err = runs.run(*runs.TINY, f"--workdir={workdir}", fresh=True)
    assert code == 0, err
    workdir.with_suffix(".out").write_text(out)

  return once("tiny", make)


@pytest.fixture
def native_conv(monkeypatch):
  """Leaves the CPU's form of grouped convolutions out, which is long to trace.

  For tests that trace large trunks for shapes and costs.
  """
  from seer_jax.models import cpu_kernels, grouped_conv

  monkeypatch.setattr(cpu_kernels, "is_there", lambda: False)
  monkeypatch.setattr(grouped_conv, "_merged", grouped_conv._native)


# What a step is made of; the rest of a config says what is done with it.
_OF_NO_STEP = ("data", "eval", "checkpoint", "rollback", "watchdog")


@pytest.fixture(scope="session")
def _steps():
  return {}


@pytest.fixture
def shared_steps(_steps, monkeypatch):
  """Runs of this process that make the same step trace and compile it once.

  For tests of what surrounds the step: data, evaluations, checkpoints.
  """
  from seer_jax.config import keys
  from seer_jax.tasks import swav
  from seer_jax.training import step

  build = step.build

  def build_once(task, tx, config, mesh):
    key = (
      *(
        each
        for each in keys.flatten(config)
        if each[0].split(".")[0] not in _OF_NO_STEP
      ),
      mesh,
      # What tests change.
      step.gradient,
      swav.SwAV.view,
    )
    if key not in _steps:
      _steps[key] = build(task, tx, config, mesh)
    return _steps[key]

  monkeypatch.setattr(step, "build", build_once)


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
