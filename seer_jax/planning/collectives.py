"""What devices say to each other in a step, read off its compiled program."""

import dataclasses
import functools
import json
import math
import re
from collections.abc import Sequence

import numpy as np

KINDS = (
  "all-reduce",
  "all-gather",
  "reduce-scatter",
  "all-to-all",
  "collective-permute",
)


@dataclasses.dataclass(frozen=True)
class Collective:
  """One instruction by which devices exchange arrays."""

  kind: str  # One of `KINDS`.
  # Of the whole array on one device: what all-reduce, all-gather, all-to-all
  # and collective-permute leave there, what reduce-scatter takes.
  bytes: int
  # Of these, those of its largest array: compilers put many small ones into one
  # message.
  largest: int
  times: int  # It runs in one call of the program.
  group: int  # How many devices take part.
  hosts: int  # How many hosts these are on.
  # The operation that it comes from, as JAX names it; may be empty.
  where: str = ""


def collectives(hlo: str, hosts: Sequence[int]) -> list[Collective]:
  """The collectives of a compiled program, in the order of its text.

  Args:
    hlo: the text of the program.
    hosts: of each device, in the order of the mesh, the host it is on.
  """
  computations, entry = _computations(hlo)
  times = _times(computations, entry, _limits(hlo))
  found = []
  for name, instructions in computations.items():
    for each in instructions:
      if times[name] and (made := _collective(each, times[name], hosts)):
        found.append(made)
  return found


@dataclasses.dataclass(frozen=True)
class _Instruction:
  shape: str
  opcode: str
  rest: str  # Operands and attributes.


# How a program for several slices of TPUs marks what it sends to another.
_MEGASCALE = "xla_megascale_runtime"
_HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_CALLED = re.compile(
  r"(calls|to_apply|body|condition|true_computation|false_computation)"
  r"=%?([\w.\-]+)"
  r"|(?:branch_computations|called_computations)=\{([^}]*)\}"
)


def _computations(hlo):
  """{name: instructions that matter}, and the name of the entry."""
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
  """Only instructions that exchange something or call a computation."""
  right = line.split(" = ", 1)[1]
  # A shape is a word, or a tuple of shapes.
  end = _closing(right) + 1 if right[0] == "(" else right.index(" ")
  opcode, _, rest = right[end:].lstrip().partition("(")
  sent = opcode == "send" and _MEGASCALE in rest
  if sent or opcode.removesuffix("-start") in KINDS or _CALLED.search(rest):
    return _Instruction(right[:end], opcode, rest)
  return None


def _closing(text):
  """Where the bracket closes that `text` begins with."""
  depth = 0
  for index, letter in enumerate(text):
    depth += (letter == "(") - (letter == ")")
    if depth == 0:
      return index
  raise ValueError(f"unbalanced brackets: {text[:80]}")


def _limits(hlo):
  """{name: N} of the computations that ask whether a counter is below N."""
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
  """Of a while loop; 1 where nothing in the text says."""
  if match := re.search(r'"known_trip_count":\{"n":"(\d+)"', rest):
    return int(match[1])
  # Compilers for TPUs do not write it down. JAX's loops count from 0.
  condition = re.search(r"condition=%?([\w.\-]+)", rest)
  return limits.get(condition[1], 1)


def _collective(each, times, hosts):
  kind = each.opcode.removesuffix("-start")
  if kind == "send" and _MEGASCALE in each.rest:
    # The part of a collective that leaves a slice goes through the host.
    size = _bytes(each.shape)[0]
    where = "between slices"
    return Collective("collective-permute", size, size, times, 2, 2, where)
  if kind not in KINDS:
    return None
  shape = each.shape
  # The asynchronous forms return operands and other things beside the result.
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
  """The members of a tuple shape."""
  inside, parts, depth, start = shape[1:-1], [], 0, 0
  for index, letter in enumerate(inside):
    depth += (letter in "([{") - (letter in ")]}")
    if letter == "," and depth == 0:
      parts.append(inside[start:index])
      start = index + 1
  return [*parts, inside[start:]]


def _bytes(shape):
  """Of all arrays in a shape, `f32[8,2]{1,0}` or a tuple of such."""
  sizes = []
  for kind, sides in re.findall(r"\b([a-z]+\d*\w*)\[([\d,<=]*)\]", shape):
    bits = re.search(r"\d+", kind)
    width = int(bits[0]) if bits else {"pred": 8}.get(kind, 0)
    count = math.prod(int(s.strip("<=")) for s in sides.split(",") if s)
    sizes.append(count * width // 8)
  return sizes


def _first_value(text):
  """`replica_groups` up to the comma behind it."""
  depth = 0
  for index, letter in enumerate(text):
    depth += (letter in "([{") - (letter in ")]}")
    # In the form of a mesh, a comma and device ids may follow.
    if letter == "," and depth == 0 and text[index:][:13] != ", device_ids=":
      return text[:index]
  return text


@functools.lru_cache(maxsize=1024)
def _of_groups(text, hosts):
  """Size of the groups, and the most hosts that one of them spans."""
  groups = _groups(text, len(hosts))
  spanned = max(len(set(np.take(hosts, group))) for group in groups)
  return groups.shape[1], spanned


def _groups(text, devices):
  """[groups, members], of each of the three ways in which XLA writes them."""
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
  # Every axis in as many pieces as its parts need: before, it, behind.
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
