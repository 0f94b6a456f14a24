"""How much of the feature space clean images use; needs no labels."""

from collections.abc import Iterator

from seer_jax import features, health, state


class Spread:
  """Standard deviation and effective rank of trunk features."""

  def __init__(self, extract: features.Extractor, images: features.ImageSet):
    self._extract, self._images = extract, images

  def run(self, now: state.State) -> Iterator[tuple[str, float]]:
    """Yields (`features/std`, ...), (`features/rank`, ...)."""
    yield from health.spread(
      self._extract(now, self._images).features_NxD
    ).items()
