"""NVIDIA V100, 32 GB: SEER's own. No bf16; fp16 needs a loss scale."""

MEMORY_GIB = 32


def adapt(config):
  config.precision = "fp16"
  config.model.scan = False
