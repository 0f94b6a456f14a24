"""A table of CIFAR-10's test images with groups to split figures by.

    python benchmarks/groups.py ~/cifar10/test groups.csv

Columns: path, label (the folder), kind (animal or vehicle), and thirds of the
mean brightness, the mean saturation (`color`) and the variance of the Laplacian
(`detail`) as low, medium and high. `seer-jax eval --test groups.csv --by kind`
then splits its figures (docs/results.md).
"""

import csv
import pathlib
import sys

ANIMALS = {"bird", "cat", "deer", "dog", "frog", "horse"}
THIRDS = ("low", "medium", "high")


def measured(path):
  """(brightness, saturation, detail) of an image."""
  import cv2

  image = cv2.imread(str(path))
  grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
  saturation = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)[..., 1]
  detail = cv2.Laplacian(grey, cv2.CV_64F).var()
  return image.mean(), saturation.mean(), detail


def main() -> None:
  """Writes the table."""
  import numpy as np

  folder, out = map(pathlib.Path, sys.argv[1:])
  paths = sorted(folder.expanduser().glob("*/*.jpg"))
  values = np.array([measured(path) for path in paths])
  bounds = np.quantile(values, (1 / 3, 2 / 3), axis=0)
  with out.open("w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(("path", "label", "kind", "brightness", "color", "detail"))
    for path, of_image in zip(paths, values, strict=True):
      label = path.parent.name
      kind = "animal" if label in ANIMALS else "vehicle"
      thirds = [THIRDS[n] for n in (of_image >= bounds).sum(0)]
      writer.writerow((path.absolute(), label, kind, *thirds))
  print(f"{out}: {len(paths)} images")


if __name__ == "__main__":
  main()
