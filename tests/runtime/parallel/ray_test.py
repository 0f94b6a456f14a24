"""Work on a real Ray cluster on loopback, of which machines are killed."""

import os
import shutil
import subprocess
import sys
import tempfile

import photos
import pytest
import ray_machines
import runs

from seer_jax.runtime import errors
from seer_jax.runtime.parallel import nodes, ray_cluster


@pytest.fixture(scope="module")
def cluster():
  """(address, machines, function that adds one)."""
  pytest.importorskip("ray", reason="needs pip install '.[cluster]'")
  # Ray's sockets need short paths.
  folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")
  with ray_machines.cluster(folder) as started:
    yield started
  shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
  return photos.plant(tmp_path_factory.mktemp("images"), 600, side=128)


def start(address, *arguments, folder):
  """`seer-jax` in a process of its own, as a user of the cluster."""
  where = {"RAY_ADDRESS": address, "XDG_CACHE_HOME": str(folder / "cache")}
  return subprocess.Popen(
    [sys.executable, "-m", "seer_jax", *map(str, arguments)],
    cwd=runs.ROOT,
    env=os.environ | {"XLA_FLAGS": ""} | where,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def run(address, *arguments, folder):
  return runs.finish(start(address, *arguments, folder=folder))


def contents(folder):
  return {
    str(path.relative_to(folder)): path.read_bytes()
    for path in folder.rglob("*")
    if path.is_file() and path.name != "lock"
  }


def count(folder, pattern):
  return len(list(folder.glob(pattern)))


@pytest.mark.parametrize("command", ["pack", "embed"])
def test_the_driver_and_a_machine_are_killed_and_nothing_is_lost(
  cluster, images, tiny, tmp_path, command
):
  address, machines, _ = cluster
  here, there = tmp_path / "local", tmp_path / "ray"
  if command == "pack":
    arguments = ("pack", images, "--side=64", "--shard=16")
    out, written = (), "parts/0*.json"
  else:
    arguments = ("embed", images, "--weights", tiny, "--batch=16")
    arguments += ("--shard=32",)
    out, written = ("--out",), "embeddings/images-*"
  status, _, err = run("", *arguments, *out, here, folder=tmp_path)
  assert status == 0, err
  on_ray = (*arguments, *out, there, "--on=ray")
  first = start(address, *on_ray, folder=tmp_path)
  runs.wait_until(lambda: count(there, written) > 1, first)
  first.kill()
  first.communicate()
  done = count(there, written)
  second = start(address, *on_ray, folder=tmp_path)
  runs.wait_until(lambda: count(there, written) > done, second)
  if len(machines) > 1:
    machines.pop().kill()
  status, said, err = runs.finish(second)
  assert status == 0, err
  assert "on a Ray cluster" in said and "600" in said
  same, theirs = contents(here), contents(there)
  assert same.keys() == theirs.keys()
  for name in same:
    assert same[name] == theirs[name], name


def test_surveys_and_duplicates_are_those_of_one_machine(
  cluster, images, tiny, tmp_path
):
  address, _, _ = cluster
  out = tmp_path / "out"
  arguments = ("embed", images, "--weights", tiny, "--out", out)
  assert run("", *arguments, folder=tmp_path)[0] == 0
  for arguments in (
    ("inspect", images),
    ("duplicates", out, "--features=0.999", "--drop"),
  ):
    found = []
    for where in ("local", "ray"):
      drop = [tmp_path / where] if arguments[-1] == "--drop" else []
      status, said, err = run(
        address, *arguments, *drop, f"--on={where}", folder=tmp_path
      )
      assert status == 0, err
      lines = [
        line
        for line in said.splitlines()
        if not line.startswith(("on a Ray", "input", "written"))
      ]
      found.append((lines, drop and drop[0].read_text()))
    assert found[0] == found[1]


def test_mistakes_are_one_line(cluster, images, tmp_path):
  address, _, _ = cluster
  pack = ("pack", images, tmp_path / "out", "--on=ray")
  for there, arguments, words in (
    (f"127.0.0.1:{runs.free_port()}", (), "no Ray cluster answers at 127"),
    (
      address,
      ("--task-cpus=99",),
      "no machine of the cluster fits a task",
    ),
    (address, ("--task-memory=1e6",), "fits a task of 1 CPUs"),
    (address, ("--task-cpus=0",), "one must be positive"),
  ):
    status, _, err = run(there, *pack, *arguments, folder=tmp_path)
    assert status == 2 and words in err and "Traceback" not in err


@pytest.mark.slow
def test_a_machine_with_other_code_none_or_without_the_data_is_named(
  cluster, images, tmp_path
):
  address, _, add = cluster
  pack = ("pack", images, tmp_path / "out", "--on=ray")
  other = tmp_path / "other"
  shutil.copytree(runs.ROOT / "seer_jax", other / "seer_jax")
  (other / "seer_jax" / "more.py").touch()
  empty = f"mount -t tmpfs none {images.parent}"
  older = f"mount --bind {other / 'seer_jax'} {runs.ROOT / 'seer_jax'}"
  for before, words in (
    (older, "has other files of seer_jax"),
    (empty, f"does not have {images}"),
    (f"mount -t tmpfs none {runs.ROOT / 'seer_jax'}", "cannot run seer_jax"),
  ):
    odd = add(before)
    status, _, err = run(address, *pack, folder=tmp_path)
    odd.kill()
    assert status == 2 and words in err and "Traceback" not in err


# Without a cluster.


OURS = nodes._facts()


@pytest.mark.parametrize(
  ("facts", "missing", "words"),
  [
    (OURS._replace(python="3.99"), [], "has other python, 3.99; this machine"),
    (OURS._replace(seer_jax="9"), [], "has other seer_jax, 9; this machine"),
    (OURS._replace(code="x"), [], "has other files of seer_jax, x; this"),
    (OURS, ["/data"], "does not have /data; mount it there"),
  ],
)
def test_a_machine_that_differs_is_named(facts, missing, words):
  with pytest.raises(errors.UserError, match="machine 10.0.0.3") as raised:
    nodes._compare("machine 10.0.0.3", facts, missing)
  assert words in str(raised.value)


def test_tasks_fit_by_their_scarcest_resource():
  task = ray_cluster.Task(2, 1, 4)
  gib = 2**30
  fitting = ray_cluster._fitting
  assert fitting({"CPU": 16, "GPU": 8, "memory": 100 * gib}, task) == 8
  assert fitting({"CPU": 16, "GPU": 8, "memory": 9 * gib}, task) == 2
  assert fitting({"CPU": 3, "GPU": 8, "memory": 9 * gib}, task) == 1
  assert fitting({"CPU": 16, "memory": 100 * gib}, task) == 0
  assert fitting({"CPU": 16}, ray_cluster.Task(0, 0, 0)) == 0


def test_without_ray_the_message_names_the_extra(monkeypatch):
  monkeypatch.setitem(sys.modules, "ray", None)
  with pytest.raises(errors.UserError, match="seer_jax\\[cluster\\]"):
    ray_cluster.Cluster("auto", ray_cluster.Task(), [])
