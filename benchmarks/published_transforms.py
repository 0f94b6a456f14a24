"""SwAV's input as VISSL's transforms made it: PIL and torchvision, on the host.

What `seer_jax` is measured against, here and in augment_parity_test.py.
"""

import io
import random
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch

_MEAN_3, _STD_3 = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_NMS = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def import_torchvision() -> Any:
  """torchvision, also of a wheel whose compiled part PyTorch cannot load.

  Its detection operators must be known by name before it is imported; nothing
  here calls them.
  """
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    if not hasattr(torch.ops.torchvision, "nms"):
      # Kept for good: operators go with the library that defined them.
      global _library
      _library = torch.library.Library("torchvision", "DEF")
      for name in ("nms", "qnms"):
        _library.define(name + _NMS)
    import torchvision
    import torchvision.transforms
  return torchvision


def multi_crop(
  counts: Sequence[int],
  sizes: Sequence[int],
  scales: Sequence[tuple[float, float]],
) -> Callable[[bytes], list[torch.Tensor]]:
  """An encoded image -> its views, `view_3xSxS` float32, normalised.

  Crop, flip 1/2, colour distortion 0.8/0.8/0.8/0.2 with probability 0.8 and
  grey 0.2, PIL's blur with probability 1/2 and radius 0.1 to 2, tensor,
  normalise.
  """
  from PIL import Image, ImageFilter

  transforms = import_torchvision().transforms

  def blur(view):
    if random.random() >= 0.5:
      return view
    return view.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))

  jitter = transforms.ColorJitter(0.8, 0.8, 0.8, 0.2)
  rest = (
    transforms.RandomHorizontalFlip(),
    transforms.RandomApply([jitter], p=0.8),
    transforms.RandomGrayscale(0.2),
    blur,
    transforms.ToTensor(),
    transforms.Normalize(_MEAN_3, _STD_3),
  )
  views = [
    transforms.Compose([transforms.RandomResizedCrop(size, scale), *rest])
    for count, size, scale in zip(counts, sizes, scales, strict=True)
    for _ in range(count)
  ]

  def transform(data):
    image = Image.open(io.BytesIO(data)).convert("RGB")
    return [view(image) for view in views]

  return transform
