"""Memory and time of a run on hardware that need not exist yet.

Compiles the step of `training/step.py` for a topology, and reads from the
program what a device holds and which collectives it runs. The data need not
exist either. Times are lower bounds, from published peak rates: no kernel
reaches these, and input, launches and latency come on top.
"""

import copy
import logging
from collections.abc import Iterator

import jax
import ml_collections

from seer_jax.config import auto, batch, remat, validate
from seer_jax.data import sources
from seer_jax.models import encoder
from seer_jax.planning import (
  accelerators,
  advice,
  chips,
  collectives,
  compiled_step,
  operations,
  plan_report,
)
from seer_jax.runtime import errors, host
from seer_jax.runtime import mesh as mesh_lib

_log = logging.getLogger(__name__)

# Without data: SEER's number of images, a usual size, ImageNet's labels.
_IMAGES, _SIDE, _LABELS = 1_000_000_000, 500, 1000
# Share of a GPU's memory that JAX takes by default, and at most: CUDA, NCCL and
# cuDNN need the rest.
_BY_DEFAULT, _AT_MOST = 0.75, 0.92
# Programs compiled to find the least rematerialization.
_TRIES = 2


def plan(
  config: ml_collections.ConfigDict, topology_name: str
) -> plan_report.Report:
  """Compiles a config's step for a topology. Fills the config's open keys.

  Raises UserError if the topology or the config is invalid, or a compiler is
  missing.
  """
  topology = accelerators.parse(topology_name)
  validate.check_each(config)
  # Nothing runs here; accelerators of this machine are left alone.
  jax.config.update("jax_platforms", "cpu")
  devices = accelerators.devices(topology)

  def compiled(config):
    mesh = mesh_lib.make(config.mesh.data, config.mesh.fsdp, devices)
    return compiled_step.compile_step(config, mesh)

  mesh = mesh_lib.make(config.mesh.data, config.mesh.fsdp, devices)
  remat_open = config.model.remat is None
  notes = [topology.note] if topology.note else []
  notes += _complete(config, mesh, _room(topology))
  program = compiled_step.compile_step(config, mesh)
  if remat_open:
    program, note = _least_remat(config, mesh, _room(topology), program)
    notes.append(note)
  sent = None
  if program.hlo is not None:
    sent = collectives.collectives(program.hlo, _hosts(topology, mesh))
    notes += _odd(sent, program.abstract)
  chip, executed = topology.chip, operations.flops(program.jaxpr)
  link, network = collectives.seconds(sent or [], chip)
  traffic = operations.traffic(program.jaxpr, mesh.size, chip.cache)
  fits, verdict = _verdict(config, topology, program, compiled)
  return plan_report.Report(
    topology=topology.name,
    notes=tuple(notes),
    devices=mesh.size,
    hosts=len({d.process_index for d in mesh.devices.flat}),
    trunk=config.model.trunk or str(config.model.regnet),
    settings=_settings(config, mesh),
    parameters=sum(x.size for x in jax.tree.leaves(program.unpadded.params)),
    memory=program.memory,
    capacity=chip.memory,
    verdict=verdict,
    fits=fits,
    model_flops=_model_flops(config, mesh, executed),
    executed_flops=executed,
    collectives=None if sent is None else tuple(_by_kind(sent)),
    largest=max(sent or [], key=lambda each: each.bytes, default=None),
    compute_seconds=executed / mesh.size / chip.peak[config.precision],
    memory_seconds=traffic / chip.bandwidth,
    link_seconds=link,
    network_seconds=network,
    compile_seconds=program.seconds,
  )


def _hosts(topology, mesh):
  """The host of each device; on TPUs its slice, whose links span hosts."""
  if topology.is_tpu:
    return [getattr(d, "slice_index", 0) or 0 for d in mesh.devices.flat]
  return [d.process_index for d in mesh.devices.flat]


def _settings(config, mesh):
  crops = zip(config.crops.counts, config.crops.sizes, strict=True)
  return {
    "batch_size": config.batch_size,
    "steps": config.steps,
    "crops": "+".join(f"{count}x{size}" for count, size in crops),
    "precision": config.precision,
    "accumulate": config.accumulate,
    "model.remat": config.model.remat,
    "model.scan": config.model.scan,
    "mesh": f"{mesh.shape['data']}x{mesh.shape['fsdp']}",
  }


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
    assumed.append(f"no data{reason}: assuming {images:,} images of {side} px")
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


