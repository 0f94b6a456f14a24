"""Which copies of photographs `seer-jax duplicates` finds, and which it misses.

    python benchmarks/copies.py --weights runs/cifar10 [--data=photos.tar]

Of each photograph five copies are made: saved at quality 50, halved, scaled to
0.3, 20 % brighter, and with 2.5 % cut off at each side. Prints how many of each
kind are in a group with their original, and how many groups hold different
photographs; and one line of JSON.
"""

import argparse
import json
import pathlib
import tarfile
import tempfile

PHOTOS = pathlib.Path(__file__).parents[2] / "shared" / "data" / "photos.tar"
ORIGINAL = "original"


def altered(image):
  """Copies of an image, by name."""
  import cv2

  height, width = image.shape[:2]
  inside = (
    slice(int(0.025 * side), int(0.975 * side)) for side in (height, width)
  )
  area = cv2.INTER_AREA
  return {
    "half": cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=area),
    "0.3": cv2.resize(image, None, fx=0.3, fy=0.3, interpolation=area),
    "brighter": cv2.convertScaleAbs(image, alpha=1.2, beta=10),
    "cut": image[tuple(inside)],
  }


def plant(path, folder):
  """The photographs of a tar and their copies, as PHOTO/KIND.jpg."""
  import cv2
  import numpy as np

  with tarfile.open(path) as tar:
    for member in tar:
      if not member.isfile():
        continue
      data = tar.extractfile(member).read()
      image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
      place = folder / pathlib.Path(member.name).stem
      place.mkdir(parents=True)
      (place / f"{ORIGINAL}.jpg").write_bytes(data)
      low = (cv2.IMWRITE_JPEG_QUALITY, 50)
      cv2.imwrite(str(place / "quality 50.jpg"), image, low)
      for name, copy in altered(image).items():
        cv2.imwrite(str(place / f"{name}.jpg"), copy)


def main() -> None:
  """Prints the table and the line."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--weights", required=True)
  parser.add_argument("--data", type=pathlib.Path, default=PHOTOS)
  options = parser.parse_args()

  from seer_jax.apps.collection import duplicates
  from seer_jax.apps.embedding import embed, embed_folder, embeddings
  from seer_jax.data import sources

  base = pathlib.Path(tempfile.mkdtemp())
  plant(options.data, base / "photos")
  keys = {"kind": "folder", "path": str(base / "photos")}
  weights = embed.open_weights(options.weights)
  source = sources.open_source(keys)
  folder = embed_folder.EmbeddedFolder(
    source, keys, weights, base / "out", embed.Options()
  )
  folder.run()
  found = embeddings.Embeddings(base / "out")
  photos = sorted(path.name for path in (base / "photos").iterdir())
  kinds = sorted(path.stem for path in (base / "photos" / photos[0]).iterdir())
  table = {}
  for name, settings in {
    "10 bits": (10, 0.8, None),
    "7 bits": (7, 0.8, None),
    "10 bits, or embeddings at 0.99": (10, 0.8, 0.99),
  }.items():
    group_of, mixed = {}, 0
    for number, group in enumerate(duplicates.groups(found, *settings)):
      ids = [found.ids[row] for row in (group.keep, *group.others)]
      group_of |= dict.fromkeys(ids, number)
      mixed += len({each.split("/")[0] for each in ids}) > 1
    table[name] = {
      kind: sum(
        group_of.get(f"{photo}/{kind}.jpg", -1)
        == group_of.get(f"{photo}/{ORIGINAL}.jpg", -2)
        for photo in photos
      )
      for kind in kinds
      if kind != ORIGINAL
    }
    shown = ", ".join(f"{kind} {count}" for kind, count in table[name].items())
    print(f"{name}: of {len(photos)} {shown}; {mixed} groups are mixed")
  print(json.dumps(table))


if __name__ == "__main__":
  main()
