"""python -m seer_jax.main --config configs/digits.py --workdir runs/digits

The command `train` (`python -m seer_jax train`): pre-trains on images and
reports whether the network learned. The same command resumes a run where it
stopped. Any key of the config can be set on the command line, for example
--config.data.train.path=~/photos.

--mode=plan and --mode=replay are the commands of these names.

Several processes find each other under SLURM, Open MPI, Kubernetes and on Cloud
TPUs (launch/README.md), or by --coordinator=HOST:PORT --processes=N
--process=I.

Exit status: 0 done, 2 a mistake (one line says how to correct it), 70 something
that the run needs is gone or stuck, 75 stopped by a signal with everything
saved, 130 interrupted at once. After 70, 75 and 130 the same command resumes.
"""

import argparse
import sys
from collections.abc import Sequence

from seer_jax import commands

_MODES = ("train", "plan", "replay")


def command_line(arguments: Sequence[str]) -> list[str]:
  """The arguments as those of a command: `--mode` becomes its name."""
  parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
  parser.add_argument("--mode", default="train")
  options, rest = parser.parse_known_args(arguments)
  return [options.mode, *rest]


def cli() -> None:
  """Runs `train`, or what `--mode` says, and exits."""
  sys.argv[1:] = command_line(sys.argv[1:])
  commands.cli()


if __name__ == "__main__":
  cli()
