"""seer_jax: SEER, self-supervised vision on uncurated images, in JAX.

Arrays carry their shape in their name, and nowhere else. The letters:

  B  images in a batch          V  crops (views) of one image
  N  rows, N = B * V            H, W, C  height, width, channels
  D  trunk features             P  projection (the head's output)
  K  prototypes                 Q  queue entries
  A  crops that assign codes    L  labels

So `crops_BxVxHxWxC`, `z_NxP`, `scores_BxVxK`, `codes_BxAxK`. Rows are laid out
image by image (`B` first): the crops of one image stay on one device.
"""

import importlib

__version__ = "0.1.0"

# What users call, and where it is.
_MODULES = {
  "load": "seer_jax.weights.load",
  "embed": "seer_jax.apps.embedding.embed",
  "Index": "seer_jax.apps.collection.search",
  "cluster": "seer_jax.apps.collection.cluster",
}


def __getattr__(name: str):
  # Lazily: workers of the input import this package, and must not import JAX.
  if name in _MODULES:
    return getattr(importlib.import_module(_MODULES[name]), name)
  raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
