"""The crops of a run's first batch, as the network saw them."""

from typing import NamedTuple

import jax
import numpy as np

from seer_jax import tasks
from seer_jax.apps.report.history import History
from seer_jax.data import crops, pipeline
from seer_jax.evals import suite
from seer_jax.runtime import errors
from seer_jax.runtime import mesh as mesh_lib
from seer_jax.tasks.state import key_of


class FirstBatch(NamedTuple):
  """Some images of the first training batch."""

  whole: list[np.ndarray]  # Each image as stored, HxWx3, uint8.
  # Its crops as the network saw them, before normalization.
  views: list[list[np.ndarray]]
  ids: list[str]  # Names of the images.


def first_batch(history: History, count: int) -> FirstBatch:
  """Draws the same crops that the run began with, augmented with the same keys.

  Raises UserError if the images cannot be opened or read here.
  """
  config = history.config
  source = suite.open_source(config, "train")
  source, _ = suite.split(config, source)
  count = min(count, config.batch_size)
  groups = pipeline.crop_groups(config.crops)
  rows, whole, parts, names = [], [], [], []
  for number, at in enumerate(pipeline.indices_of(source, config, 0)[:count]):
    try:
      data = source[at]["image"]
      image_HxWx3 = crops.decode(data, config.data.max_pixels)
      rng = np.random.default_rng((config.seed, number))
      parts.append(
        crops.multi_crop_bytes(
          data, rng, groups, tuple(config.crops.ratio), config.data.max_pixels
        )
      )
    except (OSError, errors.BadImage):
      continue
    rows.append(number)
    whole.append(image_HxWx3)
    names.append(source.id_of(at))
  if not rows:
    raise errors.UserError("no image of the first batch can be read any more")
  keys_B = jax.random.split(
    key_of(config.seed, "augment", 0), config.batch_size
  )
  batch = {
    "crops": tuple(np.stack(group) for group in zip(*parts, strict=True)),
    "keys_B": keys_B[np.array(rows)],
    "label": np.zeros(len(whole), np.int32),
  }
  task = tasks.create(config)
  with jax.set_mesh(mesh_lib.make(data=1, devices=jax.devices()[:1])):
    views = jax.jit(task.view)(batch)
  return FirstBatch(whole, _pixels(views, config), names)


def _pixels(views, config):
  """uint8 crops of each image, of all resolutions."""
  mean, std = np.array(config.augment.mean), np.array(config.augment.std)
  found = [[] for _ in views[0]]
  for view in views:
    pixels = np.asarray(view, np.float32) * std + mean
    pixels = np.clip(pixels * 255 + 0.5, 0, 255).astype(np.uint8)
    for image, crops_VxHxWx3 in enumerate(pixels):
      found[image].extend(crops_VxHxWx3)
  return found
