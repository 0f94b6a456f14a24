"""Runs an untrusted pickle: containers, numbers and text, nothing else.

A pickle is a program. Python's unpickler can be kept from calling foreign
functions, but not from harmful data: two kilobytes of nested tuples take a
minute to hash, and a few megabytes exceed the recursion limit or fill the
memory. This interpreter has the opcodes that weights need, never recurses, and
bounds memory by the length of the pickle. Python's `pickletools` describes the
opcodes.
"""

import pickletools
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, BinaryIO

from seer_jax.runtime import errors

# The pickle of SEER-10B and its optimizer has a few MiB.
LONGEST = 1 << 26  # Bytes.
_MOST_STEPS = 1 << 23  # About five seconds.
_DEEPEST = 100
# Bytes of memory per byte read (PyTorch's pickles take up to 40), an allowance
# for short pickles, and the limit.
_FACTOR, _FREE, _MOST = 64, 1 << 21, 1 << 30
_LARGEST_INTEGER = 1 << 128  # PyTorch's magic number has 77 bits.
# Bytes of objects in Python 3.11.
_SIZES = {tuple: 48, list: 64, dict: 72, set: 224, frozenset: 224}
_SLOT, _ENTRY = 8, 100  # In a list; in a dict.
_SCALARS = frozenset({str, bytes, int, float, bool, type(None)})


class Damaged(Exception):
  """A pickle that is not valid; says why."""


class Refused(Exception):
  """A pickle that asks for something it does not get; says for what."""


class Dict(dict):
  """An OrderedDict without the attributes that PyTorch gives it."""

  __slots__ = ()


class Inert:
  """Replaces objects that are not weights."""

  __slots__ = ()

  def __init__(self, *args: Any):
    pass


def load(
  file: BinaryIO,
  find: Callable[[str, str], Callable[..., Any]],
  persistent: Callable[[Any], Any],
) -> Any:
  """Runs the pickle at a file's position, and leaves the file behind it.

  Raises Damaged if it is invalid or cut off, and Refused if it asks for other
  functions, or for too much.

  Args:
    find: returns the function of a module's name and its own; may raise
      Refused. Functions must check their arguments.
    persistent: returns the object of a persistent id.
  """
  try:
    return _Machine(find, persistent).run(_Limited(file))
  except (IndexError, KeyError, TypeError, ValueError, AttributeError) as error:
    words = errors.shown(f"{type(error).__name__}: {error}")
    raise Damaged(f"its pickle is invalid ({words})") from error


def as_key(it: Any) -> Any:
  """Returns what may be a key, and so be hashed: no container.

  Raises Refused if it is one.
  """
  if type(it) not in _SCALARS:
    raise Refused(f"has a {type(it).__name__} as a key")
  return it


class _Limited:
  """A file from its position on, up to `LONGEST` bytes."""

  def __init__(self, file):
    self._file, self._read = file, 0

  def read(self, size: int) -> bytes:
    """So many bytes, or fewer at the end."""
    if size > LONGEST - self._read:
      raise Refused(f"has a pickle of more than {LONGEST:,} bytes")
    return self._counted(self._file.read(size))

  def readline(self) -> bytes:
    return self._counted(self._file.readline(LONGEST - self._read))

  def tell(self) -> int:
    """Bytes read so far."""
    return self._read

  def _counted(self, data):
    self._read += len(data)
    return data


class _Budget:
  """Bounds memory and nesting by the length of the pickle read so far."""

  def __init__(self):
    self.read = self._spent = 0
    # Depth of containers of containers, which are kept alive for their ids.
    self._depths: dict[int, tuple[int, Any]] = {}

  def spend(self, size: int) -> None:
    self._spent += size
    if self._spent > _FREE + min(_FACTOR * self.read, _MOST):
      raise Refused(
        f"takes {self._spent >> 20} MiB of memory for the first"
        f" {self.read:,} bytes of its pickle"
      )

  def deepen(self, it: Any, parts: Iterable[Any]) -> None:
    """Records that a container got these parts."""
    depth = 1 + max(map(self._depth, parts), default=0)
    if depth > _DEEPEST:
      raise Refused(f"nests containers deeper than {_DEEPEST}")
    if depth > max(1, self._depth(it)):
      self.spend(_ENTRY)
      self._depths[id(it)] = depth, it

  def _depth(self, it):
    if id(it) in self._depths:
      return self._depths[id(it)][0]
    return int(type(it) in _SIZES or type(it) is Dict)


