"""The collectives of a step, read from its compiled program."""

import dataclasses
import functools
import json
import math
import re
from collections.abc import Sequence

import numpy as np

from seer_jax.planning import chips

KINDS = (
  *("all-reduce", "all-gather", "reduce-scatter", "all-to-all"),
  "collective-permute",
)
# How often a collective sends its bytes, in a large ring; once by default.
_ROUNDS = {"all-reduce": 2}


@dataclasses.dataclass(frozen=True)
class Collective:
  """One instruction by which devices exchange arrays."""

  kind: str  # One of `KINDS`.
  # Of the whole array on one device: the result of all-reduce, all-gather,
  # all-to-all and collective-permute, the operand of reduce-scatter.
  bytes: int
  largest: int  # Bytes of its largest array; compilers merge small ones.
  times: int  # In one call of the program.
  group: int  # Devices that take part.
  hosts: int  # Their hosts.
  where: str = ""  # JAX's name of the operation.


def collectives(hlo: str, hosts: Sequence[int]) -> list[Collective]:
  """The collectives in the text of a compiled program, in order.

  `hosts` has the host of each device, in the order of the mesh.
  """
  computations, entry = _computations(hlo)
  times = _times(computations, entry, _limits(hlo))
  found = []
  for name, instructions in computations.items():
    for each in instructions:
      if times[name] and (made := _collective(each, times[name], hosts)):
        found.append(made)
  return found


