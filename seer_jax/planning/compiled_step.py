"""The training step of a config, compiled for devices that need not exist."""

import contextlib
import dataclasses
import logging
import math
import pathlib
import re
import tempfile
import time
from typing import Any

import jax
import ml_collections
from jax.experimental.compilation_cache import compilation_cache

from seer_jax import tasks
from seer_jax.data import pipeline
from seer_jax.models import cpu_kernels
from seer_jax.runtime import errors
from seer_jax.training import optim
from seer_jax.training import step as step_lib

_log = logging.getLogger(__name__)

TEMPORARIES = "activations and other temporaries"


@dataclasses.dataclass(frozen=True)
class CompiledStep:
  """The step of a config: traced, and compiled if the compiler accepts it."""

  abstract: Any  # The state as stored: shapes, dtypes and shardings.
  unpadded: Any  # The state as the layers see it.
  jaxpr: Any
  hlo: str | None  # None if the compiler refused it.
  memory: dict[str, int]  # Bytes of one device, by what they are for.
  seconds: float  # Of compiling.

  @property
  def total(self) -> int:
    """Bytes of one device."""
    return sum(self.memory.values())


def compile_step(
  config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh
) -> CompiledStep:
  """Compiles the step of a resolved config.

  Raises UserError if the compiler fails for another reason than memory.
  """
  programs, inputs, traced = _traced(config, mesh)
  with jax.set_mesh(mesh):
    lowered = traced.lower()
    _log.info("compiling for %d devices; large trunks take minutes", mesh.size)
    began = time.perf_counter()
    hlo = needs = used = None
    try:
      hlo, needs = _compile(lowered)
    except jax.errors.JaxRuntimeError as error:
      used = _used(str(error))
  return CompiledStep(
    abstract=programs.abstract,
    unpadded=programs.unpadded,
    jaxpr=traced.jaxpr,
    hlo=hlo,
    memory=_memory(programs.abstract, inputs, needs, used),
    seconds=time.perf_counter() - began,
  )


def jaxpr(config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh) -> Any:
  """The traced step of a resolved config."""
  return _traced(config, mesh)[2].jaxpr


def _traced(config, mesh):
  """(programs, inputs, traced step)."""
  task = tasks.create(config)
  tx, _ = optim.make(config.optim, config.steps, config.batch_size, task)
  with jax.set_mesh(mesh), cpu_kernels.portable():
    programs = step_lib.build(task, tx, config, mesh)
    inputs = pipeline.abstract_batch(config, mesh)
    return programs, inputs, programs.step.trace(programs.abstract, inputs)


def _compile(lowered):
  """The text and the memory analysis of a program.

  The text is the compiler's own dump: `as_text` fails for large programs for
  TPUs (jax 0.10: asynchronous operations of several operands).
  """
  with _uncached(), tempfile.TemporaryDirectory() as folder:
    compiled = lowered.compile(
      {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
    )
    texts = pathlib.Path(folder).glob("*after_optimizations.txt")
    # There may be small programs of constants too.
    largest = max(texts, key=lambda path: path.stat().st_size, default=None)
    text = compiled.as_text() if largest is None else largest.read_text()
  return text, compiled.memory_analysis()


@contextlib.contextmanager
def _uncached():
  """JAX 0.10 caches programs for absent devices, but cannot read them."""
  before = jax.config.jax_enable_compilation_cache
  jax.config.update("jax_enable_compilation_cache", False)
  compilation_cache.reset_cache()  # It reads the flag only once.
  try:
    yield
  finally:
    jax.config.update("jax_enable_compilation_cache", before)
    compilation_cache.reset_cache()


def _used(message):
  """Bytes of a program, from the message of a compiler that refused it."""
  # libtpu says "temporaries", but counts arguments too.
  match = re.search(r"(?:temporaries \(|Used )([\d.]+)([KMG])", message)
  if not match:
    raise errors.UserError(
      f"the compiler failed: {' '.join(message.split())[:500]}"
    )
  return int(float(match[1]) * 2 ** {"K": 10, "M": 20, "G": 30}[match[2]])


def _memory(state, inputs, needs, used):
  """Bytes of one device, by what they are for."""
  parts = {
    "parameters": _held(state.params),
    "optimizer": _held(state.opt_state),
    "rest of the state": _held(state.replace(params=None, opt_state=None)),
    "batch": _held(inputs),
  }
  named = sum(parts.values())
  if needs is None:
    return parts | {TEMPORARIES: used - named}
  # Results that reuse donated arguments are counted with these.
  fresh = needs.output_size_in_bytes - needs.alias_size_in_bytes
  return parts | {
    "padding of these by the compiler": needs.argument_size_in_bytes - named,
    TEMPORARIES: needs.temp_size_in_bytes + fresh,
  }


def _held(tree):
  """Bytes that one device holds of some arrays."""
  return sum(
    math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(tree)
  )
