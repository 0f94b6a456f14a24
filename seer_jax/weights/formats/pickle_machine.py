"""Runs a pickle from a stranger: containers, numbers, text, and nothing else.

A pickle is a program. Python's unpickler can be kept from calling foreign code,
not from foreign data: two kilobytes of nested tuples take a minute to hash, a
few megabytes nest deeper than the stack, or fill memory. This interpreter knows
the opcodes that weights need, never recurses, and is bounded by the length of
the pickle. The opcodes are described in Python's `pickletools`.
"""

import pickletools
import sys
from collections.abc import Callable
from typing import Any, BinaryIO

from seer_jax.runtime import errors

# A description of SEER-10B and its optimiser takes a few MiB.
LONGEST = 1 << 26  # Bytes.
_MOST_STEPS = 1 << 23  # Some five seconds.
_DEEPEST = 100
# Bytes of memory for each that was read (PyTorch's own pickles take up to 40);
# some to begin with; and all in all.
_FACTOR, _FREE, _MOST = 64, 1 << 21, 1 << 30
_LARGEST_INTEGER = 1 << 128  # PyTorch's magic number has 77 bits.
# Bytes that they take in Python 3.11, each with a slot on the stack.
_SIZES = {tuple: 48, list: 64, dict: 72, set: 224, frozenset: 224}
_SLOT, _ENTRY = 8, 100  # In a list; in a dict.
_SCALARS = frozenset({str, bytes, int, float, bool, type(None)})


class Damaged(Exception):
  """What is wrong with the pickle."""


class Refused(Exception):
  """What the pickle asks for that it does not get."""


class Dict(dict):
  """An OrderedDict without the attributes that PyTorch gives it."""

  __slots__ = ()


class Inert:
  """Stands for an object that is no weight."""

  __slots__ = ()

  def __init__(self, *args: Any):
    pass


def load(
  file: BinaryIO,
  find: Callable[[str, str], Callable[..., Any]],
  persistent: Callable[[Any], Any],
) -> Any:
  """What the pickle at a file's position makes; leaves the file behind it.

  Raises Damaged if it is no pickle, or is cut off, and Refused if it asks for
  something else, or for too much.

  Args:
    find: gives the function of a module's name and its own; may raise Refused.
      Functions get only what was made here, and check it.
    persistent: gives the object that is stored elsewhere.
  """
  try:
    return _Machine(find, persistent).run(_Limited(file))
  except (IndexError, KeyError, TypeError, ValueError, AttributeError) as error:
    words = errors.shown(f"{type(error).__name__}: {error}")
    raise Damaged(f"its pickle is none ({words})") from error


class _Limited:
  """A file from where it stands, of which not too much is read."""

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


