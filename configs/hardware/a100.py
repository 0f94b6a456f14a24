"""NVIDIA A100, 40 GB: SEER's for its 10B, but in bf16."""

MEMORY_GIB = 40


def adapt(config):
  config.precision = "bf16"
  config.model.scan = False
