"""TPU v5e, 16 GiB per chip."""

from configs.hardware._tpu import adapt  # noqa: F401

MEMORY_GIB = 16
