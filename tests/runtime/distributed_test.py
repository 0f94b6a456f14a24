"""Several processes as one run: on loopback, on CPUs, for real."""

import json
import re
import signal
import time

import jax
import numpy as np
import pytest
from runs import (
  TINY,
  TINY_STEPS,
  Gate,
  assert_same_run,
  finish,
  free_port,
  lines_of,
  metrics_of,
  run,
  start,
  state_of,
)

from seer_jax.runtime import distributed, errors


def start_two(workdir, *changes, code=""):
  """Two processes of one device; `changes` may be a pair, one for each."""
  port = free_port()
  both = []
  for process in range(2):
    own = [c[process] if isinstance(c, tuple) else c for c in changes]
    both.append(
      start(
        *TINY,
        f"--workdir={workdir}",
        f"--coordinator=localhost:{port}",
        "--processes=2",
        f"--process={process}",
        *own,
        code=code,
      )
    )
  return both


def finish_both(both):
  return [finish(process) for process in both]


@pytest.fixture(scope="module")
def two(once):
  """A run of two processes, and how both ended."""

  def make(workdir):
    ended = finish_both(start_two(workdir))
    assert [code for code, _, _ in ended] == [0, 0], ended
    workdir.with_suffix(".json").write_text(json.dumps(ended))

  workdir = once("two", make)
  return workdir, json.loads(workdir.with_suffix(".json").read_text())


def test_two_processes_equal_one(two, tmp_path):
  code, _, err = run(*TINY, f"--workdir={tmp_path}", devices=2)
  assert code == 0, err
  ours, theirs = metrics_of(two[0]), metrics_of(tmp_path)
  assert [line["step"] for line in ours] == [line["step"] for line in theirs]
  for one, other in zip(ours, theirs, strict=True):
    assert one == pytest.approx(other, rel=1e-5, abs=1e-5)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5),
    state_of(two[0])["params"],
    state_of(tmp_path)["params"],
  )


def test_only_the_first_process_writes_and_tells(two):
  workdir, ((_, out, _), (_, silent, err)) = two
  assert "knn/k=20 top-1" in out
  assert "knn" not in silent
  assert "step" not in err
  steps = [line["step"] for line in metrics_of(workdir)]
  assert steps == TINY_STEPS


@pytest.mark.parametrize(
  ("number", "told"),
  [
    pytest.param(signal.SIGTERM, 1, marks=pytest.mark.slow),
    (signal.SIGUSR1, 0),
  ],
)
def test_a_signal_to_one_stops_both_at_one_step_to_go_on_exactly(
  two, tmp_path, number, told
):
  workdir, gate = tmp_path / "run", Gate(tmp_path / "gate", 5)
  both = start_two(workdir, code=gate.code)
  gate.wait(both[told])
  both[told].send_signal(number)
  gate.open()
  ended = finish_both(both)
  assert [code for code, _, _ in ended] == [75, 75], ended
  words = {
    err.strip().splitlines()[-1].rsplit(" at ", 1)[1] for *_, err in ended
  }
  assert len(words) == 1
  assert lines_of(workdir)[-1:] != lines_of(two[0])[-1:]
  ended = finish_both(start_two(workdir))
  assert [code for code, _, _ in ended] == [0, 0], ended
  assert_same_run(workdir, two[0])


@pytest.mark.parametrize(
  "stopped", [1, pytest.param(0, marks=pytest.mark.slow)]
)
def test_a_collective_that_is_stuck_ends_the_other_process(tmp_path, stopped):
  """The one at its other end answers no more, but its machine is there."""
  gate = Gate(tmp_path / "gate", 5)
  both = start_two(tmp_path / "run", "--config.watchdog=8", code=gate.code)
  gate.wait(both[stopped])
  both[stopped].send_signal(signal.SIGSTOP)
  gate.open()
  code, _, err = finish(both[1 - stopped])
  both[stopped].kill()
  finish(both[stopped])
  assert code == 70, err
  assert re.search(r"stuck for \d+ s \(.* step \d", err), err
  name = "stuck.txt" if stopped else "stuck.1.txt"
  assert "most recent call first" in (tmp_path / "run" / name).read_text()


def test_processes_of_different_configs_end_in_one_line(tmp_path):
  both = start_two(
    tmp_path, ("--config.swav.epsilon=0.03", "--config.swav.epsilon=0.04")
  )
  for code, _, err in finish_both(both):
    assert code == 2, err
    assert "the config of process 1 differs from that of process 0" in err
    assert "Traceback" not in err
  assert not (tmp_path / "checkpoints").exists()


def test_a_coordinator_that_is_not_there_is_told_in_one_line(tmp_path):
  began = time.monotonic()
  code, _, err = run(
    *TINY,
    f"--workdir={tmp_path}",
    f"--coordinator=localhost:{free_port()}",
    "--processes=2",
    "--process=1",
    "--patience=2",
  )
  assert code == 70, err
  assert "process 1 cannot reach the coordinator at localhost:" in err
  assert len(err.strip().splitlines()) == 1
  assert time.monotonic() - began < 150  # By default, 300 s.


SLURM = {
  "SLURM_JOB_ID": "7",
  "SLURM_NTASKS": "16",
  "SLURM_STEP_NUM_TASKS": "16",
  "SLURM_PROCID": "3",
  "JAX_COORDINATOR_ADDRESS": "node1:1234",
}


@pytest.mark.parametrize(
  ("environment", "place"),
  [
    ({}, None),
    (SLURM, distributed.Rank("node1:1234", 16, 3)),
    # The shell of a batch script is alone, whatever it is going to start.
    ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "16"}, None),
    (SLURM | {"SLURM_STEP_NUM_TASKS": "1"}, None),
    (
      {
        "JAX_COORDINATOR_ADDRESS": "pod-0.svc:1234",
        "JAX_NUM_PROCESSES": "4",
        "JOB_COMPLETION_INDEX": "2",
      },
      distributed.Rank("pod-0.svc:1234", 4, 2),
    ),
    (
      {
        "OMPI_COMM_WORLD_SIZE": "2",
        "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
        "OMPI_COMM_WORLD_RANK": "1",
      },
      distributed.Rank("localhost:61440", 2, 1),
    ),
  ],
)
def test_a_process_finds_its_rank(environment, place):
  assert distributed.find_rank(environment) == place


@pytest.mark.parametrize(
  ("flags", "words"),
  [
    ({"coordinator": "here:1"}, "do not give processes and process"),
    ({"coordinator": "here", "processes": 2, "process": 0}, "HOST:PORT"),
    ({"coordinator": "here:1", "processes": 2, "process": 2}, "from 0 to 1"),
  ],
)
def test_flags_that_make_no_rank_are_user_errors(flags, words):
  with pytest.raises(errors.UserError, match=words):
    distributed.find_rank({}, **flags)


def test_open_mpi_over_several_hosts_needs_a_coordinator():
  environment = {
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "OMPI_COMM_WORLD_RANK": "1",
  }
  with pytest.raises(errors.UserError, match="JAX_COORDINATOR_ADDRESS"):
    distributed.find_rank(environment)
