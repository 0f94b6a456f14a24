"""Images to test with, folders of them, and a short run on such a folder."""

import io
import pathlib

import cv2
import numpy as np

from configs import folder

PHOTOS = pathlib.Path(__file__).parents[2] / "shared" / "data" / "photos.tar"


def scene(height: int = 40, width: int = 60) -> np.ndarray:
  """A smooth picture in which no two corners look alike."""
  noise = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
  return cv2.resize(noise, (width, height), interpolation=cv2.INTER_LINEAR)


def encode(extension: str, image: np.ndarray, *options: int) -> bytes:
  if image.ndim == 3:
    image = image[..., [2, 1, 0, 3][: image.shape[2]]]
  return cv2.imencode(extension, image, options)[1].tobytes()


def pil_bytes(image, kind: str, **options) -> bytes:
  file = io.BytesIO()
  image.save(file, kind, **options)
  return file.getvalue()


def plant(path: pathlib.Path, count: int, side: int = 24):
  """A folder of `count` small real-looking JPEGs in two sub-folders."""
  rng = np.random.default_rng(0)
  for i in range(count):
    where = path / ("cats" if i % 2 else "dogs")
    where.mkdir(parents=True, exist_ok=True)
    noise = rng.integers(0, 255, (4, 4, 3), dtype=np.uint8)
    image = cv2.resize(noise, (side, side), interpolation=cv2.INTER_CUBIC)
    cv2.imwrite(str(where / f"{i:03}.jpg"), image)
  return path


def tiny(path: pathlib.Path, **changes):
  config = folder.get_config()
  config.data.train.path = str(path)
  config.steps = 16
  config.batch_size = 8
  config.crops.counts = (2,)
  config.crops.scales = ((0.4, 1.0),)
  config.model.regnet = (1, 16, 16.0, 2.0, 8)
  config.model.strides = (2,)
  config.model.head.hidden = (8,)
  config.model.prototypes = (4,)
  config.log.every = 2
  config.eval.batch_size = 8
  config.mesh.data = 2
  for key, value in changes.items():
    config.update_from_flattened_dict({key.replace("__", "."): value})
  return config
