"""Keeps OpenCV's codecs from writing to standard error.

libjpeg and libpng print what is wrong with an image, without its name, whatever
OpenCV's settings. Bad images are reported by name elsewhere, so these lines are
noise: thousands an hour on uncurated images, in the middle of the progress bar.
"""

import contextlib
import ctypes
import functools
import glob
import mmap
import os
import struct
import sys
import threading

_RELOCATIONS = b".rela.dyn"
# Relocation type of `*slot = address of a symbol`, by ELF's machine number.
_GLOBAL = {62: 6, 183: 1025}  # x86-64: R_X86_64_GLOB_DAT; AArch64's.
_kept = []  # The stream, kept for the life of the process.
# Several decoding threads may call first.
_lock = threading.Lock()


def silence(module: str) -> bool:
  """Redirects the standard error of a module's C code to /dev/null.

  Only that of its own libraries, whose references to `stderr` are changed.
  Everything else in the process (Python, JAX, a crash) writes as before.
  `module` is its `__file__`. Returns whether it worked: on Linux, x86-64 or
  AArch64, with glibc.
  """
  with _lock:
    return _silence(module)


@functools.cache
def _silence(module):
  folder = os.path.dirname(module)
  wheel = glob.glob(
    f"{glob.escape(os.path.dirname(folder))}/opencv_python*.libs"
  )
  done = False
  with contextlib.suppress(OSError, ValueError, KeyError, AttributeError):
    pages = list(_pages())
    bases = {}
    for begin, *_, path in pages:
      if os.path.dirname(path) in (folder, *wheel) and ".so" in path:
        bases.setdefault(path, begin)  # The first page is the file's first.
    for path, base in bases.items():
      for offset in _slots(path):
        done |= _bend(base + offset, pages)
  return done


def _pages():
  """(begin, end, whether it is writable, file) of the mapped memory."""
  with open("/proc/self/maps") as maps:
    for line in maps:
      span, allowed, _, _, _, *path = line.split(maxsplit=5)
      begin, end = (int(each, 16) for each in span.split("-"))
      yield begin, end, "w" in allowed, path[0].strip() if path else ""


def _null_stream():
  """A C variable like `stderr`, of a stream to /dev/null."""
  if _kept:
    return _kept[0]
  fopen = ctypes.CDLL(None).fopen
  fopen.restype = ctypes.c_void_p
  stream = ctypes.c_void_p(fopen(b"/dev/null", b"w"))
  if not stream.value:
    raise OSError("no /dev/null")
  _kept.append(stream)
  return stream


def _slots(library):
  """Offsets of the pointers to `stderr` that the loader sets."""
  with (
    open(library, "rb") as file,
    mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as elf,
  ):
    if elf[:6] != b"\x7fELF\x02\x01" or sys.byteorder != "little":
      return []
    kind = _GLOBAL[struct.unpack_from("<H", elf, 18)[0]]
    sections = _sections(elf)
    symbols, names = sections[b".dynsym"], sections[b".dynstr"]
    found = []
    start, size = sections[_RELOCATIONS]
    for entry in range(start, start + size, 24):
      offset, info, _ = struct.unpack_from("<QQq", elf, entry)
      if info & 0xFFFFFFFF != kind:
        continue
      (name,) = struct.unpack_from("<I", elf, symbols[0] + (info >> 32) * 24)
      name += names[0]
      if elf[name : elf.find(b"\0", name)] == b"stderr":
        found.append(offset)
    return found


def _sections(elf):
  """(start, size) of each section by its name."""
  (table,) = struct.unpack_from("<Q", elf, 40)
  size, count, of_names = struct.unpack_from("<HHH", elf, 58)

  def header(number):
    return struct.unpack_from("<IIQQQQ", elf, table + number * size)

  names = header(of_names)[4]
  found = {}
  for number in range(count):
    name, _, _, _, start, length = header(number)
    name += names
    found[elf[name : elf.find(b"\0", name)]] = start, length
  return found


def _bend(slot, pages):
  """Points a pointer to `stderr` at the null stream; whether it does."""
  writable = [free for start, end, free, _ in pages if start <= slot < end]
  if not writable:
    return False
  pointer = ctypes.c_void_p.from_address(slot)
  null = ctypes.addressof(_null_stream())
  theirs = ctypes.c_void_p.in_dll(ctypes.CDLL(None), "stderr")
  if pointer.value == ctypes.addressof(theirs):
    _write(slot, null, writable[0])
  return pointer.value == null


def _write(slot, value, free):
  """Writes to a page that the loader has usually made read-only."""
  page = mmap.PAGESIZE
  begin = slot // page * page
  protect = ctypes.CDLL(None, use_errno=True).mprotect
  protect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
  if not free and protect(begin, page, mmap.PROT_READ | mmap.PROT_WRITE):
    raise OSError(ctypes.get_errno(), "mprotect")
  ctypes.c_void_p.from_address(slot).value = value
  if not free:
    protect(begin, page, mmap.PROT_READ)
