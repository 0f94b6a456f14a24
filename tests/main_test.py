"""The command as a user runs it: to the end, killed, stopped, mistaken."""

import signal

import pytest
from runs import (
  STEPS,
  TINY,
  assert_same_run,
  finish,
  lines_of,
  metrics_of,
  run,
  start,
  wait_for_step,
)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("undisturbed")
  code, out, err = run(*TINY, f"--workdir={workdir}")
  assert code == 0, err
  return workdir, out


def test_a_run_ends_with_knn_and_loss_of_the_untrained_and_the_trained(
  undisturbed,
):
  workdir, out = undisturbed
  assert "knn/k=20 top-1: untrained 0." in out
  assert "loss / ln K: first" in out
  steps = [line["step"] for line in metrics_of(workdir)]
  assert steps == [0, *range(2, STEPS + 1, 2), STEPS]
  assert list((workdir / "tensorboard").iterdir())


# Killed before anything is saved, the run starts over.
@pytest.mark.parametrize(("at", "every"), [(4, 1000), (12, 5)])
def test_killed_in_the_middle_it_goes_on_bit_for_bit(
  undisturbed, tmp_path, at, every
):
  process = start(
    *TINY, f"--workdir={tmp_path}", f"--config.checkpoint.every={every}"
  )
  wait_for_step(tmp_path, at)
  process.send_signal(signal.SIGKILL)
  assert finish(process)[0] == -signal.SIGKILL
  code, out, err = run(*TINY, f"--workdir={tmp_path}")
  assert code == 0, err
  assert ("resumed at step" in err) == (every < at)
  assert out == undisturbed[1]
  assert_same_run(tmp_path, undisturbed[0])


def test_stopped_by_a_signal_it_saves_exits_75_and_goes_on_bit_for_bit(
  undisturbed, tmp_path
):
  process = start(*TINY, f"--workdir={tmp_path}")
  wait_for_step(tmp_path, 12)
  process.send_signal(signal.SIGTERM)
  code, _, err = finish(process)
  assert code == 75, err
  assert "stopped by SIGTERM at step" in err
  code, _, err = run(*TINY, f"--workdir={tmp_path}")
  assert code == 0, err
  assert_same_run(tmp_path, undisturbed[0])


def test_a_finished_run_started_again_only_tells_its_result(undisturbed):
  workdir, out = undisturbed
  before = lines_of(workdir)
  code, again, _ = run(*TINY, f"--workdir={workdir}")
  assert (code, again, lines_of(workdir)) == (0, out, before)


@pytest.mark.slow
def test_eight_devices_learn_what_one_does(undisturbed, tmp_path):
  code, _, err = run(*TINY, f"--workdir={tmp_path}", devices=8)
  assert code == 0, err
  for one, eight in zip(
    metrics_of(undisturbed[0])[1:6], metrics_of(tmp_path)[1:6], strict=True
  ):
    assert eight["loss"] == pytest.approx(one["loss"], rel=1e-4)


def test_a_workdir_of_another_config_is_refused_with_the_difference(
  undisturbed,
):
  workdir, _ = undisturbed
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
    ((), "give --config"),
    (("--config=configs/digits.py",), "give --workdir"),
    ((*TINY, "--workdirr=here"), "workdirr"),
  ],
)
def test_mistakes_on_the_command_line_exit_2_with_one_line(
  args, words, tmp_path
):
  del tmp_path
  code, out, err = run(*args)
  assert code == 2, err
  assert out == ""
  assert words in err
  assert "Traceback" not in err
  assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize(
  ("args", "words"),
  [
    ((), "give --topology"),
    (("--topology=b900:1x8",), "b900"),
    (("--topology=v100:1x3",), "cannot share"),
  ],
)
def test_plans_that_cannot_be_made_exit_2_with_one_line(args, words):
  code, _, err = run(*TINY, "--mode=plan", *args)
  assert code == 2, err
  assert words in err or "pip install" in err
  assert "Traceback" not in err
