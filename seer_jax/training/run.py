"""A run from its config to its result; `loop.py` does the training."""

import contextlib
import errno
import logging
import pathlib
import re
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import ml_collections

import seer_jax
from seer_jax import tasks
from seer_jax.config import auto, keys, resolved, validate
from seer_jax.data import pipeline, sources, workers
from seer_jax.evals import suite
from seer_jax.models import encoder
from seer_jax.runtime import distributed, errors, host, preemption, run_lock
from seer_jax.runtime import mesh as mesh_lib
from seer_jax.tasks import base
from seer_jax.training import divergence, loop, metrics, optim, record, step
from seer_jax.weights import warm_start

_log = logging.getLogger(__name__)

# The log suggests released weights for runs on fewer images: a judgement.
_FEW = 10_000

# The task of a resolved config.
CreateTask = Callable[[ml_collections.ConfigDict], base.Task]


class Begun(NamedTuple):
  """The parts of a run."""

  source: sources.Source  # Training images.
  mesh: jax.sharding.Mesh
  images: suite.Sets  # Evaluation images.
  choices: Sequence[auto.Choice]  # For keys that the config left open.


def run(
  config: ml_collections.ConfigDict,
  workdir: pathlib.Path,
  create_task: CreateTask = tasks.create,
  say: Callable[[str], None] = print,
) -> None:
  """Trains to the end of the config, from the state of the workdir.

  Raises UserError for errors of the user, Lost if a resource of the run failed,
  and Stopped after a signal; the same command resumes.

  Args:
    config: may have open keys, which are chosen here.
    workdir: of this run alone; an unfinished run in it resumes.
    say: prints the lines that summarize a finished run.
  """
  with contextlib.ExitStack() as closing:
    preempted = closing.enter_context(preemption.Preemption())
    source, mesh, images, choices = begin(config, workdir)
    distributed.check_equal(_facts(config, source))
    with _writing(workdir):
      workdir.mkdir(parents=True, exist_ok=True)
      if distributed.is_primary():
        closing.enter_context(run_lock.Lock(workdir))
      # Again, with the lock: another run may have begun here.
      resolved.write(workdir, config, distributed.is_primary())
      if distributed.is_primary():
        record.add_start(workdir, source, images, choices)
    workers.remove_orphans()
    closing.enter_context(jax.set_mesh(mesh))
    task = create_task(config)
    loop.Loop(
      config, workdir, source, mesh, images, task, preempted, closing
    ).run()
  if distributed.is_primary():
    for line in closing_lines(workdir):
      say(line)


def compile_only(
  config: ml_collections.ConfigDict,
  workdir: pathlib.Path | None,
  create_task: CreateTask = tasks.create,
) -> Iterator[str]:
  """Compiles a run's programs into the cache, without training.

  Processes that share a cache then start without compiling. Choices of the
  workdir's run apply, if one is given. Yields a line for each program. Raises
  UserError for errors of the user.
  """
  source, mesh, _, _ = begin(config, workdir)
  distributed.check_equal(_facts(config, source))
  with jax.set_mesh(mesh):
    task = create_task(config)
    tx, _ = optim.make(config.optim, config.steps, config.batch_size, task)
    programs = step.build(task, tx, config, mesh)
    batch = pipeline.abstract_batch(config, mesh)
    for name, traced in (
      ("first state", lambda: programs.init.lower()),
      ("training step", lambda: programs.step.lower(programs.abstract, batch)),
    ):
      began = time.perf_counter()
      traced().compile()
      yield f"{name}: {time.perf_counter() - began:.1f} s"
  yield f"compiled programs are in {jax.config.jax_compilation_cache_dir}"


@contextlib.contextmanager
def _writing(workdir):
  """Turns errors of a workdir into ours."""
  try:
    yield
  except OSError as error:
    words = f"cannot write to --workdir={workdir}: {error.strerror}"
    # It was writable once: the disk failed.
    if error.errno == errno.EROFS and (workdir / "checkpoints").is_dir():
      raise errors.Lost(f"{words}; the same command resumes") from error
    raise errors.of_disk(error, words) from error


