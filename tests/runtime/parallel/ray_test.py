"""Work on a real Ray cluster on loopback, of which a machine is killed."""

import os
import shutil
import subprocess
import sys
import tempfile

import photos
import pytest
import runs

ray = pytest.importorskip("ray", reason="needs pip install '.[cluster]'")
import ray_machines  # noqa: E402


@pytest.fixture(scope="module")
def machines():
  # Ray's sockets need short paths.
  folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")
  with ray_machines.cluster(folder) as (address, workers):
    yield address, workers
  shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
  return photos.plant(tmp_path_factory.mktemp("images"), 300, side=48)


def start(address, *arguments):
  """`seer-jax` in a process of its own, as a user of the cluster."""
  return subprocess.Popen(
    [sys.executable, "-m", "seer_jax", *map(str, arguments)],
    cwd=runs.ROOT,
    env=os.environ | {"RAY_ADDRESS": address, "XLA_FLAGS": ""},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def run(address, *arguments):
  return runs.finish(start(address, *arguments))


def contents(folder):
  return {
    str(path.relative_to(folder)): path.read_bytes()
    for path in sorted(folder.rglob("*"))
    if path.is_file() and "parts" not in path.parts
  }
