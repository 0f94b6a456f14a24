"""What a person at a terminal, or its end, does to a run."""

import signal

import pytest
import runs


@pytest.fixture
def held(tmp_path):
  """`held(code, *options)`: a run before its 12th step, and its gate."""
  started = []

  def start(code="", *options):
    gate = runs.Gate(tmp_path / "gate", 12)
    process = runs.start(
      *runs.TINY,
      f"--workdir={tmp_path / 'run'}",
      *options,
      code=code + gate.code,
    )
    started.append(process)
    gate.wait(process)
    return process, gate

  yield start
  for process in started:
    process.kill()


def test_a_closed_terminal_is_a_notice_to_stop(held):
  process, gate = held()
  process.send_signal(signal.SIGHUP)
  gate.open()
  code, _, err = runs.finish(process)
  assert code == 75, err
  assert "stopped by SIGHUP at step 13, all saved" in err


def test_under_nohup_it_is_none(held):
  code = "import signal\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
  process, gate = held(code)
  process.send_signal(signal.SIGHUP)
  gate.open()
  assert runs.finish(process)[0] == 0


@pytest.mark.parametrize("options", [(), ("--config.data.workers=1",)])
def test_ctrl_c_twice_ends_at_once_and_without_a_traceback(held, options):
  process, _ = held("", *options)
  process.send_signal(signal.SIGINT)
  runs.wait_until(lambda: "SIGINT: stopping" in process.said(), process)
  process.send_signal(signal.SIGINT)
  code, _, err = runs.finish(process)
  assert code == 130, err
  assert "Traceback" not in err
  assert "the same command resumes from the newest checkpoint" in err
