"""The command as a user runs it, in processes of their own."""

import atexit
import contextlib
import functools
import itertools
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

import fork_server
import jax
import numpy as np
import quick_xla

from seer_jax.weights import checkpoint

ROOT = pathlib.Path(__file__).parents[1]
STEPS = 40
# The digits run with the smallest network that has every part: one block of two
# groups and squeeze-and-excite, a hidden layer, a queue. A step takes
# milliseconds.
TINY = (
  "--config=configs/digits.py",
  f"--config.steps={STEPS}",
  "--config.batch_size=16",
  "--config.model.regnet=(1,16,16.0,2.0,8)",
  "--config.model.strides=(2,)",
  "--config.model.head.hidden=(16,)",
  "--config.swav.freeze_steps=4",
  "--config.swav.queue_length=32",
  "--config.swav.queue_start=3",
  "--config.checkpoint.every=10",
  "--config.checkpoint.keep=9",
  "--config.eval.every=20",
  "--config.eval.max_images=100",
  "--config.log.every=5",
  "--config.report.images=0",
)
TINY_STEPS = [0, 5, 10, 15, 20, 20, 25, 30, 35, 40, 40]  # In its metrics.
CLOCKED = (
  "images_per_second",
  "data_wait",
  "eval_seconds",
  "compile_seconds",
  "seconds",
)
# A machine that is busy is slow; one that hangs has to be noticed at all.
# Seconds.
HANGS = 300
_numbers = itertools.count()


class Forked:
  """A run of the fork server: as much of `subprocess.Popen` as tests use."""

  def __init__(self, connection, kept):
    """`kept` are files of its output and errors, unless the test has one."""
    self._connection, self._kept = connection, kept
    self.pid = self._receive(HANGS)
    self.returncode = None

  def _receive(self, timeout):
    self._connection.settimeout(timeout)
    data = self._connection.recv(fork_server.NUMBER.size, socket.MSG_WAITALL)
    return fork_server.NUMBER.unpack(data)[0]

  def wait(self, timeout=HANGS):
    if self.returncode is None:
      try:
        self.returncode = self._receive(timeout)
      except (TimeoutError, BlockingIOError) as error:
        raise subprocess.TimeoutExpired(f"run {self.pid}", timeout) from error
      self._connection.close()
    return self.returncode

  def poll(self):
    try:
      return self.wait(0)
    except subprocess.TimeoutExpired:
      return None

  def communicate(self, timeout=HANGS):
    self.wait(timeout)
    return tuple(path.read_text() for path in self._kept)

  def said(self):
    """What it has written to standard error so far."""
    return self._kept[1].read_text()

  def send_signal(self, number):
    if self.poll() is None:
      os.kill(self.pid, number)

  def kill(self):
    self.send_signal(signal.SIGKILL)

  def terminate(self):
    self.send_signal(signal.SIGTERM)


@functools.cache
def _fork_server():
  """Starts this test process' server; the folder of its socket `server`."""
  folder = pathlib.Path(tempfile.mkdtemp(prefix="runs"))
  with socket.socket(socket.AF_UNIX) as listener:
    listener.bind(str(folder / "server"))
    listener.listen()
    server = subprocess.Popen(
      [sys.executable, fork_server.__file__, str(listener.fileno())],
      cwd=ROOT,
      env=_environment(),
      pass_fds=[listener.fileno()],
    )

  def end():
    server.kill()
    server.wait()
    shutil.rmtree(folder)

  atexit.register(end)
  return folder


def _environment(devices=1):
  count = f"--xla_force_host_platform_device_count={devices}"
  return os.environ | {
    "JAX_PLATFORMS": "cpu",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "XLA_FLAGS": f"{quick_xla.FLAGS} {count}",
  }