def _least_remat(config, mesh, room, program):
  """The program with the least rematerialization that fits, and a note.

  Sets the key. Estimates are corrected by the needs of the first program.
  """

  def scale(program):
    estimate = remat.estimate(config, mesh.size, config.model.remat)
    return program.total / estimate

  def fits(program):
    return program.hlo is not None and program.total <= room

  for _ in range(_TRIES):
    before = config.model.remat
    rung, _ = remat.least(config, mesh.size, room, scale(program))
    if rung == before:
      break
    config.model.remat = rung
    trial = compiled_step.compile_step(config, mesh)
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


def _model_flops(config, mesh, executed):
  """Operations of the step without rematerialization."""
  once = copy.deepcopy(config)
  once.model.remat, once.accumulate = "none", 1
  if once == config:
    return executed
  return operations.flops(compiled_step.jaxpr(once, mesh))


def _odd(sent, state) -> Iterator[str]:
  """Notes collectives of activations, which no part of the step needs."""
  parameter = max(x.size for x in jax.tree.leaves(state.params)) * 4
  # Not all-reduce: some compilers concatenate small gradients for it.
  odd = [s for s in sent if s.kind != "all-reduce" and s.largest > parameter]
  if odd:
    worst = max(odd, key=lambda each: each.largest)
    yield (
      f"{len(odd)} collectives are larger than any parameter, so activations"
      f" may be gathered; the largest: {worst.kind} of"
      f" {worst.largest / chips.GIB:.2f} GiB ({worst.where})"
    )


def _by_kind(sent) -> Iterator[plan_report.Kind]:
  for kind in collectives.KINDS:
    ours = [each for each in sent if each.kind == kind and each.group > 1]
    if ours:
      yield plan_report.Kind(
        kind,
        sum(each.times for each in ours),
        sum(each.times * each.bytes for each in ours),
        sum(each.times * each.bytes for each in ours if each.hosts > 1),
      )


def _room(topology):
  """Bytes of a device that a program can use."""
  return int(topology.chip.memory * (1 if topology.is_tpu else _AT_MOST))


def _verdict(config, topology, program, compiled):
  """Whether it fits, and a sentence with advice if not."""
  if topology.is_tpu and program.hlo is not None:
    return True, "fits"  # Its compiler refuses other programs.
  total, room = program.total, _room(topology)
  if not topology.is_tpu and total <= room:
    return True, f"fits{_with_flag(topology, total)}"
  chip = topology.chip
  found = advice.find(
    config,
    _needs(program),
    room=room,
    devices=program.abstract.step.sharding.mesh.size,
    per_host=chip.per_host,
    precision=chip.precision,
    measure=lambda trial: _needs(compiled(trial)),
  )
  if not found:
    return False, (
      "does not fit, even with a smaller part of the batch; take a smaller"
      " --config.model.trunk, or more devices"
    )
  tries = "; or ".join(_advised(topology, each) for each in found)
  return False, f"does not fit: try {tries}"


def _advised(topology, found):
  words = (
    f"{batch.flags(found.changes)} (compiled:"
    f" {found.total / chips.GIB:.1f} GiB,"
    f" fits{_with_flag(topology, found.total)})"
  )
  if found.effects:
    words += f", which changes the recipe: {', '.join(found.effects)}"
  return words


def _with_flag(topology, total):
  """The flag by which JAX takes so much memory."""
  if topology.is_tpu or total <= topology.chip.memory * _BY_DEFAULT:
    return ""
  return (
    f" with XLA_PYTHON_CLIENT_MEM_FRACTION={_AT_MOST}: by default JAX takes"
    f" {_BY_DEFAULT:.0%} of a GPU"
  )


def _needs(program):
  temporary = program.memory[compiled_step.TEMPORARIES]
  return advice.Needs(
    parameters=program.memory["parameters"],
    held=program.total - temporary,
    temporary=temporary,
  )
