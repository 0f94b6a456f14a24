"""What a plan found, and how it is told: a table, a line of JSON, a row."""

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

from seer_jax.planning import chips, collectives


@dataclasses.dataclass(frozen=True)
class Messages:
  """All collectives of one kind, in one step."""

  kind: str
  times: int
  bytes: int
  crossing: int  # Bytes of those whose groups span hosts.


@dataclasses.dataclass(frozen=True)
class Report:
  """What a plan found. Bytes are of one device, operations of all."""

  topology: str
  notes: tuple[str, ...]  # What was assumed, and what was odd.
  devices: int  # In the mesh.
  hosts: int  # They are on.
  trunk: str  # Its name, or its numbers.
  settings: dict[str, Any]  # The keys that decide, resolved.
  parameters: int  # How many there are.
  memory: dict[str, int]  # Bytes by what they are for.
  capacity: int  # Bytes of a device.
  verdict: str  # Whether it fits, and what to try.
  fits: bool  # Whether it does.
  model_flops: int  # Of a step, each operation once.
  executed_flops: int  # Of a step, with all that is computed again.
  # Collectives by kind; None where the compiler gave up.
  messages: tuple[Messages, ...] | None
  biggest: collectives.Collective | None  # The largest collective.
  compute_seconds: float  # At least, for a step.
  # At least, for what passes between memory and arithmetic.
  memory_seconds: float
  link_seconds: float  # At least, within hosts or a TPU slice.
  network_seconds: float  # At least, between hosts.
  compile_seconds: float  # What compiling took here.

  @property
  def total(self) -> int:
    """Bytes that a device must hold."""
    return sum(self.memory.values())

  @property
  def step_seconds(self) -> float:
    """No step takes less, were each hidden behind the slowest of them."""
    return max(
      self.compute_seconds,
      self.memory_seconds,
      self.link_seconds,
      self.network_seconds,
    )

  @property
  def images_a_second(self) -> float:
    """At most."""
    return self.settings["batch_size"] / self.step_seconds

  @property
  def days(self) -> float:
    """At least, for all steps of the config."""
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
  yield f"  {'with what is computed again':36}{executed:10,.1f}"
  yield ""
  if report.messages is None:
    yield "messages of a step: not known, the compiler refused the program"
  else:
    columns = f"{'GiB':>10}{'times':>8}  between hosts, GiB"
    yield f"{'messages of a step':38}{columns}"
    for each in report.messages:
      yield (
        f"  {each.kind:36}{each.bytes / gib:10.3f}{each.times:8}"
        f"  {each.crossing / gib:.3f}"
      )
    if report.biggest is not None:
      yield (
        f"  largest: {report.biggest.kind} of {report.biggest.bytes / gib:.3f}"
        f" GiB among {report.biggest.group} devices"
      )
  yield ""
  yield f"{'a step takes at least':38}{'seconds':>10}"
  yield f"  {'arithmetic, at peak rate':36}{report.compute_seconds:10.3f}"
  yield f"  {'memory, at its peak rate':36}{report.memory_seconds:10.3f}"
  if report.messages is not None:
    yield f"  {'messages over links':36}{report.link_seconds:10.3f}"
    yield f"  {'messages between hosts':36}{report.network_seconds:10.3f}"
  yield (
    f"  so at most {report.images_a_second:,.0f} images/s, and"
    f" {chosen['steps']:,} steps take {report.days:.2f} days or more."
  )
  yield "  Lower bounds: published peak rates, nothing waits for anything."
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
  messages = "unknown"
  if report.messages is not None:
    biggest = report.biggest.bytes / gib if report.biggest else 0.0
    sent = sum(each.bytes for each in report.messages) / gib
    messages = f"{sent:.2f} ({biggest:.2f})"
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
    messages,
    f"{report.step_seconds:.2f}",
    f"{report.compile_seconds:.0f}",
  )
  return f"| {' | '.join(cells)} |"


# Above the rows of `row`.
HEADER = (
  "| trunk | topology | precision | data x fsdp | batch (a device) | crops |"
  " memory, GiB | fits | TFLOP a step, once / executed |"
  " messages, GiB (largest) | step, s, at least | compile, s |"
)
