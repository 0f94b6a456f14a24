"""How well features find the original of an altered photograph.

    python benchmarks/copy_detection.py --weights runs/cifar10

Of 334 photographs 100 fit the whitening; the others are the database. Queries
are copies of these: saved at JPEG quality 30 and 10, with 80 and 50 % of the
area left, shrunk to a quarter, blurred with a sigma of 2 and 5 pixels, and all
of it at once ("strong": half of the area, a third of the size, quality 20).
Prints mean average precision by kind for the weights, the untrained network,
raw pixels and a perceptual hash, which `seer-jax eval --evals retrieval`
measures on the tables made here.
"""

import argparse
import csv
import pathlib
import tarfile
import tempfile

PHOTOS = pathlib.Path(__file__).parents[2] / "shared" / "data" / "photos.tar"
FOR_WHITENING = 100


def copies(image):
  """(kind, image, JPEG quality) of each altered copy of a BGR image."""
  import cv2

  area = cv2.INTER_AREA
  third = cv2.resize(inner(image, 0.5), None, fx=1 / 3, fy=1 / 3)
  quarter = cv2.resize(image, None, fx=0.25, fy=0.25, interpolation=area)
  yield "jpeg 30", image, 30
  yield "jpeg 10", image, 10
  yield "crop 80 %", inner(image, 0.8), 95
  yield "crop 50 %", inner(image, 0.5), 95
  yield "resized to 1 in 4", quarter, 95
  yield "blur 2", cv2.GaussianBlur(image, (0, 0), 2), 95
  yield "blur 5", cv2.GaussianBlur(image, (0, 0), 5), 95
  yield "strong", cv2.GaussianBlur(third, (0, 0), 1), 20


def inner(image, share):
  """The part of an image with a share of its area, off the center."""
  height, width = image.shape[:2]
  h, w = int(height * share**0.5), int(width * share**0.5)
  top, left = (height - h) // 3, 2 * (width - w) // 3
  return image[top : top + h, left : left + w]


def plant(path, folder):
  """Writes the images and three tables; returns the tables' paths."""
  import cv2
  import numpy as np

  with tarfile.open(path) as tar:
    files = {
      pathlib.Path(member.name).stem: tar.extractfile(member).read()
      for member in tar
      if member.isfile()
    }
  order = np.random.default_rng(0).permutation(sorted(files))
  tables = {"whitening": [], "database": [], "queries": []}
  for at, name in enumerate(order.tolist()):
    which = "whitening" if at < FOR_WHITENING else "database"
    original = folder / which / f"{name}.jpg"
    original.parent.mkdir(parents=True, exist_ok=True)
    original.write_bytes(files[name])
    tables[which].append({"path": original, "label": name})
    if which == "whitening":
      continue
    image = cv2.imdecode(np.frombuffer(files[name], np.uint8), cv2.IMREAD_COLOR)
    for kind, copy, quality in copies(image):
      copied = folder / "queries" / kind / f"{name}.jpg"
      copied.parent.mkdir(parents=True, exist_ok=True)
      cv2.imwrite(str(copied), copy, (cv2.IMWRITE_JPEG_QUALITY, quality))
      row = {"path": copied, "label": name, "kind": kind}
      tables["queries"].append(row)
  for name, rows in tables.items():
    with (folder / f"{name}.csv").open("w", newline="") as file:
      writer = csv.DictWriter(file, rows[0])
      writer.writeheader()
      writer.writerows(rows)
  return [folder / f"{name}.csv" for name in tables]


def main() -> None:
  """Prints the table."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--weights", required=True)
  parser.add_argument("--data", type=pathlib.Path, default=PHOTOS)
  parser.add_argument("--out", type=pathlib.Path, help="keeps images there")
  options, more = parser.parse_known_args()

  from seer_jax import commands

  folder = options.out or pathlib.Path(tempfile.mkdtemp())
  whitening, database, queries = plant(options.data, folder)
  raise SystemExit(
    commands.main(
      [
        *("eval", options.weights, "untrained", "pixels", "phash"),
        *("--evals", "retrieval", "--by", "kind"),
        *("--train", str(database), "--test", str(queries)),
        *("--out", str(folder / "evals")),
        f"--config.eval.retrieval.whiten={whitening}",
        "--config.eval.retrieval.longest=224",
        "--config.eval.retrieval.round_to=16",
        "--config.eval.retrieval.components=128",
        *more,
      ]
    )
  )


if __name__ == "__main__":
  main()
