"""TPU v4, 32 GiB per chip."""

from configs.hardware._tpu import adapt  # noqa: F401

MEMORY_GIB = 32
