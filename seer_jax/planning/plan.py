"""Will it fit, and how long will it take at least? Asked before it is run.

Compiles the very step of `training/step.py` for hardware that is not there, and
reads from it what a device must hold and what devices must tell each other.
Data need not be there either. Times are lower bounds, from published peak
rates: no kernel reaches these, and waiting for images, launching and latency
come on top.
"""

import contextlib
import copy
import dataclasses
import logging
import math
import pathlib
import re
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import jax
import ml_collections
from jax.experimental.compilation_cache import compilation_cache

from seer_jax import tasks
from seer_jax.config import auto, batch, remat, validate
from seer_jax.data import pipeline, sources
from seer_jax.models import cpu_kernels, encoder
from seer_jax.planning import (
  accelerators,
  advice,
  chips,
  collectives,
  operations,
  plan_report,
)
from seer_jax.runtime import errors, host
from seer_jax.runtime import mesh as mesh_lib
from seer_jax.training import optim
from seer_jax.training import step as step_lib

_log = logging.getLogger(__name__)

# Without data to look at: SEER's number of images, and their usual size; to
# classify, ImageNet's labels.
_IMAGES, _SIDE, _LABELS = 1_000_000_000, 500, 1000
# Of a GPU's memory, JAX takes this share unless told otherwise; the most that
# it can be told to take, leaving room for CUDA, NCCL and cuDNN, is assumed.
_BY_DEFAULT, _AT_MOST = 0.75, 0.92
# Programs that are compiled for the least to compute again.
_TRIES = 2
# How often its bytes a collective sends them, in a large ring.
_ROUNDS = {"all-reduce": 2}


def plan(
  config: ml_collections.ConfigDict, topology_name: str
) -> plan_report.Report:
  """Compiles a config's step for a topology. Fills the config's open keys.

  Raises UserError if the topology or the config cannot be, or a compiler is
  missing.
  """
  topology = accelerators.parse(topology_name)
  validate.check_each(config)
  # Nothing runs here; accelerators of this machine are left alone.
  jax.config.update("jax_platforms", "cpu")
  devices = accelerators.devices(topology)

  def mesh_of(config):
    return mesh_lib.make(config.mesh.data, config.mesh.fsdp, devices)

  mesh, remat_open = mesh_of(config), config.model.remat is None
  notes = [topology.note] if topology.note else []
  notes += _complete(config, mesh, _room(topology))
  program = _program(config, mesh)
  if remat_open:
    program, note = _least_remat(config, mesh, _room(topology), program)
    notes.append(note)
  where = [d.process_index for d in mesh.devices.flat]
  hosts = len(set(where))
  if topology.is_tpu:
    # The links of a slice know no hosts; slices know each other as hosts do.
    where = [getattr(d, "slice_index", 0) or 0 for d in mesh.devices.flat]
  sent = None
  if program.hlo is not None:
    sent = collectives.collectives(program.hlo, where)
    notes += _odd(sent, program.abstract)
  biggest = max(sent or [], key=lambda each: each.bytes, default=None)

  chip = topology.chip
  link, network = _seconds(sent or [], chip)
  fits, verdict = _verdict(
    config, topology, program, lambda c: _needs(_program(c, mesh_of(c)))
  )
  executed = operations.flops(program.jaxpr)
  return plan_report.Report(
    topology=topology.name,
    notes=tuple(notes),
    devices=mesh.size,
    hosts=hosts,
    trunk=config.model.trunk or str(config.model.regnet),
    settings={
      "batch_size": config.batch_size,
      "steps": config.steps,
      "crops": "+".join(
        f"{count}x{size}"
        for count, size in zip(
          config.crops.counts, config.crops.sizes, strict=True
        )
      ),
      "precision": config.precision,
      "accumulate": config.accumulate,
      "model.remat": config.model.remat,
      "model.scan": config.model.scan,
      "mesh": f"{mesh.shape['data']}x{mesh.shape['fsdp']}",
    },
    parameters=sum(x.size for x in jax.tree.leaves(program.unpadded.params)),
    memory=program.memory,
    capacity=chip.memory,
    verdict=verdict,
    fits=fits,
    model_flops=_model_flops(config, mesh, executed),
    executed_flops=executed,
    messages=None if sent is None else tuple(_by_kind(sent)),
    biggest=biggest,
    compute_seconds=executed / mesh.size / chip.peak[config.precision],
    memory_seconds=operations.traffic(program.jaxpr, mesh.size, chip.cache)
    / chip.bandwidth,
    link_seconds=link,
    network_seconds=network,
    compile_seconds=program.seconds,
  )


