"""Starts runs in processes that have imported everything already.

    python fork_server.py LISTENER

Importing seer_jax and what a run uses takes 3 s of a core, forking 10 ms. This
process imports, touches no JAX backend, and then forks a process for every
request that comes over the Unix socket whose file descriptor is LISTENER:

    client -> server  one JSON object: args, environment, folder, code;
                      beside it two file descriptors, for output and errors
    server -> client  the run's process ID, and when it has ended its exit
                      status as `subprocess` gives it, 4 bytes each

`runs.start` is the client. Each run has a parent of its own that waits for it,
so that the server never waits for anyone.
"""

import gc
import importlib
import json
import os
import signal
import socket
import struct
import sys
import warnings

NUMBER = struct.Struct("!i")
REQUEST_BYTES = 1 << 20
# What a run imports, at once or later.
PRELOADED = (
  "seer_jax.main",
  "ml_collections.config_flags",
  "seer_jax.planning.plan_report",
  "seer_jax.planning.plan",
  "seer_jax.training.run",
  "orbax.checkpoint.experimental.v1",
  "sklearn.datasets",
  "tensorboardX",
)


def serve(listener: socket.socket) -> dict:
  """Answers requests for ever; returns the request in each forked run."""
  # The parents of runs end unnoticed.
  signal.signal(signal.SIGCHLD, signal.SIG_IGN)
  tests = os.getppid()
  listener.settimeout(10)
  while True:
    try:
      connection, _ = listener.accept()
    except TimeoutError:
      if os.getppid() != tests:
        sys.exit("the tests are gone")
      continue
    if os.fork():
      connection.close()
      continue
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    listener.close()
    with connection:
      data, files, *_ = socket.recv_fds(connection, REQUEST_BYTES, 2)
      run = os.fork()
      if run:
        for file in files:
          os.close(file)
        connection.sendall(NUMBER.pack(run))
        _, status = os.waitpid(run, 0)
        code = os.waitstatus_to_exitcode(status)
        connection.sendall(NUMBER.pack(code))
        os._exit(0)
    for number, file in enumerate(files, 1):
      os.dup2(file, number)
      os.close(file)
    return json.loads(data)


def run(request: dict) -> None:
  """What the request asks for, in a process that looks like a fresh one."""
  os.chdir(request["folder"])
  os.environ.clear()
  os.environ.update(request["environment"])
  sys.argv = request["args"]
  exec(compile(request["code"], "<string>", "exec"), {})

  from seer_jax import main

  main.cli()


if __name__ == "__main__":
  sys.path.insert(0, os.getcwd())
  for name in PRELOADED:
    importlib.import_module(name)
  gc.freeze()  # What is here stays: no run has to look through it.
  with warnings.catch_warnings():
    # JAX warns of forks, for threads of its backends; there is none here.
    warnings.filterwarnings("ignore", message=r"os\.fork\(\) was called")
    request = serve(socket.socket(fileno=int(sys.argv[1])))
  run(request)