def start(*args, devices=1, output=None, code="", fresh=False):
  """Starts `python -m seer_jax.main` with `args`, or `code` with them.

  Args:
    args: of the command line.
    devices: how many JAX sees.
    output: a file for both streams; kept for `finish` when None.
    code: Python, run before the command to change what it does.
    fresh: starts Python from nothing, as users do, 3 s slower; where there is
      no fork server, every run is.
  """
  if fresh or sys.platform != "linux":
    program = ("-m", "seer_jax.main")
    if code:
      program = ("-c", f"{code}\nfrom seer_jax import main\nmain.cli()")
    return subprocess.Popen(
      [sys.executable, *program, *args],
      cwd=ROOT,
      env=_environment(devices),
      stdout=output or subprocess.PIPE,
      stderr=output or subprocess.PIPE,
      text=True,
    )
  folder = _fork_server()
  request = {
    "args": ["seer_jax.main", *args],
    "environment": _environment(devices),
    "folder": str(ROOT),
    "code": code,
  }
  connection = socket.socket(socket.AF_UNIX)
  connection.connect(str(folder / "server"))
  number = next(_numbers)
  kept = [folder / f"{number}.{name}" for name in ("out", "err")]
  with contextlib.ExitStack() as opened:
    streams = (
      [output] * 2
      if output
      else [opened.enter_context(path.open("w")) for path in kept]
    )
    files = [stream.fileno() for stream in streams]
    socket.send_fds(connection, [json.dumps(request).encode()], files)
    return Forked(connection, [] if output else kept)


def finish(process):
  out, err = process.communicate(timeout=HANGS)
  return process.returncode, out, err


def run(*args, **how):
  return finish(start(*args, **how))


class Gate:
  """Holds a run up before a step: with its `code` it waits to be let on.

  What is to happen to a run at some step happens there, however fast the run is
  and however slow the test.
  """

  _CODE = """
def gate(folder, step):
  import pathlib, time
  from seer_jax.training import loop
  advance, folder = loop.Loop._take_step, pathlib.Path(folder)
  def gated(self, batches):
    if self._step == step:
      (folder / "reached").touch()
      while not (folder / "open").exists():
        time.sleep(0.01)
    advance(self, batches)
  loop.Loop._take_step = gated
gate({folder!r}, {step})
"""

  def __init__(self, folder, step):
    self._folder = pathlib.Path(folder)
    self._folder.mkdir()
    self.code = self._CODE.format(folder=str(folder), step=step)

  def wait(self, process):
    """Until the run is there."""
    wait_until((self._folder / "reached").exists, process)

  def open(self):
    (self._folder / "open").touch()


def wait_until(condition, process=None):
  """Returns once it holds; fails where the process ended, or nothing moves."""
  deadline = time.monotonic() + HANGS
  while not condition():
    ended = process is not None and process.poll() is not None
    if not condition() and (ended or time.monotonic() > deadline):
      words = process.communicate() if ended else "nothing happened"
      raise AssertionError(words)
    time.sleep(0.01)


def segments_of(processes):
  """Shared memory of their data workers, which is named after them."""
  memory = pathlib.Path("/dev/shm")
  return [
    segment
    for each in processes
    for segment in memory.glob(f"seer_jax-*-{each.pid}-*")
  ]


def lines_of(workdir):
  path = workdir / "metrics.jsonl"
  return path.read_text().splitlines() if path.exists() else []


def state_of(workdir):
  return checkpoint.Checkpoints(workdir / "checkpoints").read()


def metrics_of(workdir):
  lines = [json.loads(line) for line in lines_of(workdir)]
  return [
    {key: value for key, value in line.items() if key not in CLOCKED}
    for line in lines
  ]


def assert_same_run(one, other):
  jax.tree.map(np.testing.assert_array_equal, state_of(one), state_of(other))
  assert metrics_of(one) == metrics_of(other)


def free_port():
  with contextlib.closing(socket.socket()) as some:
    some.bind(("localhost", 0))
    return some.getsockname()[1]
