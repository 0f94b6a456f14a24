"""`run.json` of a workdir: facts of a run beside its config and metrics.

Choices are made at the first start. Each start adds its hardware.
"""

import dataclasses
import json
import logging
import pathlib
import time
from collections.abc import Sequence

import jax

import seer_jax
from seer_jax.config import auto
from seer_jax.data import sources
from seer_jax.evals import suite
from seer_jax.runtime import errors, files, host

_log = logging.getLogger(__name__)

NAME = "run.json"


@dataclasses.dataclass(frozen=True)
class Start:
  """One start of a run, the first or a resumption."""

  time: float  # Seconds since 1970.
  seer_jax: str
  jax: str
  device: str  # Kind of the devices, as JAX names it.
  devices: int  # Of all processes.
  processes: int
  cores: int  # Of the first process's host.


@dataclasses.dataclass(frozen=True)
class Record:
  """The contents of `run.json`; empty for older runs."""

  source: str = ""  # Description of the training images.
  images: int = 0  # Number of training images.
  labels: Sequence[str] = ()  # Names of their labels.
  bank: int = 0  # Labelled images of evaluations.
  query: int = 0  # Test images of evaluations.
  choices: Sequence[auto.Choice] = ()  # For keys that the config left open.
  starts: Sequence[Start] = ()  # The first, and resumptions.


def add_start(
  workdir: pathlib.Path,
  source: sources.Source,
  images: suite.Sets,
  choices: Sequence[auto.Choice],
) -> None:
  """Writes `run.json`, or adds this start to it; failing is a warning."""
  earlier = read(workdir)
  whole = Record(
    source=repr(source),
    images=len(source),
    labels=tuple(source.label_names),
    bank=len(images.bank.indices),
    query=len(images.query.indices),
    choices=tuple(earlier.choices or choices),
    starts=(*earlier.starts, _this_start()),
  )
  text = json.dumps(dataclasses.asdict(whole), indent=1) + "\n"
  try:
    files.write_text(workdir / NAME, text)
  except (errors.UserError, errors.Lost) as error:
    _log.warning("%s; the run continues without it", error)


def _this_start():
  return Start(
    time=time.time(),
    seer_jax=seer_jax.__version__,
    jax=jax.__version__,
    device=jax.devices()[0].device_kind,
    devices=jax.device_count(),
    processes=jax.process_count(),
    cores=host.cores(),
  )


def read(workdir: pathlib.Path) -> Record:
  """The record of a workdir; empty if it is missing or damaged."""
  try:
    found = json.loads((workdir / NAME).read_text())
    choices = tuple(auto.Choice(*each) for each in found.pop("choices"))
    starts = tuple(Start(**each) for each in found.pop("starts"))
    return Record(**found, choices=choices, starts=starts)
  except (OSError, ValueError, TypeError, KeyError, AttributeError):
    return Record()
