"""The classes of ImageNet."""

import functools
from importlib import resources


@functools.cache
def classes() -> tuple[str, ...]:
  """WordNet ids of the 1,000 classes of ILSVRC 2012, in the usual order."""
  folder = resources.files("seer_jax.data.published")
  return tuple((folder / "imagenet_classes.txt").read_text().split())