class _Machine:
  """The stack, its marks, and the memo."""

  def __init__(self, find, persistent):
    self._find, self._persistent = find, persistent
    self._stack: list[Any] = []
    self._marks: list[int] = []
    self._memo: dict[int, Any] = {}
    self._budget, self._step = _Budget(), 0

  def run(self, pickled: _Limited) -> Any:
    """Executes one opcode after the other."""
    for opcode, argument, at in pickletools.genops(pickled):
      self._budget.read, self._step = at or 0, self._step + 1
      if self._step > _MOST_STEPS:
        raise Refused(f"has a pickle of more than {_MOST_STEPS:,} steps")
      if opcode.name == "STOP":
        return self.pop()
      act = _OPCODES.get(opcode.name)
      if act is None:
        raise Refused(f"uses the opcode {opcode.name}")
      act(self, argument)
    raise Damaged("its pickle is cut off")

  def push(self, it: Any, size: int = _SLOT) -> None:
    self._budget.spend(size)
    self._stack.append(it)

  def push_value(self, it: Any) -> None:
    """A number, text, bytes or None."""
    if type(it) is int and abs(it) >= _LARGEST_INTEGER:
      raise Refused("has an integer of more than 128 bits")
    self.push(it, _SLOT + sys.getsizeof(it))

  def push_string(self, it: str) -> None:
    """Text of Python 2, which was bytes."""
    self.push_value(it.encode("latin-1").decode("utf-8", "replace"))

  def push_container(self, kind: type, parts: Sequence[Any] = ()) -> None:
    it = kind(map(as_key, parts)) if kind is frozenset else kind(parts)
    self.push(it, _SIZES[kind] + _SLOT * (1 + len(parts)))
    self._budget.deepen(it, parts)

  def push_dict(self, parts: Sequence[Any]) -> None:
    self.push_container(dict)
    self.set_items(parts)

  def pop(self) -> Any:
    if self._marks and self._marks[-1] >= len(self._stack):
      raise Damaged("its pickle pops an empty stack")
    return self._stack.pop()

  def pop_last(self, count: int) -> list[Any]:
    return [self.pop() for _ in range(count)][::-1]

  def pop_marked(self) -> list[Any]:
    """Everything above the last mark."""
    mark = self._marks.pop()
    parts = self._stack[mark:]
    del self._stack[mark:]
    return parts

  def mark(self, _: None) -> None:
    self._budget.spend(_ENTRY)
    self._marks.append(len(self._stack))

  def drop(self, _: None) -> None:
    """Pops an object, or a mark."""
    if self._marks and self._marks[-1] == len(self._stack):
      self._marks.pop()
    else:
      self.pop()

  def add(self, parts: Sequence[Any]) -> None:
    """Adds to the list or the set on top of the stack."""
    target = self._stack[-1]
    self._budget.spend(_ENTRY * len(parts))
    if type(target) is set:
      target.update(map(as_key, parts))
    elif type(target) is list:
      target.extend(parts)
    else:
      raise Damaged("it adds to an object that is not a list")
    self._budget.deepen(target, parts)

  def set_items(self, parts: Sequence[Any]) -> None:
    """Sets alternating keys and values in the dict on top of the stack."""
    target = self._stack[-1]
    self._budget.spend(_ENTRY * len(parts) // 2)
    if not isinstance(target, dict) or len(parts) % 2:
      raise Damaged("it sets items of an object that is not a dict")
    for key, value in zip(parts[::2], parts[1::2], strict=True):
      target[as_key(key)] = value
    self._budget.deepen(target, parts[1::2])

  def put(self, number: int) -> None:
    # No pickler uses a number above the count of its steps.
    if number >= self._step:
      raise Damaged(f"it puts memo {number} at step {self._step}")
    self._budget.spend(_ENTRY)
    self._memo[number] = self._stack[-1]

  def get(self, number: int) -> None:
    self.push(self._memo[number])

  def push_class(self, module: str, name: str) -> None:
    if not (type(module) is type(name) is str):
      raise Damaged("it asks for a class without a name")
    self.push(self._find(module, name), _ENTRY)

  def push_persistent(self, it: Any) -> None:
    self.push(self._persistent(it), _ENTRY)

  def reduce(self, _: None) -> None:
    """Calls a function of `find`."""
    function, arguments = self.pop_last(2)
    if type(arguments) is not tuple or not callable(function):
      raise Damaged("it calls an object that is not a function")
    # Functions iterate over their arguments, again at each call.
    sized = [each for each in arguments if type(each) in _SIZES]
    self._budget.spend(_SLOT * sum(map(len, sized)))
    made = function(*arguments)
    self.push(made, _SLOT + sys.getsizeof(made))
    if type(made) in _SIZES or type(made) is Dict:
      self._budget.deepen(made, made.values() if type(made) is Dict else made)

  def build(self, _: None) -> None:
    """Discards the state of the object below, which ours do not have."""
    self.pop()
    if not isinstance(self._stack[-1], (Dict, Inert)):
      raise Damaged("it sets the state of an object that has none")


_NUMBERS = "NONE INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT"
_TEXTS = (
  "UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8"
  " BINBYTES SHORT_BINBYTES BINBYTES8"
)
# Of machine and argument, by the names in `pickletools`.
_OPCODES: Mapping[str, Callable[[_Machine, Any], None]] = {
  **dict.fromkeys(("PROTO", "FRAME"), lambda machine, _: None),
  **dict.fromkeys(f"{_NUMBERS} {_TEXTS}".split(), _Machine.push_value),
  **dict.fromkeys(
    ("STRING", "BINSTRING", "SHORT_BINSTRING"), _Machine.push_string
  ),
  "NEWTRUE": lambda machine, _: machine.push(True),
  "NEWFALSE": lambda machine, _: machine.push(False),
  "EMPTY_TUPLE": lambda machine, _: machine.push_container(tuple),
  "EMPTY_LIST": lambda machine, _: machine.push_container(list),
  "EMPTY_DICT": lambda machine, _: machine.push_container(dict),
  "EMPTY_SET": lambda machine, _: machine.push_container(set),
  "TUPLE": lambda m, _: m.push_container(tuple, m.pop_marked()),
  "TUPLE1": lambda m, _: m.push_container(tuple, m.pop_last(1)),
  "TUPLE2": lambda m, _: m.push_container(tuple, m.pop_last(2)),
  "TUPLE3": lambda m, _: m.push_container(tuple, m.pop_last(3)),
  "LIST": lambda m, _: m.push_container(list, m.pop_marked()),
  "FROZENSET": lambda m, _: m.push_container(frozenset, m.pop_marked()),
  "DICT": lambda m, _: m.push_dict(m.pop_marked()),
  "APPEND": lambda m, _: m.add(m.pop_last(1)),
  "APPENDS": lambda m, _: m.add(m.pop_marked()),
  "ADDITEMS": lambda m, _: m.add(m.pop_marked()),
  "SETITEM": lambda m, _: m.set_items(m.pop_last(2)),
  "SETITEMS": lambda m, _: m.set_items(m.pop_marked()),
  "MARK": _Machine.mark,
  "POP": _Machine.drop,
  "POP_MARK": lambda machine, _: machine.pop_marked(),
  **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _Machine.put),
  "MEMOIZE": lambda machine, _: machine.put(len(machine._memo)),
  **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _Machine.get),
  "GLOBAL": lambda machine, names: machine.push_class(*names.split(" ", 1)),
  "STACK_GLOBAL": lambda machine, _: machine.push_class(*machine.pop_last(2)),
  **dict.fromkeys(("REDUCE", "NEWOBJ"), _Machine.reduce),
  "BUILD": _Machine.build,
  "PERSID": _Machine.push_persistent,
  "BINPERSID": lambda machine, _: machine.push_persistent(machine.pop()),
}
