"""Images side by side: one HTML file that opens in any browser."""

import base64
import concurrent.futures
import html
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import cv2
import numpy as np

from seer_jax.apps.collection import cluster, kmeans
from seer_jax.apps.embedding import embeddings
from seer_jax.data import crops, preprocessing
from seer_jax.runtime import errors

# Pixels of a thumbnail's longer side, and its JPEG quality.
SIDE, _QUALITY = 160, 80

_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --text: #1b1b1b; --back: #fff;
  --quiet: #595959; --card: #f2f2f2; }}
@media (prefers-color-scheme: dark) {{ :root {{ --text: #ececec;
  --back: #161616; --quiet: #a8a8a8; --card: #262626; }} }}
body {{ font: 15px/1.45 system-ui, sans-serif; color: var(--text);
  background: var(--back); margin: 1.5rem auto; max-width: 76rem;
  padding: 0 1rem; }}
h1 {{ font-size: 1.4rem; }} h2 {{ font-size: 1.1rem; margin: 2rem 0 .5rem; }}
p {{ color: var(--quiet); max-width: 45rem; }}
ul {{ display: grid; gap: .6rem; list-style: none; padding: 0;
  grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr)); }}
li {{ background: var(--card); border-radius: .4rem; overflow: hidden; }}
img {{ display: block; width: 100%; height: 8.5rem; object-fit: cover; }}
div {{ padding: .3rem .5rem; font-size: .8rem; overflow-wrap: anywhere; }}
</style>
<h1>{title}</h1>
<p>{about}</p>
{sections}
</html>
"""


class Section(NamedTuple):
  """Images under a heading."""

  title: str
  rows: Sequence[int]
  captions: Sequence[str]  # One per row.


def page(
  title: str,
  about: str,
  found: embeddings.Embeddings,
  sections: Sequence[Section],
) -> str:
  """A self-contained HTML page; images are small JPEGs."""
  with concurrent.futures.ThreadPoolExecutor() as pool:
    body = [
      f"<h2>{html.escape(section.title)}</h2>\n<ul>\n"
      + "\n".join(
        _item(picture, found.ids[row], caption)
        for picture, row, caption in zip(
          pool.map(lambda row: thumbnail(found, row), section.rows),
          section.rows,
          section.captions,
          strict=True,
        )
      )
      + "\n</ul>"
      for section in sections
    ]
  return _PAGE.format(
    title=html.escape(title), about=html.escape(about), sections="\n".join(body)
  )


def typical(
  clusters: kmeans.Clusters, found: embeddings.Embeddings, most: int = 12
) -> list[Section]:
  """The images nearest to the centre of each cluster."""
  sections = []
  for row in cluster.summary(clusters, found.ids, found.labels):
    rows = np.flatnonzero(clusters.cluster_N == row["cluster"])
    rows = rows[np.argsort(-clusters.similarity_N[rows])][:most]
    label = f", most often {row['label']}" if row.get("label") else ""
    title = f"Cluster {row['cluster']}: {row['size']} images{label}"
    sections.append(Section(title, rows, [found.ids[i] for i in rows]))
  return sections


def first_of(
  found: embeddings.Embeddings,
  groups: Mapping[str, np.ndarray],
  confidence_N: np.ndarray,
  most: int = 48,
) -> list[Section]:
  """The first rows of each group, with their probabilities."""
  return [
    Section(
      f"{name}: {len(rows)} images",
      rows[:most],
      [f"{confidence_N[row]:.2f}  {found.ids[row]}" for row in rows[:most]],
    )
    for name, rows in groups.items()
  ]


def _item(picture, name, caption):
  name = html.escape(str(name))
  if picture is None:
    image = f"<div>{name} cannot be read any more</div>"
  else:
    data = base64.b64encode(picture).decode()
    image = f'<img alt="{name}" src="data:image/jpeg;base64,{data}">'
  return f'<li title="{name}">{image}<div>{html.escape(caption)}</div></li>'


def thumbnail(
  found: embeddings.Embeddings, row: int, side: int = SIDE
) -> bytes | None:
  """A small JPEG of an image; None if it is missing or excluded by now."""
  try:
    image_HxWx3 = crops.decode(found.image(row), preprocessing.MAX_PIXELS)
  except (OSError, errors.BadImage):
    return None
  return shrunk(image_HxWx3, side)


def shrunk(image_HxWx3: np.ndarray, side: int = SIDE) -> bytes:
  """A JPEG of an image, at most `side` pixels on its longer side."""
  height, width = image_HxWx3.shape[:2]
  scale = min(1, side / max(height, width))
  size = max(1, round(width * scale)), max(1, round(height * scale))
  small = cv2.resize(image_HxWx3, size, interpolation=cv2.INTER_AREA)
  quality = cv2.IMWRITE_JPEG_QUALITY, _QUALITY
  return cv2.imencode(".jpg", small[..., ::-1], quality)[1].tobytes()
