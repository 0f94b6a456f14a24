"""TPU v5p, 95 GiB per chip."""

from configs.hardware._tpu import adapt  # noqa: F401

MEMORY_GIB = 95
