"""Collections that are made up: embeddings in groups, of a few pictures."""

import pathlib

import numpy as np
import photos

from seer_jax.apps.embedding import embed, embed_folder, shards
from seer_jax.data import sources


def make(folder: pathlib.Path, count: int, side: int = 48) -> pathlib.Path:
  """Embeddings without weights: `count` rows of twelve pictures, in groups."""
  pictures = photos.plant(folder / "pictures", 12, side)
  keys = {"kind": "folder", "path": str(pictures)}
  source = sources.open_source(keys)
  out = folder / "collection"
  rng = np.random.default_rng(0)
  kind = rng.integers(0, 6, count)
  x = rng.standard_normal((6, 16))[kind] + rng.normal(0, 0.4, (count, 16))
  rows = [
    {
      "id": source.id_of(at % 12) if count == 12 else f"{at:06}",
      "path": source.path_of(at % 12),
      "label": f"kind {kind[at]}" if count < 1000 else None,
      "embedding": x[at],
      "index": at % 12,
      "height": side,
      "width": side,
      "bytes": 1,
      "sha256": "0" * 64,
      "phash": "0" * 16,
    }
    for at in range(count)
  ]
  weights = embed.Weights("none", _NoEncoder(), {})
  kept = embed_folder.EmbeddedFolder(source, keys, weights, out, _OPTIONS)
  report = {"rows": count, "bad": [], "excluded": 0}
  (path,) = embed_folder.shards_of(out, {"shards": 1})
  path.parent.mkdir()
  with path.open("wb") as file:
    shards.write(file, rows, 16, "float32", report)
  kept.run()
  return out


class _NoEncoder:
  preprocessing = embed.preprocessing.Preprocessing()


_OPTIONS = embed.Options()
