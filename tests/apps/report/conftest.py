"""Runs to report on: one that learned a little, photographs, a collapse."""

import pathlib
import tarfile

import pytest
import runs

from seer_jax import config as config_lib
from seer_jax.apps.report import history
from seer_jax.config import keys as config_keys
from seer_jax.training import record

CIFAR = pathlib.Path(__file__).parents[4] / "shared" / "data" / "cifar10.tar"
# Every so many of its images; the rest of the run is as small.
EVERY = 250
COLLAPSING = (
  *runs.TINY,
  "--config.steps=320",
  "--config.eval.every=0",
  "--config.checkpoint.every=320",
  "--config.swav.iterations=0",
  "--config.optim.lr=80",
)


def trained(*arguments):
  def make(workdir):
    code, _, err = runs.run(*arguments, f"--workdir={workdir}")
    assert code == 0, err

  return make


@pytest.fixture(scope="session")
def collapsed(once):
  """A run in which one prototype takes all images."""
  return once("collapsed", trained(*COLLAPSING))


@pytest.fixture(scope="session")
def cifar(once):
  """A few steps on some images of CIFAR-10; skips where it is not there."""
  if not CIFAR.exists():
    pytest.skip(f"{CIFAR} is not there")

  def make_images(folder):
    with tarfile.open(CIFAR) as tar:
      members = [member for member in tar if member.isfile()]
      tar.extractall(folder, members[::EVERY], filter="data")

  images = once("cifar-images", make_images) / "cifar10"
  return once(
    "cifar",
    trained(
      *(each for each in runs.TINY if "digits" not in each),
      "--config=configs/cifar10.py",
      # Lists would win over the tiny trunk's numbers.
      *(
        f"--config.model.{key}=()"
        for key in ("depths", "widths", "group_widths")
      ),
      f"--config.data.train.path={images}",
      f"--config.data.test.path={images}",
    ),
  )


@pytest.fixture
def made(tmp_path):
  """`made(lines, ...)`: a history that nobody ran; `keys` are of the config."""

  def make(lines, keys=(), bad_images=(), gave_up=False, query=1000, name="a"):
    config = config_lib.base()
    config.steps, config.batch_size = 1000, 64
    config.precision, config.data.workers = "fp32", 0
    config.optim.lr, config.swav.freeze_steps = 0.6, 20
    config.model.prototypes = (64,)
    with config.ignore_type():
      for key, value in dict(keys).items():
        config_keys.put(config, key, value)
    return history.History(
      name=name,
      workdir=tmp_path / name,
      config=config,
      record=record.Record(images=2000, query=query),
      lines=lines,
      results={},
      bad_images=bad_images,
      gave_up=gave_up,
    )

  return make