def seconds(
  found: Sequence[Collective], chip: chips.Chip
) -> tuple[float, float]:
  """Lower bounds for collectives, on links within hosts and between hosts.

  Assumes rings in two levels, the fastest: in a group with m devices on each of
  h hosts, a device sends (m - 1) / m of the array over its links, and (h - 1) /
  h of an m-th of it to other hosts; an all-reduce sends both twice. Collectives
  over links and network may overlap, so the two are not added.
  """
  link = network = 0.0
  for each in found:
    moved = each.times * each.bytes * _ROUNDS.get(each.kind, 1)
    hosts, here = each.hosts, max(1, each.group // each.hosts)
    if each.kind == "collective-permute":
      link += moved * (hosts == 1) / chip.link
      network += moved * (hosts > 1) / chip.network
      continue
    link += moved * (here - 1) / here / chip.link
    network += moved * (hosts - 1) / hosts / here / chip.network
  return link, network


@dataclasses.dataclass(frozen=True)
class _Instruction:
  shape: str
  opcode: str
  rest: str  # Operands and attributes.


# Marks transfers between slices of TPUs.
_MEGASCALE = "xla_megascale_runtime"
_HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_CALLED = re.compile(
  r"(calls|to_apply|body|condition|true_computation|false_computation)"
  r"=%?([\w.\-]+)"
  r"|(?:branch_computations|called_computations)=\{([^}]*)\}"
)


def _computations(hlo):
  """{name: relevant instructions}, and the name of the entry."""
  computations, entry, current = {}, None, None
  for line in hlo.splitlines():
    if line.startswith("  "):
      if " = " in line and (made := _instruction(line)):
        current.append(made)
    elif match := _HEADER.match(line):
      current = computations.setdefault(match[2], [])
      entry = match[2] if match[1] else entry
  return computations, entry


def _instruction(line):
  """An instruction that communicates or calls a computation, or None."""
  right = line.split(" = ", 1)[1]
  # A shape is a word, or a tuple of shapes.
  end = _closing(right) + 1 if right[0] == "(" else right.index(" ")
  opcode, _, rest = right[end:].lstrip().partition("(")
  sent = opcode == "send" and _MEGASCALE in rest
  if sent or opcode.removesuffix("-start") in KINDS or _CALLED.search(rest):
    return _Instruction(right[:end], opcode, rest)
  return None


def _closing(text):
  """The index of the bracket that closes the first one."""
  depth = 0
  for index, letter in enumerate(text):
    depth += (letter == "(") - (letter == ")")
    if depth == 0:
      return index
  raise ValueError(f"unbalanced brackets: {text[:80]}")


def _limits(hlo):
  """{name: N} of conditions of loops: a counter below N."""
  limits, constants = {}, []
  for line in hlo.splitlines():
    if not line.startswith("  "):
      name, constants = _HEADER.match(line), []
    elif match := re.search(r" = [su]32\[\]\S* constant\((\d+)\)", line):
      constants.append(int(match[1]))
    elif "direction=LT" in line and name and len(constants) == 1:
      limits[name[2]] = constants[0]
  return limits


def _times(computations, entry, limits):
  """How often each computation runs in one call of the program."""
  times = dict.fromkeys(computations, 0)

  def run(name, count):
    times[name] += count
    for each in computations[name]:
      for role, called in _called(each.rest):
        if called in computations:
          turns = _trips(each.rest, limits) if role == "body" else 1
          run(called, count * turns)

  run(entry, 1)
  return times


def _called(rest):
  for role, name, names in _CALLED.findall(rest):
    if name:
      yield role, name
    for each in names.split(","):
      if each.strip():
        yield "", each.strip().removeprefix("%")


def _trips(rest, limits):
  """Iterations of a while loop; 1 if the text does not say."""
  if match := re.search(r'"known_trip_count":\{"n":"(\d+)"', rest):
    return int(match[1])
  # TPU compilers do not write it. JAX's loops count from 0.
  condition = re.search(r"condition=%?([\w.\-]+)", rest)
  return limits.get(condition[1], 1)


def _collective(each, times, hosts):
  kind = each.opcode.removesuffix("-start")
  if kind == "send" and _MEGASCALE in each.rest:
    # The part of a collective between slices goes through the host.
    size = _bytes(each.shape)[0]
    where = "between slices"
    return Collective("collective-permute", size, size, times, 2, 2, where)
  if kind not in KINDS:
    return None
  shape = each.shape
  # Asynchronous forms return more than the result.
  if each.opcode.endswith("-start") and kind != "all-reduce":
    shape = _parts(shape)[1]
  if kind == "collective-permute":
    group, spanned = _of_pairs(each.rest, tuple(hosts))
  else:
    match = re.search(r"replica_groups=", each.rest)
    text = each.rest[match.end() :] if match else "{}"
    group, spanned = _of_groups(_first_value(text), tuple(hosts))
  sizes = _bytes(shape)
  whole = group if kind == "reduce-scatter" else 1
  size, largest = sum(sizes) * whole, max(sizes, default=0) * whole
  name = re.search(r'op_name="([^"]*)"', each.rest)
  where = name[1] if name else ""
  return Collective(kind, size, largest, times, group, spanned, where)


def _parts(shape):
  """The elements of a tuple shape."""
  inside, parts, depth, start = shape[1:-1], [], 0, 0
  for index, letter in enumerate(inside):
    depth += (letter in "([{") - (letter in ")]}")
    if letter == "," and depth == 0:
      parts.append(inside[start:index])
      start = index + 1
  return [*parts, inside[start:]]


def _bytes(shape):
  """Bytes of all arrays in a shape, `f32[8,2]{1,0}` or a tuple of these."""
  sizes = []
  for kind, sides in re.findall(r"\b([a-z]+\d*\w*)\[([\d,<=]*)\]", shape):
    bits = re.search(r"\d+", kind)
    width = int(bits[0]) if bits else {"pred": 8}.get(kind, 0)
    count = math.prod(int(s.strip("<=")) for s in sides.split(",") if s)
    sizes.append(count * width // 8)
  return sizes


def _first_value(text):
  """`replica_groups` up to the comma after it."""
  depth = 0
  for index, letter in enumerate(text):
    depth += (letter in "([{") - (letter in ")]}")
    # After a mesh, a comma and device ids may follow.
    if letter == "," and depth == 0 and text[index:][:13] != ", device_ids=":
      return text[:index]
  return text


@functools.lru_cache(maxsize=1024)
def _of_groups(text, hosts):
  """Size of the groups, and the most hosts that one spans."""
  groups = _groups(text, len(hosts))
  spanned = max(len(set(np.take(hosts, group))) for group in groups)
  return groups.shape[1], spanned


def _groups(text, devices):
  """[groups, members], from each of XLA's three notations."""
  if text.startswith("mesh["):
    return _mesh_groups(text, devices)
  if text.startswith("["):
    sizes, _, order = text.partition("<=")
    groups, members = json.loads(sizes)
    return _iota(order, devices).reshape(groups, members)
  listed = re.findall(r"\{([\d,]+)\}", text)
  if not listed:
    return np.arange(devices)[None]
  return np.array([json.loads(f"[{each}]") for each in listed])


def _iota(text, devices):
  """[4,2]T(1,0): the devices in order, in that shape, transposed."""
  match = re.match(r"(\[[\d,]+\])(?:T\(([\d,]+)\))?", text)
  ids = np.arange(devices).reshape(json.loads(match[1]))
  return ids.transpose(json.loads(f"[{match[2]}]")) if match[2] else ids


def _mesh_groups(text, devices):
  """mesh['a'=4,'b'=2], device_ids=(...) {'a','b':(1)2}: groups along axes."""
  match = re.match(r"mesh\[(.*?)\](?:, device_ids=\((.*?)\))? ?\{(.*)\}", text)
  axes = [each.rsplit("=", 1) for each in match[1].split(",")]
  sizes = {name: int(size) for name, size in axes}
  ids = np.arange(devices)
  if match[2] and match[2].startswith("["):
    ids = _iota(match[2] + ")" * match[2].count("("), devices)
  elif match[2]:
    ids = np.array(json.loads(f"[{match[2]}]"))
  # Splits every axis into its parts and the rest before and after these.
  sides, chosen = [], []
  parts = re.findall(r"([^,:]+)(?::\((\d+)\)(\d+))?(?:,|$)", match[3])
  for name, size in sizes.items():
    pieces = [(int(a), int(b)) for n, a, b in parts if n == name and a]
    whole = any(n == name and not a for n, a, _ in parts)
    if whole:
      pieces = [(1, size)]
    done = 1
    for before, length in sorted(pieces):
      sides.append(before // done)
      chosen.append(len(sides))
      sides.append(length)
      done = before * length
    sides.append(size // done)
  rest = [d for d in range(len(sides)) if d not in chosen]
  members = math.prod(sides[d] for d in chosen)
  return ids.reshape(sides).transpose(rest + chosen).reshape(-1, members)


@functools.lru_cache(maxsize=1024)
def _hosts_of_pair(source, target, hosts):
  return len({hosts[source], hosts[target]})


def _of_pairs(rest, hosts):
  listed = re.search(r"source_target_pairs=\{([\d{},]*)\}", rest)[1]
  pairs = [
    tuple(map(int, each)) for each in re.findall(r"\{(\d+),(\d+)\}", listed)
  ]
  return 2, max((_hosts_of_pair(*pair, hosts) for pair in pairs), default=1)
