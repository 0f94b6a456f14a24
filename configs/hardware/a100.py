"""NVIDIA A100, 40 GB: as SEER's 10B was trained on, but in bf16."""

MEMORY_GIB = 40


def adapt(config):
  config.precision = "bf16"
  config.model.scan = False
