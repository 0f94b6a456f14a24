"""`run.json` of a workdir: what a run is, beside its config and its metrics.

Choices are made once, on the first start; a run that resumes finds them in its
config. Each start adds the hardware that it found.
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
  devices: int  # How many, over all processes.
  processes: int  # How many.
  cores: int  # Of the host of the first process.


@dataclasses.dataclass(frozen=True)
class Record:
  """What `run.json` holds; nothing of a run from before there was one."""

  source: str = ""  # The training images, in words.
  images: int = 0  # How many there are.
  labels: Sequence[str] = ()  # Names of their labels.
  bank: int = 0  # Images that evaluations learn from.
  query: int = 0  # Images that evaluations test on.
  choices: Sequence[auto.Choice] = ()  # Of keys that the config left open.
  starts: Sequence[Start] = ()  # The first, and resumptions.


def add_start(
  workdir: pathlib.Path,
  source: sources.Source,
  images: suite.Sets,
  choices: Sequence[auto.Choice],
) -> None:
  """Writes `run.json`, or adds this start to it.

  A disk that refuses it costs a warning: training does not depend on it.
  """
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
    _log.warning("%s; the run goes on without it", error)


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
  """The record of a workdir; an empty one where there is none, or no JSON."""
  try:
    found = json.loads((workdir / NAME).read_text())
    choices = tuple(auto.Choice(*each) for each in found.pop("choices"))
    starts = tuple(Start(**each) for each in found.pop("starts"))
    return Record(**found, choices=choices, starts=starts)
  except (OSError, ValueError, TypeError, KeyError, AttributeError):
    return Record()
