"""The compiled step of a run, and traces of it.

`--config.profile=STEP` writes a trace of three steps to the workdir, for xprof
or Perfetto, and a table of the scopes of the network by device time.
"""

import collections
import logging
import pathlib
import re
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from seer_jax.runtime import errors, files, host
from seer_jax.tasks import state as state_lib
from seer_jax.training import step as step_lib

_log = logging.getLogger(__name__)

# Of the workdir.
FOLDER, TABLE = "profile", "scopes.txt"
# Steps of a trace, and rows of its table.
_STEPS, _ROWS = 3, 10
# Parts of an operation's name that are not modules of the network.
_NO_SCOPE = re.compile(
  r"[(.\s]|^(cond|while|body|branch_\w+|checkpoint|remat|closed_call|Block)$"
)


class Program:
  """Compiles the step of a run, and traces three of its steps."""

  def __init__(
    self,
    step: step_lib.Step,
    workdir: pathlib.Path,
    profile: int,
    primary: bool,
  ):
    """Compiles nothing yet. `profile` is the first step to trace, or -1."""
    self._step, self._compiled = step, None
    self._folder = workdir / FOLDER
    self._from, self._primary = profile, primary
    self._tracing = False
    self._seconds = 0.0

  def __call__(
    self, number: int, state: state_lib.State, batch: Mapping[str, Any]
  ) -> tuple[state_lib.State, Any]:
    """Runs a step; returns before the device is done."""
    if self._compiled is None:
      self._compile(state, batch)
    if number == self._from:
      self._begin(state)
    if jax.default_backend() == "cpu":
      # Else XLA allocates this step's memory beside that of the last one.
      jax.block_until_ready(state.step)
    state, window = self._compiled(state, batch)
    if self._tracing and number + 1 == self._from + _STEPS:
      self._end(window)
    return state, window

  def _compile(self, state, batch):
    began = time.perf_counter()
    self._compiled = self._step.lower(state, batch).compile()
    self._seconds = time.perf_counter() - began
    host.give_back_memory()
    _log.info(
      "compiled the step, or read it from the cache, in %.1f s", self._seconds
    )

  def pop_seconds(self) -> dict[str, float]:
    """`compile_seconds`, once after the step was compiled."""
    seconds, self._seconds = self._seconds, 0.0
    return {"compile_seconds": seconds} if seconds else {}

  def _begin(self, state):
    jax.block_until_ready(state.step)
    self._tracing = True
    jax.profiler.start_trace(self._folder)

  def _end(self, window):
    jax.block_until_ready(window)
    jax.profiler.stop_trace()
    self._tracing = False
    if not self._primary:
      return
    text = "\n".join(table(self._folder, self._compiled.as_text(), _STEPS))
    _log.info("traced to %s\n%s", self._folder, text)
    try:
      files.write_text(self._folder / TABLE, text + "\n")
    except (errors.UserError, errors.Lost) as error:
      _log.warning("%s; the run continues without it", error)


def table(folder: pathlib.Path, hlo: str, steps: int) -> Iterator[str]:
  """The scopes with the most device time in the newest trace.

  Args:
    hlo: the text of the compiled program.
  """
  scopes = _scopes(hlo)
  spent: collections.Counter[str] = collections.Counter()
  for name, seconds in _operations(folder):
    if name in scopes:
      spent[scopes[name]] += seconds / steps
  whole = sum(spent.values())
  if not whole:
    yield "the trace has no operation of the step"
    return
  yield f"{'scope':50}{'ms a step':>10}{'share':>8}"
  for scope, seconds in spent.most_common(_ROWS):
    yield f"{scope:50}{1000 * seconds:10.2f}{seconds / whole:8.1%}"
  rest = whole - sum(seconds for _, seconds in spent.most_common(_ROWS))
  yield f"{f'{max(len(spent) - _ROWS, 0)} others':50}{1000 * rest:10.2f}" + (
    f"{rest / whole:8.1%}"
  )
  yield (
    f"{'all, added up over threads or streams':50}{1000 * whole:10.2f}{1:8.1%}"
  )


def _scopes(hlo):
  """The scope of each operation: "trunk/stage2_block0/b, gradient"."""
  return {
    match[1]: scope_of(match[2])
    for match in re.finditer(r'%?([\w.-]+) = .*?op_name="([^"]*)"', hlo)
  }


def scope_of(name: str) -> str:
  """The modules in an operation's name, without transformations."""
  *parts, _ = name.split("/")
  modules = [part for part in parts if part and not _NO_SCOPE.search(part)]
  words = "/".join(modules) or "outside the network"
  return words + ", gradient" * ("transpose(" in name)


def _operations(folder):
  """(name in the program, seconds) of operations on the first device."""
  newest = max(
    folder.glob("**/*.xplane.pb"), key=lambda path: path.stat().st_mtime
  )
  planes = list(jax.profiler.ProfileData.from_file(str(newest)).planes)
  devices = [plane for plane in planes if plane.name.startswith("/device:")]
  for plane in devices[:1] or planes:
    for line in plane.lines:
      for event in line.events:
        name = event.name
        if devices:
          name = dict(event.stats).get("hlo_op", name)
        yield str(name).split(" = ")[0].lstrip("%"), event.duration_ns / 1e9
