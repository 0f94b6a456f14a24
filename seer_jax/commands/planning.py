"""`plan` and `doctor`: hardware that is absent, and what is wrong here."""

import argparse

from seer_jax.commands import logs
from seer_jax.commands.parser import Command, option
from seer_jax.runtime import errors


def _add_plan(parser):
  option(
    parser,
    "--topology",
    "CHIP:SHAPE",
    "v100:64x8 (hosts x GPUs) or v5p:8x8x8 (chips of a slice)",
  )


def _plan(options: argparse.Namespace) -> None:
  from seer_jax.config import from_flags

  config = from_flags.read(options.config, options.overrides)
  if options.topology is None:
    raise errors.UserError(
      "no --topology is given; an example is v100:64x8 (hosts x GPUs) or"
      " v5p:8x8x8 (chips of a slice)"
    )
  from seer_jax.planning import plan, plan_report

  logs.show()
  for line in plan_report.lines(plan.plan(config, options.topology)):
    print(line)


def _doctor(options: argparse.Namespace) -> int:
  from seer_jax.planning import doctor, installation

  lines, status = doctor.report(installation.gather())
  print("\n".join(lines))
  return status


PLAN = Command(
  "Compiles the step for absent hardware, and says whether it fits.",
  (
    "seer-jax plan --config configs/seer_rg256.py:v100 --topology v100:64x8",
    "seer-jax plan --config configs/folder.py --topology v5p:4x4x4"
    " --config.batch_size=4096",
  ),
  _add_plan,
  _plan,
  has_config=True,
)
DOCTOR = Command(
  "Describes this machine and its installation, and finds faults.",
  ("seer-jax doctor", "JAX_PLATFORMS=cpu seer-jax doctor"),
  lambda parser: None,
  _doctor,
)
