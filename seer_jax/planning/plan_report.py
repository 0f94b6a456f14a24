"""The result of a plan, as a table, a line of JSON, or a row."""

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

from seer_jax.planning import chips
from seer_jax.planning import collectives as collectives_lib


@dataclasses.dataclass(frozen=True)
class Kind:
  """All collectives of one kind, in one step."""

  kind: str
  times: int
  bytes: int
  between_hosts: int  # Bytes of those whose groups span hosts.


@dataclasses.dataclass(frozen=True)
class Report:
  """The result of a plan. Bytes are of one device, operations of all."""

  topology: str
  notes: tuple[str, ...]  # Assumptions and warnings.
  devices: int  # In the mesh.
  hosts: int
  trunk: str  # Its name, or its numbers.
  settings: dict[str, Any]  # The decisive keys, resolved.
  parameters: int
  memory: dict[str, int]  # By what it is for.
  capacity: int  # Bytes of a device.
  verdict: str  # Whether it fits, and what to try.
  fits: bool
  model_flops: int  # Of a step, each operation once.
  executed_flops: int  # Of a step, with rematerialization.
  # By kind; None if the compiler refused the program.
  collectives: tuple[Kind, ...] | None
  largest: collectives_lib.Collective | None  # The largest collective.
  # Lower bounds, for a step: arithmetic, memory traffic, collectives within
  # hosts or a TPU slice, collectives between hosts.
  compute_seconds: float
  memory_seconds: float
  link_seconds: float
  network_seconds: float
  compile_seconds: float  # On this machine.

  @property
  def total(self) -> int:
    """Bytes of a device."""
    return sum(self.memory.values())

  @property
  def step_seconds(self) -> float:
    """A lower bound: everything hidden behind the slowest part."""
    return max(
      self.compute_seconds,
      self.memory_seconds,
      self.link_seconds,
      self.network_seconds,
    )

  @property
  def images_a_second(self) -> float:
    """An upper bound."""
    return self.settings["batch_size"] / self.step_seconds

  @property
  def days(self) -> float:
    """A lower bound for all steps."""
    return self.step_seconds * self.settings["steps"] / 86400


def lines(report: Report) -> Iterator[str]:
  """A table for people, and one line of JSON for programs."""
  gib = chips.GIB
  chosen = report.settings
  yield (
    f"{report.trunk} ({report.parameters / 1e6:,.1f} M parameters with head"
    f" and prototypes) on {report.topology}: {report.devices} devices,"
    f" {report.hosts} hosts"
  )
  yield "  " + ", ".join(f"{key} {value}" for key, value in chosen.items())
  for note in report.notes:
    yield f"  {note}"
  yield ""
  yield f"{'memory of a device':38}{'GiB':>10}"
  for name, size in report.memory.items():
    if size > 2**19:
      yield f"  {name:36}{size / gib:10.3f}"
  yield (
    f"  {'total':36}{report.total / gib:10.3f}  of {report.capacity / gib:.2f}"
  )
  yield f"  {report.verdict}"
  yield ""
  yield f"{'operations of a step':38}{'TFLOP':>10}"
  yield f"  {'each once':36}{report.model_flops / 1e12:10,.1f}"
  executed = report.executed_flops / 1e12
  yield f"  {'with rematerialization':36}{executed:10,.1f}"
  yield ""
  if report.collectives is None:
    yield "collectives of a step: unknown, as the compiler refused the program"
  else:
    columns = f"{'GiB':>10}{'times':>8}  between hosts, GiB"
    yield f"{'collectives of a step':38}{columns}"
    for each in report.collectives:
      yield (
        f"  {each.kind:36}{each.bytes / gib:10.3f}{each.times:8}"
        f"  {each.between_hosts / gib:.3f}"
      )
    if report.largest is not None:
      yield (
        f"  largest: {report.largest.kind} of {report.largest.bytes / gib:.3f}"
        f" GiB among {report.largest.group} devices"
      )
  yield ""
  yield f"{'a step takes at least':38}{'seconds':>10}"
  yield f"  {'arithmetic, at peak rate':36}{report.compute_seconds:10.3f}"
  yield f"  {'memory, at its peak rate':36}{report.memory_seconds:10.3f}"
  if report.collectives is not None:
    yield f"  {'collectives over links':36}{report.link_seconds:10.3f}"
    yield f"  {'collectives between hosts':36}{report.network_seconds:10.3f}"
  yield (
    f"  so at most {report.images_a_second:,.0f} images/s, and"
    f" {chosen['steps']:,} steps take at least {report.days:.2f} days."
  )
  yield "  These are bounds: published peak rates, and no waiting."
  yield f"compiled in {report.compile_seconds:.0f} s"
  yield to_json(report)


def to_json(report: Report) -> str:
  """The report on one line."""
  figures = dataclasses.asdict(report)
  for name in ("total", "step_seconds", "images_a_second", "days"):
    figures[name] = getattr(report, name)
  return json.dumps(figures)


def row(report: Report) -> str:
  """The report as a row of docs/scale.md."""
  gib, chosen = chips.GIB, report.settings
  each = chosen["batch_size"] / report.devices
  sizes = "unknown"
  if report.collectives is not None:
    largest = report.largest.bytes / gib if report.largest else 0.0
    sent = sum(each.bytes for each in report.collectives) / gib
    sizes = f"{sent:.2f} ({largest:.2f})"
  cells = (
    report.trunk,
    report.topology,
    chosen["precision"],
    chosen["mesh"],
    f"{chosen['batch_size']} ({each:g})",
    f"{chosen['crops']}",
    f"{report.total / gib:.1f} of {report.capacity / gib:.1f}",
    "yes" if report.fits else "no",
    f"{report.model_flops / 1e12:,.0f} / {report.executed_flops / 1e12:,.0f}",
    sizes,
    f"{report.step_seconds:.2f}",
    f"{report.compile_seconds:.0f}",
  )
  return f"| {' | '.join(cells)} |"


# The header for `row`.
HEADER = (
  "| trunk | topology | precision | data x fsdp | batch (a device) | crops |"
  " memory, GiB | fits | TFLOP a step, once / executed |"
  " collectives, GiB (largest) | step, s, at least | compile, s |"
)
