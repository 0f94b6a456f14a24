"""C++ kernels for what XLA:CPU does slowly: grouped convolution, batch norm.

XLA:CPU has no fast gradient of a grouped convolution, and passes over memory
many times for a batch normalization and its gradient. If a C++ compiler is
installed ($CXX, c++, g++ or clang++), the files of `cpu/` are built once, for
this processor, into the user's cache, and XLA calls them like its own
operations. Without a compiler everything works, more slowly, and takes longer
to compile.
"""

import contextlib
import contextvars
import ctypes
import functools
import logging
import os
import pathlib
import platform
import shutil
import subprocess
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np

from seer_jax.runtime import errors, files

_log = logging.getLogger(__name__)

_FOLDER = pathlib.Path(__file__).with_name("cpu")
_FLAGS = ("-std=c++20", "-O3", "-march=native", "-shared", "-fPIC", "-w")
_OPERATIONS = (
  "SeerGroupedConv",
  "SeerGroupedConvGradients",
  "SeerBatchNorm",
  "SeerBatchNormGradients",
)
# Vectors of the convolution hold channels of one group.
_MULTIPLE = 8
_portable = contextvars.ContextVar("portable", default=False)


@contextlib.contextmanager
def portable() -> Iterator[None]:
  """Inside, traced programs contain only XLA's own operations.

  For programs that leave this process, and for counting operations.
  """
  token = _portable.set(True)
  try:
    yield
  finally:
    _portable.reset(token)


def is_portable() -> bool:
  """Whether `portable` is in effect."""
  return _portable.get()


def can_convolve(x: jax.Array, kernel: jax.Array) -> bool:
  """Whether `grouped_conv` supports such operands."""
  return (
    x.dtype == kernel.dtype == jnp.float32
    and kernel.shape[2] % _MULTIPLE == 0
    and kernel.shape[3] == x.shape[-1]
    and _may_use()
  )


def can_normalize(x: jax.Array) -> bool:
  """Whether `batch_norm` supports such rows, on a single device."""
  return (
    x.dtype == jnp.float32
    and jax.default_backend() == "cpu"
    and jax.sharding.get_abstract_mesh().size <= 1
    and _may_use()
  )


def _may_use():
  return not is_portable() and is_there()


def grouped_conv(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
  """See `grouped_conv.grouped_conv3x3`."""
  images, height, width, channels = x.shape
  y = _like(x, (images, -(-height // stride), -(-width // stride), channels))
  return _call("SeerGroupedConv", y)(x, kernel, stride=np.int64(stride))


def grouped_conv_gradients(
  x: jax.Array, kernel: jax.Array, dy: jax.Array, stride: int
) -> tuple[jax.Array, jax.Array]:
  """Gradients with respect to `x` and `kernel`."""
  call = _call("SeerGroupedConvGradients", (_like(x), _like(kernel)))
  return tuple(call(x, kernel, dy, stride=np.int64(stride)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def batch_norm(
  x: jax.Array,
  around_C: jax.Array,
  scale_C: jax.Array,
  bias_C: jax.Array,
  add: jax.Array | None,
  relu: bool,
  epsilon: float,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Batch normalization over all axes but the last, and what follows it.

  Args:
    x: rows of channels, ... x C.
    around_C: close to the mean; sums are computed around it.
    add: added to the result, in the shape of `x`; or None.
    relu: whether to apply a ReLU, last.

  Returns:
    (in the shape of `x`, mean_C, the biased var_C). No gradient flows through
    mean and variance.
  """
  channel = _like(x, x.shape[-1:])
  call = _call("SeerBatchNorm", (_like(x), channel, channel))
  operands = (x, around_C, scale_C, bias_C) + (() if add is None else (add,))
  return tuple(call(*operands, relu=relu, epsilon=np.float32(epsilon)))


def _batch_norm_forward(x, around_C, scale_C, bias_C, add, relu, epsilon):
  found = batch_norm(x, around_C, scale_C, bias_C, add, relu, epsilon)
  y, mean_C, var_C = found
  return found, (x, y, mean_C, var_C, scale_C, add is not None)


def _batch_norm_backward(relu, epsilon, kept, cotangents):
  x, y, mean_C, var_C, scale_C, added = kept
  channel = _like(scale_C)
  results = (_like(x), channel, channel) + (_like(x),) * added
  call = _call("SeerBatchNormGradients", results)
  dx, dscale_C, dbias_C, *dadd = call(
    x,
    y,
    cotangents[0],
    mean_C,
    var_C,
    scale_C,
    relu=relu,
    epsilon=np.float32(epsilon),
  )
  zero_C = jnp.zeros_like(scale_C)
  return dx, zero_C, dscale_C, dbias_C, dadd[0] if added else None


batch_norm.defvjp(_batch_norm_forward, _batch_norm_backward)


def _like(x, shape=None):
  return jax.ShapeDtypeStruct(x.shape if shape is None else shape, x.dtype)


def _call(name, results):
  return jax.ffi.ffi_call(name, results, vmap_method="sequential")


@functools.cache
def is_there() -> bool:
  """Builds and registers the kernels at the first call; whether it worked."""
  compiler = _compiler()
  if compiler is None:
    _log.info(
      "no C++ compiler found ($CXX, c++, g++, clang++); grouped convolutions"
      " and batch normalizations on the CPU use XLA, which is slower"
    )
    return False
  try:
    library = ctypes.CDLL(str(_built(compiler)))
  except (OSError, subprocess.SubprocessError, errors.UserError) as error:
    _log.warning(
      "%s cannot build the kernels for this CPU; grouped convolutions and batch"
      " normalizations use XLA, which is slower: %s",
      compiler,
      errors.telling_line(getattr(error, "stderr", None) or str(error)),
    )
    return False
  for name in _OPERATIONS:
    handler = jax.ffi.pycapsule(getattr(library, name))
    jax.ffi.register_ffi_target(name, handler, platform="cpu")
  return True


def _compiler():
  named = os.environ.get("CXX")
  for name in (named,) if named else ("c++", "g++", "clang++"):
    if found := shutil.which(name):
      return found
  return None


def _built(compiler):
  """The library, built unless it is cached for these files and processor."""
  sources = sorted(_FOLDER.glob("*.cc"))
  texts = [path.read_bytes() for path in sorted(_FOLDER.iterdir())]
  facts = texts, jaxlib.__version__, compiler, _FLAGS, _processor()
  path = files.cached("kernels", *facts).with_suffix(".so")
  if path.exists():
    return path
  _log.info("building kernels for this CPU, once: %s", path)
  flags = [*_FLAGS, f"-I{jax.ffi.include_dir()}"]
  with files.whole(path) as part:
    subprocess.run(
      [compiler, *flags, f"-o{part}", *map(str, sources)],
      check=True,
      capture_output=True,
      text=True,
      timeout=300,
    )
  return path


def _processor():
  """What `-march=native` depends on."""
  try:
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
  except OSError:
    return platform.processor(), platform.machine()
  wanted = ("model name", "flags", "Features", "CPU part")
  return sorted({line for line in lines if line.startswith(wanted)})