def begin(
  config: ml_collections.ConfigDict, workdir: pathlib.Path | None
) -> Begun:
  """Opens and resolves everything in a config. Writes nothing.

  Choices of the workdir's run apply, if one is given. Raises UserError if
  something is invalid.
  """
  validate.check_each(config)
  mesh = mesh_lib.make(config.mesh.data, config.mesh.fsdp)
  if workdir is not None:
    resolved.load(workdir, config)
  source = suite.open_source(config, "train")
  _log.info(
    "%s images, %s labels: %r",
    f"{len(source):,}",
    len(source.label_names) or "no",
    source,
  )
  warm_start.decide(config)
  source, images = suite.split(config, source)
  choices = resolve(config, source, mesh)
  return Begun(source, mesh, images, choices)


def replay(
  config: ml_collections.ConfigDict,
  workdir: pathlib.Path,
  create_task: CreateTask = tasks.create,
) -> Iterator[str]:
  """Repeats the step at which a run diverged; see `divergence.py`.

  Raises UserError if there is none, or it is of another config.
  """
  source, mesh, _, _ = begin(config, workdir)
  resolved.write(workdir, config, primary=False)
  with jax.set_mesh(mesh):
    yield from divergence.replay(
      config, workdir, source, mesh, create_task(config)
    )


def _facts(config, source):
  """What all processes of a run must have in common."""
  return {
    "the version": f"seer_jax {seer_jax.__version__}, jax {jax.__version__}",
    "the config": str(
      # Depends on the cores of a host.
      [each for each in keys.flatten(config) if each[0] != "data.workers"]
    ),
    "the data": source.fingerprint,
    "the number of devices": str(jax.local_device_count()),
  }


def resolve(
  config: ml_collections.ConfigDict,
  source: sources.Source,
  mesh: jax.sharding.Mesh,
) -> list[auto.Choice]:
  """Chooses open keys, logs the reasons, and checks the whole config."""
  here = auto.RunContext(
    images=len(source),
    side=auto.median_side(source, config.data.max_pixels),
    devices=mesh.size,
    platform=jax.default_backend(),
    precision=mesh_lib.precision_here(),
    cores=host.cores(),
    labels=len(source.label_names),
    memory=_memory(mesh),
  )
  choices = auto.complete(config, here)
  for key, value, reason in choices:
    _log.info("chose %s = %s (%s)", key, value, reason)
  validate.check_together(config)
  encoder.architecture(config.model)
  if config.task == "swav" and not config.weights and here.images < _FEW:
    _log.info(
      "%s images are few for pre-training. It needs all %s steps, and the"
      " features will suit only images like these; the log soon shows how long"
      " it takes. Weights trained on millions of images are quicker: seer-jax"
      " embed FOLDER --weights seer_32 --out FEATURES (docs/weights.md)",
      f"{here.images:,}",
      f"{config.steps:,}",
    )
  if config.classes not in (0, here.labels):
    raise errors.UserError(
      f"config.classes is {config.classes}, but the images have {here.labels}"
      f" labels{_some_of(source.label_names)}; remove it to follow the data"
    )
  return choices


def _memory(mesh):
  """Bytes of a device for a program; 0 if it is the host's."""
  device = mesh.local_devices[0]
  if device.platform == "cpu":
    return 0
  return (device.memory_stats() or {}).get("bytes_limit", 0)


def _some_of(names):
  shown = ", ".join(errors.shown(name) for name in names[:3])
  return f" ({shown}{', ...' if len(names) > 3 else ''})" if names else ""


def closing_lines(workdir: pathlib.Path) -> Iterator[str]:
  """Summarizes a finished run from its metrics file."""
  lines = metrics.read_lines(workdir / "metrics.jsonl")
  evaluations = [line for line in lines if "eval_seconds" in line]
  logged = [line for line in lines if "loss" in line]
  if not evaluations or not logged:
    return  # The file was removed.
  before, after = evaluations[0], evaluations[-1]
  for name in after:
    if re.fullmatch(r"accuracy|knn/[^/]+", name):
      yield (
        f"{name} top-1: untrained {before[name]:.3f}, trained {after[name]:.3f}"
      )
  if "features/rank" in after:
    yield (
      f"effective rank of features: untrained {before['features/rank']:.1f},"
      f" trained {after['features/rank']:.1f}"
    )
  name, words = "loss", "loss"
  if "loss_over_lnk" in logged[0]:
    name, words = "loss_over_lnk", "loss / ln K"
  yield f"{words}: first {logged[0][name]:.3f}, last {logged[-1][name]:.3f}"