class _Machine:
  """The stack, the marks on it, and what is remembered."""

  def __init__(self, find, persistent):
    self._find, self._persistent = find, persistent
    self._stack: list[Any] = []
    self._marks: list[int] = []
    self._memo: dict[int, Any] = {}
    # Depth of containers that hold others, which are kept for their ids.
    self._depths: dict[int, tuple[int, Any]] = {}
    self._spent = self._read = self._step = 0

  def run(self, pickled: _Limited) -> Any:
    """Executes opcode after opcode."""
    for opcode, argument, at in pickletools.genops(pickled):
      self._read, self._step = at or 0, self._step + 1
      if self._step > _MOST_STEPS:
        raise Refused(f"has a pickle of more than {_MOST_STEPS:,} steps")
      if opcode.name == "STOP":
        return self._pop()
      do = _OPCODES.get(opcode.name)
      if do is None:
        raise Refused(f"uses {opcode.name} of Python's pickles")
      do(self, argument)
    raise Damaged("its pickle has no end")

  def _spend(self, size):
    self._spent += size
    if self._spent > _FREE + min(_FACTOR * self._read, _MOST):
      raise Refused(
        f"takes {self._spent >> 20} MiB of memory for the first"
        f" {self._read:,} bytes of its pickle"
      )

  def _push(self, it, size=_SLOT):
    self._spend(size)
    self._stack.append(it)

  def _push_container(self, it, parts=()):
    self._push(it, _SIZES[type(it)] + _SLOT * (1 + len(parts)))
    self._deepen(it, parts)

  def _pop(self):
    if self._marks and self._marks[-1] >= len(self._stack):
      raise Damaged("its pickle takes more than there is")
    return self._stack.pop()

  def _pop_last(self, count):
    return [self._pop() for _ in range(count)][::-1]

  def _pop_marked(self):
    """All above the last mark."""
    mark = self._marks.pop()
    parts = self._stack[mark:]
    del self._stack[mark:]
    return parts

  def _deepen(self, it, parts):
    """A container got these parts."""
    depth = 1 + max(map(self._depth, parts), default=0)
    if depth > _DEEPEST:
      raise Refused(f"nests containers deeper than {_DEEPEST}")
    if depth > max(1, self._depth(it)):
      self._spend(_ENTRY)
      self._depths[id(it)] = depth, it

  def _depth(self, it):
    if id(it) in self._depths:
      return self._depths[id(it)][0]
    return int(type(it) in _SIZES or type(it) is Dict)

  def _add(self, parts):
    """To the list or the set on top of the stack."""
    target = self._stack[-1]
    self._spend(_ENTRY * len(parts))
    if type(target) is set:
      target.update(map(as_key, parts))
    elif type(target) is list:
      target.extend(parts)
    else:
      raise Damaged("it adds to what is no list")
    self._deepen(target, parts)

  def _set(self, parts):
    """Keys and values, by turns, in the dict on top of the stack."""
    target = self._stack[-1]
    self._spend(_ENTRY * len(parts) // 2)
    if not isinstance(target, dict) or len(parts) % 2:
      raise Damaged("it sets items of what is no dict")
    for key, value in zip(parts[::2], parts[1::2], strict=True):
      target[as_key(key)] = value
    self._deepen(target, parts[1::2])

  # The opcodes, by the names that `pickletools` gives them.

  def do_proto(self, version):
    """Nothing depends on it, nor on the length of a frame."""

  do_frame = do_proto

  def do_mark(self, _):
    self._spend(_ENTRY)
    self._marks.append(len(self._stack))

  def do_pop(self, _):
    if self._marks and self._marks[-1] == len(self._stack):
      self._marks.pop()
    else:
      self._pop()

  def do_pop_mark(self, _):
    self._pop_marked()

  def do_int(self, it):
    """A number, text, bytes or None."""
    if type(it) is int and abs(it) >= _LARGEST_INTEGER:
      raise Refused("holds an integer of more than 128 bits")
    self._push(it, _SLOT + sys.getsizeof(it))

  do_long = do_long1 = do_long4 = do_binint = do_binint1 = do_binint2 = do_int
  do_float = do_binfloat = do_none = do_int
  do_unicode = do_binunicode = do_short_binunicode = do_binunicode8 = do_int
  do_binbytes = do_short_binbytes = do_binbytes8 = do_int

  def do_newtrue(self, _):
    self._push(True)

  def do_newfalse(self, _):
    self._push(False)

  def do_string(self, it):
    """Text of Python 2, which was bytes."""
    self.do_int(it.encode("latin-1").decode("utf-8", "replace"))

  do_binstring = do_short_binstring = do_string

  def do_empty_tuple(self, _):
    self._push_container(())

  def do_empty_list(self, _):
    self._push_container([])

  def do_empty_dict(self, _):
    self._push_container({})

  def do_empty_set(self, _):
    self._push_container(set())

  def do_tuple(self, _):
    self._push_container(parts := tuple(self._pop_marked()), parts)

  def do_tuple1(self, _):
    self._push_container(parts := tuple(self._pop_last(1)), parts)

  def do_tuple2(self, _):
    self._push_container(parts := tuple(self._pop_last(2)), parts)

  def do_tuple3(self, _):
    self._push_container(parts := tuple(self._pop_last(3)), parts)

  def do_list(self, _):
    self._push_container(parts := self._pop_marked(), parts)

  def do_dict(self, _):
    parts = self._pop_marked()
    self._push_container({})
    self._set(parts)

  def do_frozenset(self, _):
    parts = self._pop_marked()
    self._push_container(frozenset(map(as_key, parts)), parts)

  def do_append(self, _):
    self._add(self._pop_last(1))

  def do_appends(self, _):
    self._add(self._pop_marked())

  do_additems = do_appends

  def do_setitem(self, _):
    self._set(self._pop_last(2))

  def do_setitems(self, _):
    self._set(self._pop_marked())

  def do_put(self, number):
    # Nobody writes a higher number than there were steps.
    if number >= self._step:
      raise Damaged(f"it remembers its {number}th thing at step {self._step}")
    self._spend(_ENTRY)
    self._memo[number] = self._stack[-1]

  do_binput = do_long_binput = do_put

  def do_memoize(self, _):
    self.do_put(len(self._memo))

  def do_get(self, number):
    self._push(self._memo[number])

  do_binget = do_long_binget = do_get

  def do_global(self, names):
    module, name = names.split(" ", 1)
    self._push(self._find(module, name), _ENTRY)

  def do_stack_global(self, _):
    module, name = self._pop_last(2)
    if not (type(module) is type(name) is str):
      raise Damaged("it asks for a class without a name")
    self._push(self._find(module, name), _ENTRY)

  def do_reduce(self, _):
    function, arguments = self._pop_last(2)
    if type(arguments) is not tuple or not callable(function):
      raise Damaged("it calls what is no function")
    # Functions look at all that is in them, again at each call.
    sized = [each for each in arguments if type(each) in _SIZES]
    self._spend(_SLOT * sum(map(len, sized)))
    made = function(*arguments)
    self._push(made, _SLOT + sys.getsizeof(made))
    if type(made) in _SIZES or type(made) is Dict:
      self._deepen(made, made.values() if type(made) is Dict else made)

  do_newobj = do_reduce

  def do_build(self, _):
    """State for the object on top: none of ours has any that matters."""
    self._pop()
    if not isinstance(self._stack[-1], (Dict, Inert)):
      raise Damaged("it alters what cannot be altered")

  def do_persid(self, it):
    self._push(self._persistent(it), _ENTRY)

  def do_binpersid(self, _):
    self._push(self._persistent(self._pop()), _ENTRY)


def as_key(it: Any) -> Any:
  """What may be a key, which is hashed: no container, however deep.

  Raises Refused if it is one.
  """
  if type(it) not in _SCALARS:
    raise Refused(f"has a {type(it).__name__} as a key")
  return it


_OPCODES = {
  name.removeprefix("do_").upper(): method
  for name, method in vars(_Machine).items()
  if name.startswith("do_")
}
