"""The command line: `python -m seer_jax COMMAND`, or `seer-jax COMMAND`.

Each command has a sentence, two examples, its arguments and a function that
runs it. That function imports what it needs, so that `--help` answers at once,
on machines without JAX too.
"""

import os
import sys
from collections.abc import Mapping, Sequence

import seer_jax
from seer_jax.commands import (
  collection,
  data,
  evaluation,
  labelling,
  planning,
  reporting,
  training,
  weights,
)
from seer_jax.commands.parser import Command, nearest
from seer_jax.runtime import errors

COMMANDS: Mapping[str, Command] = {
  "train": training.TRAIN,
  "eval": evaluation.EVAL,
  "labels": evaluation.LABELS,
  "report": reporting.REPORT,
  "embed": collection.EMBED,
  "search": collection.SEARCH,
  "duplicates": collection.DUPLICATES,
  "cluster": collection.CLUSTER,
  "label": labelling.LABEL,
  "view": labelling.VIEW,
  "pack": data.PACK,
  "inspect": data.INSPECT,
  "curate": data.CURATE,
  "prepare": data.PREPARE,
  "convert": weights.CONVERT,
  "plan": planning.PLAN,
  "replay": training.REPLAY,
  "doctor": planning.DOCTOR,
}


def cli() -> None:
  """Runs the command line of this process, and exits."""
  if "" not in sys.path:
    sys.path.insert(0, "")  # As `python -m` does; configs import each other.
  try:
    status = main(sys.argv[1:])
    sys.stdout.flush()
  except BrokenPipeError:
    # The reader of the output, such as `head`, has left. What Python flushes at
    # exit must go nowhere.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    status = errors.UNREAD
  sys.exit(status)


def main(argv: Sequence[str]) -> int:
  """Runs a command.

  Returns:
    The exit status: 0 done, 2 a mistake of the user, 70 something that the
    command needs is gone, 75 stopped by a signal, 130 interrupted before it
    could stop. One line on standard error gives the reason.
  """
  try:
    return _run(*argv)
  except (errors.UserError, errors.Lost) as error:
    print(f"error: {error}", file=sys.stderr)
    return error.STATUS
  except errors.Stopped as stop:
    print(stop, file=sys.stderr)
    return stop.STATUS
  except KeyboardInterrupt:
    print("interrupted", file=sys.stderr)
    return errors.INTERRUPTED


def _run(name="", *arguments):
  if name in ("-h", "--help", "help"):
    print(overview())
    return 0
  if name == "--version":
    print(f"seer_jax {seer_jax.__version__}")
    return 0
  if name not in COMMANDS:
    known = f"Commands: {', '.join(COMMANDS)}; see --help"
    if not name:
      raise errors.UserError(f"no command is given. {known}")
    hint = nearest(name, COMMANDS).rstrip(";") or "."
    raise errors.UserError(f"there is no command {name!r}{hint} {known}")
  return COMMANDS[name](name, arguments) or 0


def overview() -> str:
  """What `seer-jax --help` prints."""
  lines = [f"  {name:10} {each.sentence}" for name, each in COMMANDS.items()]
  return "\n".join(
    [
      "usage: seer-jax COMMAND ...",
      "",
      "Self-supervised vision on uncurated images, in JAX.",
      "",
      *lines,
      "",
      "seer-jax COMMAND --help shows its arguments, with examples.",
      "python -m seer_jax COMMAND does the same.",
      "",
      "Exit status: 0 done; 2 a mistake, which one line explains; 70 a worker,",
      "disk or process is gone; 75 stopped by a signal, and all is saved; 130",
      "interrupted at once. After 70, 75 and 130 the same command resumes.",
    ]
  )
