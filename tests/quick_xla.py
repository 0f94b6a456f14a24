"""XLA options that compile quickly and compute slowly: right for tiny shapes.

A step of the smallest network compiles in 3 s instead of 11, its
initialisation in 1 s instead of 12 (docs/testing.md). The programs are not the
ones that users run: `XLA_FLAGS=--xla_backend_optimization_level=3 pytest` tests
those, and fails where a replay looks for NaN (see below).
"""

import os
from importlib import metadata

LEVEL = "--xla_backend_optimization_level"


def _flags() -> str:
  given = os.environ.get("XLA_FLAGS", "")
  if LEVEL in given:
    return given
  quick = f"{given} {LEVEL}=0"
  # With YNN's fusions (jax 0.10 to 0.12) the mean of a ReLU is finite where the
  # ReLU got NaN, and seer-jax replay finds no image to blame.
  quick += " --xla_cpu_experimental_ynn_fusion_type="
  # Later versions refuse to start with this one.
  if metadata.version("jaxlib").startswith("0.10."):
    quick += " --xla_cpu_use_fusion_emitters=false"
  return quick


FLAGS = _flags()
