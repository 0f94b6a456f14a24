"""What libjpeg and libpng say of damaged images is not for standard error."""

import ctypes
import os

import cv2
import numpy as np
import photos
import pytest

from seer_jax.data import crops, quiet_codecs
from seer_jax.runtime import errors

pytestmark = pytest.mark.skipif(
  not quiet_codecs.silence(cv2.__file__), reason="not on this system"
)


def damaged(extension):
  data = bytearray(photos.encode(extension, photos.scene()))
  for at in range(len(data) // 2, len(data) // 2 + 20):
    data[at] = 0xFF
  return bytes(data)


def test_codecs_are_silent_and_nobody_else(capfd):
  for extension in (".jpg", ".png"):
    try:
      crops.decode(damaged(extension), 1 << 20)
    except errors.BadImage as error:
      assert str(error)
  assert capfd.readouterr().err == ""
  libc = ctypes.CDLL(None)
  libc.fputs(b"of C\n", ctypes.c_void_p.in_dll(libc, "stderr"))
  libc.fflush(None)
  os.write(2, b"of Python\n")
  assert capfd.readouterr().err == "of C\nof Python\n"


def test_without_it_they_speak(capfd):
  """Or the test above is one of nothing."""
  libc = ctypes.CDLL(None)
  theirs = ctypes.c_void_p.in_dll(libc, "stderr")
  (stream,) = quiet_codecs._kept
  null, stream.value = stream.value, theirs.value
  try:
    cv2.imdecode(np.frombuffer(damaged(".jpg"), np.uint8), cv2.IMREAD_COLOR)
  finally:
    stream.value = null
  libc.fflush(None)
  assert "Corrupt JPEG data" in capfd.readouterr().err