def _complete(config, mesh, memory) -> list[str]:
  """Fills open keys for the mesh; returns what was assumed."""
  device, assumed = mesh.devices.flat[0], []
  images, side, labels = _IMAGES, _SIDE, _LABELS
  where = config.data.train
  try:
    source = sources.open_source(where)
    images = len(source)
    labels = len(source.label_names) or labels
    side = auto.median_side(source, config.data.max_pixels)
  except errors.UserError as error:
    reason = f" ({error})" if where.path else ""
    assumed.append(
      f"no data to look at{reason}: assuming {images:,} images of {side} px"
    )
  here = auto.RunContext(
    images=images,
    side=side,
    devices=mesh.size,
    platform=device.platform,
    precision=mesh_lib.native_precision(
      device.platform, str(getattr(device, "compute_capability", ""))
    ),
    cores=host.cores(),
    labels=labels,
    memory=memory,
  )
  for key, value, reason in auto.complete(config, here):
    _log.info("chose %s = %s (%s)", key, value, reason)
  validate.check_together(config)
  encoder.architecture(config.model)
  return assumed


@dataclasses.dataclass(frozen=True)
class _Program:
  """The step of a config: traced, and compiled where the compiler could."""

  abstract: Any
  natural: Any
  jaxpr: Any
  hlo: str | None
  memory: dict[str, int]
  seconds: float


def _program(config, mesh):
  with jax.set_mesh(mesh):
    programs = _build(config, mesh)
    inputs = pipeline.abstract_batch(config, mesh)
    with cpu_kernels.portable():
      traced = programs.step.trace(programs.abstract, inputs)
    lowered = traced.lower()
    _log.info("compiling for %d devices; large trunks take minutes", mesh.size)
    began = time.perf_counter()
    hlo = needs = used = None
    try:
      hlo, needs = _compile(lowered)
    except jax.errors.JaxRuntimeError as error:
      used = _used(str(error))
  return _Program(
    abstract=programs.abstract,
    natural=programs.unpadded,
    jaxpr=traced.jaxpr,
    hlo=hlo,
    memory=_memory(programs.abstract, inputs, needs, used),
    seconds=time.perf_counter() - began,
  )


def _least_remat(config, mesh, room, program):
  """The program that computes least again and fits, and why; sets the key.

  The estimate that the first one was chosen by is corrected by what it needed.
  """

  def scale(program):
    estimate = remat.estimate(config, mesh.size, config.model.remat)
    return sum(program.memory.values()) / estimate

  def fits(program):
    return program.hlo is not None and sum(program.memory.values()) <= room

  for _ in range(_TRIES):
    before = config.model.remat
    rung, _ = remat.least(config, mesh.size, room, scale(program))
    if rung == before:
      break
    config.model.remat = rung
    trial = _program(config, mesh)
    if fits(program) and not fits(trial):
      config.model.remat = before
      break
    program = trial
  if not fits(program):
    return program, f"model.remat {config.model.remat} does not fit"
  words = f"model.remat {config.model.remat} is the least found that fits"
  dearer = remat.dearer(config)
  if dearer:
    more = scale(program) * remat.estimate(config, mesh.size, dearer)
    words += f"; {dearer} would take about {more / chips.GIB:.1f} GiB"
  return program, words


