"""The machines of a Ray cluster: whether all of them can do the work."""

import functools
import hashlib
import pathlib
import platform
from collections.abc import Sequence
from typing import Any, NamedTuple

import seer_jax
from seer_jax.runtime import errors

# Seconds until a machine has started a process and looked around.
_PATIENCE = 120


class Facts(NamedTuple):
  """What must be the same on all machines."""

  python: str
  seer_jax: str
  code: str  # Of the package: a fingerprint of its files.


def alive(ray: Any) -> list[dict[str, Any]]:
  """The machines that run tasks, as Ray describes them."""
  return [
    each
    for each in ray.nodes()
    if each["Alive"] and each["Resources"].get("CPU", 0)
  ]


def ask(
  ray: Any, machines: Sequence[dict[str, Any]], paths: Sequence[pathlib.Path]
) -> dict[Any, dict[str, Any]]:
  """Asks machines what they have; `check` waits for the answers.

  Args:
    ray: the module, connected.
    machines: those of `alive`.
    paths: files and folders that all must have.
  """
  from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

  asked = {}
  for each in machines:
    there = NodeAffinitySchedulingStrategy(each["NodeID"], soft=False)
    # It runs beside other tasks.
    look = ray.remote(_look).options(num_cpus=0, scheduling_strategy=there)
    asked[look.remote([str(path) for path in paths])] = each
  return asked


def check(ray: Any, asked: dict[Any, dict[str, Any]]) -> None:
  """Raises UserError if a machine differs from this one, or lacks a path.

  Args:
    ray: the module, connected.
    asked: result of `ask`. Machines that were lost since are left out.
  """
  if not asked:
    return
  ready, late = ray.wait(list(asked), num_returns=len(asked), timeout=_PATIENCE)
  if late:
    where = _name(asked[late[0]])
    raise errors.UserError(
      f"{where} has not answered for {_PATIENCE} s; look at its Ray logs, or"
      " leave it out"
    )
  for reference in ready:
    where = _name(asked[reference])
    try:
      facts, missing = ray.get(reference)
    except ray.exceptions.RayError as error:
      lost = asked[reference]["NodeID"]
      if lost not in {each["NodeID"] for each in alive(ray)}:
        continue
      raise errors.UserError(
        f"{where} cannot run seer_jax {seer_jax.__version__}"
        f" ({_reason(error)}); install it in the Python of its ray start"
      ) from error
    _compare(where, facts, missing)


def _compare(where, facts, missing):
  ours = _facts()
  for name, mine, other in zip(Facts._fields, ours, facts, strict=True):
    if mine != other:
      what = "files of seer_jax" if name == "code" else name
      raise errors.UserError(
        f"{where} has other {what}, {other}; this machine has {mine}; install"
        " the same on all"
      )
  if missing:
    raise errors.UserError(
      f"{where} does not have {missing[0]}; mount it there, or leave the"
      " machine out"
    )


def _name(machine):
  return (
    f"machine {machine.get('NodeManagerHostname', '')}"
    f" ({machine['NodeManagerAddress']})"
  )


def _reason(error):
  """The last line of a traceback."""
  return (str(error).strip().splitlines() or [type(error).__name__])[-1][:200]


def _look(paths: list[str]) -> tuple[Facts, list[str]]:
  """On a machine of the cluster: (facts, paths that are missing)."""
  return _facts(), [path for path in paths if not pathlib.Path(path).exists()]


@functools.cache
def _facts():
  folder = pathlib.Path(seer_jax.__file__).parent
  digest = hashlib.sha256()
  for path in sorted(folder.rglob("*.py")):
    digest.update(f"{path.relative_to(folder)}\n".encode())
    digest.update(path.read_bytes())
  version = ".".join(platform.python_version_tuple()[:2])
  return Facts(version, seer_jax.__version__, digest.hexdigest()[:12])
