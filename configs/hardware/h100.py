"""NVIDIA H100, 80 GB."""

MEMORY_GIB = 80


def adapt(config):
  config.precision = "bf16"
  config.model.scan = False