def _compile(lowered):
  """A program's text and what it needs of memory.

  The text is what the compiler itself writes down: that of large programs for
  TPUs does not survive the way through `as_text` (jax 0.10: asynchronous
  operations of several operands).
  """
  with _uncached(), tempfile.TemporaryDirectory() as folder:
    compiled = lowered.compile(
      {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
    )
    texts = pathlib.Path(folder).glob("*after_optimizations.txt")
    # Beside the program there may be small ones, of constants.
    largest = max(texts, key=lambda path: path.stat().st_size, default=None)
    text = compiled.as_text() if largest is None else largest.read_text()
  return text, compiled.memory_analysis()


@contextlib.contextmanager
def _uncached():
  """JAX 0.10 writes programs for absent devices, but cannot read them back."""
  before = jax.config.jax_enable_compilation_cache
  jax.config.update("jax_enable_compilation_cache", False)
  compilation_cache.reset_cache()  # It asks whether it is enabled only once.
  try:
    yield
  finally:
    jax.config.update("jax_enable_compilation_cache", before)
    compilation_cache.reset_cache()


def _build(config, mesh):
  task = tasks.create(config)
  tx, _ = optim.make(config.optim, config.steps, config.batch_size, task)
  return step_lib.build(task, tx, config, mesh)


def _model_flops(config, mesh, executed):
  """Operations of the same step, were nothing computed twice."""
  once = copy.deepcopy(config)
  once.model.remat, once.accumulate = "none", 1
  if once == config:
    return executed
  with jax.set_mesh(mesh), cpu_kernels.portable():
    programs = _build(once, mesh)
    inputs = pipeline.abstract_batch(once, mesh)
    return operations.flops(
      programs.step.trace(programs.abstract, inputs).jaxpr
    )


def _used(message):
  """Bytes that a program would take, of a compiler that refused it."""
  # libtpu says "temporaries", but counts arguments too.
  match = re.search(r"(?:temporaries \(|Used )([\d.]+)([KMG])", message)
  if not match:
    raise errors.UserError(
      f"the compiler gave up: {' '.join(message.split())[:500]}"
    )
  return int(float(match[1]) * 2 ** {"K": 10, "M": 20, "G": 30}[match[2]])


def _memory(state, inputs, needs, used):
  """Bytes of one device, by what they are for."""
  parts = {
    "parameters": _held(state.params),
    "optimiser": _held(state.opt_state),
    "rest of the state": _held(state.replace(params=None, opt_state=None)),
    "batch": _held(inputs),
  }
  named = sum(parts.values())
  if needs is None:
    return parts | {"activations and other temporaries": used - named}
  # Donated arguments and the results that take their place are the same bytes.
  fresh = needs.output_size_in_bytes - needs.alias_size_in_bytes
  return parts | {
    "padding of these by the compiler": needs.argument_size_in_bytes - named,
    "activations and other temporaries": needs.temp_size_in_bytes + fresh,
  }


def _held(tree):
  """Bytes that one device holds of some arrays."""
  return sum(
    math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(tree)
  )


def _odd(sent, state) -> Iterator[str]:
  """Activations that are gathered, which no part of the step should do."""
  parameter = max(x.size for x in jax.tree.leaves(state.params)) * 4
  # Sums of gradients are exempt: some compilers add small ones up in one array.
  odd = [s for s in sent if s.kind != "all-reduce" and s.largest > parameter]
  if odd:
    worst = max(odd, key=lambda each: each.largest)
    yield (
      f"{len(odd)} collectives are larger than any parameter: are activations"
      f" gathered? The largest: {worst.kind} of"
      f" {worst.largest / chips.GIB:.2f} GiB ({worst.where})"
    )


def _by_kind(sent) -> Iterator[plan_report.Messages]:
  for kind in collectives.KINDS:
    ours = [each for each in sent if each.kind == kind and each.group > 1]
    if ours:
      yield plan_report.Messages(
        kind,
        sum(each.times for each in ours),
        sum(each.times * each.bytes for each in ours),
        sum(each.times * each.bytes for each in ours if each.hosts > 1),
      )


def _seconds(sent, chip):
  """Of a step's collectives, on links within hosts and between hosts.

  Rings in two levels, which is least: of a group with m devices on each of h
  hosts, a device sends (m - 1) / m of the array over its links, and (h - 1) / h
  of an m-th of it to other hosts; an all-reduce does both twice. Collectives
  that go over different wires may overlap, so the two are not added.
  """
  link = network = 0.0
  for each in sent:
    moved = each.times * each.bytes * _ROUNDS.get(each.kind, 1)
    hosts, here = each.hosts, max(1, each.group // each.hosts)
    if each.kind == "collective-permute":
      link += moved * (hosts == 1) / chip.link
      network += moved * (hosts > 1) / chip.network
      continue
    link += moved * (here - 1) / here / chip.link
    network += moved * (hosts - 1) / hosts / here / chip.network
  return link, network


def _room(topology):
  """Bytes of a device that a program can have."""
  return int(topology.chip.memory * (1 if topology.is_tpu else _AT_MOST))


def _verdict(config, topology, program, measure):
  """Whether it fits, and a sentence that says so or what would."""
  if topology.is_tpu and program.hlo is not None:
    return True, "fits"  # Its compiler refuses what does not.
  total, room = sum(program.memory.values()), _room(topology)
  if not topology.is_tpu and total <= room:
    return True, f"fits{_told(topology, total)}"
  chip = topology.chip
  found = advice.find(
    config,
    _needs(program),
    room=room,
    devices=program.abstract.step.sharding.mesh.size,
    per_host=chip.per_host,
    precision=chip.precision,
    measure=measure,
  )
  if not found:
    return False, (
      "does not fit, nor would a smaller part of the batch: a smaller"
      " --config.model.trunk, or more devices"
    )
  tries = "; or ".join(_advised(topology, each) for each in found)
  return False, f"does not fit: try {tries}"


def _advised(topology, found):
  words = (
    f"{batch.flags(found.changes)} (compiled:"
    f" {found.total / chips.GIB:.1f} GiB,"
    f" fits{_told(topology, found.total)})"
  )
  if found.effects:
    words += f", which changes the recipe: {', '.join(found.effects)}"
  return words


def _told(topology, total):
  """What JAX must be told to have so much memory."""
  if topology.is_tpu or total <= topology.chip.memory * _BY_DEFAULT:
    return ""
  return (
    f" with XLA_PYTHON_CLIENT_MEM_FRACTION={_AT_MOST}: unless told, JAX takes"
    f" {_BY_DEFAULT:.0%} of a GPU"
  )


def _needs(program):
  fleeting = program.memory["activations and other temporaries"]
  return advice.Needs(
    parameters=program.memory["parameters"],
    held=sum(program.memory.values()) - fleeting,
    fleeting=fleeting,
  )
