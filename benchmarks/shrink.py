"""Shrinking to 224 px: `resize.shrink` beside OpenCV's area average.

    python benchmarks/shrink.py

As crops of large images are made that are no JPEGs (those are decoded smaller).
One core, the best of seven runs, taken in turn. Prints a table and one line of
JSON.
"""

import json
import time

import cv2
import numpy as np

SIZES = ((375, 500), (750, 1000), (1500, 2000), (3000, 4000), (6000, 8000))
ROUNDS, SIDE = 7, 224


def main() -> None:
  from seer_jax.data import resize

  cv2.setNumThreads(0)
  rng, found = np.random.default_rng(0), []
  print("| pixels | shrink, ms | area average, ms | ratio |")
  print("| --: | --: | --: | --: |")
  for height, width in SIZES:
    noise = rng.integers(0, 256, (height // 20, width // 20, 3), np.uint8)
    image = cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    out = np.empty((SIDE, SIDE, 3), np.uint8)
    best = {"shrink": float("inf"), "area": float("inf")}
    for _ in range(ROUNDS):
      began = time.perf_counter()
      resize.shrink(image, (0, 0, height, width), out)
      between = time.perf_counter()
      cv2.resize(image, (SIDE, SIDE), dst=out, interpolation=cv2.INTER_AREA)
      ended = time.perf_counter()
      best["shrink"] = min(best["shrink"], 1000 * (between - began))
      best["area"] = min(best["area"], 1000 * (ended - between))
    row = {"height": height, "width": width, **best}
    found.append(row)
    print(
      f"| {height} x {width} | {best['shrink']:.1f} | {best['area']:.1f} |"
      f" {best['area'] / best['shrink']:.1f} |"
    )
  print(json.dumps({"benchmark": "shrink", "ms": found}))


if __name__ == "__main__":
  main()
