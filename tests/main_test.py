"""The command as a user runs it: to the end, killed, stopped, mistaken."""

import shutil
import signal

import pytest
from runs import (
  TINY,
  TINY_STEPS,
  Gate,
  assert_same_run,
  finish,
  lines_of,
  metrics_of,
  run,
  start,
  wait_until,
)


def test_a_run_ends_with_knn_and_loss_of_the_untrained_and_the_trained(tiny):
  out = tiny.with_suffix(".out").read_text()
  assert "knn/k=20 top-1: untrained 0." in out
  assert "loss / ln K: first" in out
  steps = [line["step"] for line in metrics_of(tiny)]
  assert steps == TINY_STEPS
  assert list((tiny / "tensorboard").iterdir())


# Killed before anything is saved, the run starts over.
@pytest.mark.parametrize(("at", "every"), [(4, 1000), (12, 10)])
def test_killed_in_the_middle_it_goes_on_bit_for_bit(tiny, tmp_path, at, every):
  workdir, gate = tmp_path / "run", Gate(tmp_path / "gate", at)
  process = start(
    *TINY,
    f"--workdir={workdir}",
    f"--config.checkpoint.every={every}",
    code=gate.code,
  )
  gate.wait(process)
  if every < at:
    wait_until((workdir / "checkpoints" / str(every)).exists, process)
  process.kill()
  assert finish(process)[0] == -signal.SIGKILL
  code, out, err = run(*TINY, f"--workdir={workdir}")
  assert code == 0, err
  assert ("resumed at step" in err) == (every < at)
  assert out == tiny.with_suffix(".out").read_text()
  assert_same_run(workdir, tiny)


def test_stopped_by_a_signal_it_saves_exits_75_and_goes_on_bit_for_bit(
  tiny, tmp_path
):
  workdir, gate = tmp_path / "run", Gate(tmp_path / "gate", 12)
  process = start(*TINY, f"--workdir={workdir}", code=gate.code)
  gate.wait(process)
  process.terminate()
  gate.open()
  code, _, err = finish(process)
  assert code == 75, err
  assert "stopped by SIGTERM at step 13, all saved" in err
  code, _, err = run(*TINY, f"--workdir={workdir}")
  assert code == 0, err
  assert "resumed at step 13" in err
  assert_same_run(workdir, tiny)


def test_a_finished_run_started_again_only_tells_its_result(tiny, tmp_path):
  workdir = shutil.copytree(tiny, tmp_path / "run")
  before = lines_of(workdir)
  code, again, _ = run(*TINY, f"--workdir={workdir}")
  assert code == 0
  assert again == tiny.with_suffix(".out").read_text()
  assert lines_of(workdir) == before


CRASH = """
import os, signal
from seer_jax.training import run
run.run = lambda *_: os.kill(os.getpid(), signal.SIGSEGV)
"""


def test_a_crash_of_a_library_leaves_the_stacks(tmp_path):
  code, _, err = run(*TINY, f"--workdir={tmp_path}", code=CRASH)
  assert code == -signal.SIGSEGV
  assert "Segmentation fault" in err and "in _train" in err


@pytest.mark.slow
def test_eight_devices_learn_what_one_does(tiny, tmp_path):
  code, _, err = run(*TINY, f"--workdir={tmp_path}", devices=8)
  assert code == 0, err
  # Up to the second evaluation.
  for one, eight in zip(
    metrics_of(tiny)[1:5], metrics_of(tmp_path)[1:5], strict=True
  ):
    assert eight["loss"] == pytest.approx(one["loss"], rel=1e-4)


def test_a_workdir_of_another_config_is_refused_with_the_difference(
  tiny, tmp_path
):
  workdir = shutil.copytree(tiny, tmp_path / "run")
  before = lines_of(workdir)
  code, _, err = run(
    *TINY, f"--workdir={workdir}", "--config.swav.epsilon=0.04"
  )
  assert code == 2
  assert "swav.epsilon was 0.03, is 0.04" in err
  assert lines_of(workdir) == before


@pytest.mark.parametrize(
  ("args", "words"),
  [
    ((*TINY, "--config.batch_sise=3"), "did you mean config.batch_size?"),
    ((*TINY, "--config.swav.epsilom=3"), "did you mean config.swav.epsilon?"),
    ((*TINY, "--config.batch_size=many"), "batch_size"),
    (("--config=configs/nowhere.py",), "configs/nowhere.py"),
    ((), "no --config is given"),
    (("--config=configs/digits.py",), "no --workdir is given"),
    ((*TINY, "--workdirr=here"), "workdirr"),
  ],
)
def test_mistakes_on_the_command_line_exit_2_with_one_line(
  args, words, tmp_path
):
  del tmp_path
  # One of them in a process that is not forked.
  code, out, err = run(*args, fresh=not args)
  assert code == 2, err
  assert out == ""
  assert words in err
  assert "Traceback" not in err
  assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize(
  ("args", "words"),
  [
    ((), "no --topology is given"),
    (("--topology=b900:1x8",), "b900"),
    (("--topology=v100:1x3",), "cannot share"),
  ],
)
def test_plans_that_cannot_be_made_exit_2_with_one_line(args, words):
  code, _, err = run(*TINY, "--mode=plan", *args)
  assert code == 2, err
  assert words in err or "pip install" in err
  assert "Traceback" not in err
