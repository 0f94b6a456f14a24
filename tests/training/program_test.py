"""The step's program: compiled once, traced on request, nothing implicit."""

import re

import jax
import pytest
import runs

from seer_jax.config import from_flags
from seer_jax.training import metrics, program, run


@pytest.mark.parametrize(
  ("name", "scope"),
  [
    (
      "jit(step)/jvp(SwavModel)/SwavModel.features/trunk/trunk._run/"
      "trunk._apply_block/stage1_block0/b/cond/branch_0_fun/ffi_call",
      "trunk/stage1_block0/b",
    ),
    (
      "jit(step)/transpose(jvp(SwavModel))/SwavModel.features/trunk/stem/dot",
      "trunk/stem, gradient",
    ),
    ("jit(step)/update/mul", "update"),
    ("jit(step)/mul", "outside the network"),
  ],
)
def test_a_scope_is_the_modules_of_an_operation(name, scope):
  assert program.scope_of(name) == scope


def test_a_profile_leaves_a_trace_and_its_dearest_scopes(tmp_path):
  code, _, err = runs.run(
    *runs.TINY,
    "--config.steps=20",
    "--config.profile=10",
    f"--workdir={tmp_path / 'run'}",
  )
  assert code == 0, err
  folder = tmp_path / "run" / program.FOLDER
  assert list(folder.glob("**/*.xplane.pb"))
  text = (folder / program.TABLE).read_text()
  assert text in err
  head, *rows, others, whole = text.splitlines()
  assert head.split()[0] == "scope" and whole.endswith("100.0%")
  assert len(rows) == 10
  assert any(row.startswith("trunk/stage1_block0/") for row in rows)
  shares = [float(re.search(r"([\d.]+)%$", row)[1]) for row in (*rows, others)]
  assert sum(shares) == pytest.approx(100, abs=1)
  assert shares[:10] == sorted(shares[:10], reverse=True)


def test_the_log_says_once_what_compiling_took(tiny):
  lines = metrics.read_lines(tiny / "metrics.jsonl")
  seconds = [line.get("compile_seconds") for line in lines]
  told = [each for each in seconds if each is not None]
  assert len(told) == 1 and told[0] > 0


def test_after_the_second_step_nothing_compiles_or_moves_unasked(
  tmp_path, monkeypatch
):
  """But for what is asked for: batches put on devices, metrics fetched."""
  compiled, guarded = [], []

  def listen(event, seconds, **kwargs):
    if "backend_compile" in event and guarded:
      compiled.append(event)

  call = program.Program.__call__

  def guard(self, number, now, batch):
    if number == 2:
      guarded.append(number)
      jax.config.update("jax_transfer_guard", "disallow")
    found = call(self, number, now, batch)
    if number == 29:
      jax.config.update("jax_transfer_guard", "allow")
      guarded.clear()
    return found

  monkeypatch.setattr(program.Program, "__call__", guard)
  jax.monitoring.register_event_duration_secs_listener(listen)
  config = from_flags.read(
    "configs/digits.py", [*runs.TINY[1:], "--config.steps=30"]
  )
  config.eval.every, config.checkpoint.every = 0, 1000
  try:
    run.run(config, tmp_path / "run")
  finally:
    jax.config.update("jax_transfer_guard", "allow")
    jax.monitoring.clear_event_listeners()
  assert not compiled


def test_programs_are_compiled_without_training(tmp_path):
  workdir = tmp_path / "run"
  code, out, err = runs.run(
    *runs.TINY, "--compile-only", f"--workdir={workdir}"
  )
  assert code == 0, err
  assert re.search(
    r"first state: [\d.]+ s\ntraining step: [\d.]+ s\ncompiled programs", out
  )
  assert not workdir.exists()
