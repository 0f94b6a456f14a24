"""lightly's SwAV on a folder of images: the peer of `learning.py`.

Loss, projection head, prototypes and transform are lightly's own; optimiser,
batch, prototypes and colour jitter are those of its CIFAR-10 benchmark (Adam at
1e-3 for a batch of 128, weight decay 1e-6, a cosine over the run, K = 512,
epsilon 0.05, two crops of 14 % of the area or more, no blur). The trunk is put
together from timm's blocks to the shape of ours. On a CPU: eager mode, channels
last, float32; images are read by PyTorch's loader in as many workers as cores.

Needs `pip install -e '.[parity]'` and `pip install --no-deps lightly
lightning_utilities timm torchvision==0.28.0`.
"""

import math
import os
import pathlib
import time
from typing import Any

import numpy as np
import published_transforms
import torch
import torch.nn.functional as F
from torch import nn

_BATCH, _RATE, _DECAY, _PROTOTYPES = 128, 1e-3, 1e-6, 512


class Network(nn.Module):
  """A RegNet of an architecture of ours, with lightly's head and prototypes."""

  def __init__(self, arch: Any, hidden: int, out: int):
    super().__init__()
    from lightly.models.modules import heads
    from timm.layers import ConvNormAct
    from timm.models import regnet

    norms = {"act_layer": nn.ReLU, "norm_layer": nn.BatchNorm2d}
    layers = [ConvNormAct(3, arch.stem_width, 3, arch.stem_stride, **norms)]
    width = arch.stem_width
    for depth, out_width, stride, group_width in zip(
      arch.depths, arch.widths, arch.strides, arch.group_widths, strict=True
    ):
      layers.append(
        regnet.RegStage(
          depth=depth,
          in_chs=width,
          out_chs=out_width,
          stride=stride,
          dilation=1,
          bottle_ratio=1.0,
          group_size=group_width,
          se_ratio=arch.se_ratio,
          **norms,
        )
      )
      width = out_width
    self.trunk = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    for module in self.trunk.modules():
      if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out")
    self.head = heads.SwaVProjectionHead(width, hidden, out)
    self.prototypes = heads.SwaVPrototypes(out, _PROTOTYPES)

  def forward(self, x):
    """Scores, N x K."""
    return self.prototypes(F.normalize(self.head(self.trunk(x)), dim=1))


def train(config: Any, seconds: float, seed: int):
  """Trains for so long; the last state's features of clean images.

  Args:
    config: of ours: data, crops, trunk and head are taken from it.
    seconds: of training, from the second step on.
    seed: of weights, images and crops.

  Returns:
    Costs by name, and (features_NxD, labels_N) of training and test images.
  """
  published_transforms.import_torchvision()
  from lightly.loss import SwaVLoss

  from seer_jax.models import encoder

  torch.manual_seed(seed)
  head = config.model.head
  network = Network(encoder.architecture(config.model), *head.hidden, head.out)
  network = network.to(memory_format=torch.channels_last)
  root = pathlib.Path(config.data.train.path)
  images = _folder(root / "train", _views(config))
  if config.data.train.only:
    wanted = set(pathlib.Path(config.data.train.only).read_text().split("\n"))
    rows = [
      index
      for index, (path, _) in enumerate(images.samples)
      if str(pathlib.Path(path).relative_to(root / "train")) in wanted
    ]
    images = torch.utils.data.Subset(images, rows)
  loss_of = SwaVLoss()
  optimizer = torch.optim.Adam(network.parameters(), _RATE, weight_decay=_DECAY)
  batches = _endless(images)
  step, began = 0, None
  while True:
    crops, _ = next(batches)
    network.prototypes.normalize()
    scores = [network(_channels_last(crop)) for crop in crops]
    loss = loss_of(scores[:2], scores[2:])
    for group in optimizer.param_groups:
      done = 0 if began is None else (time.perf_counter() - began) / seconds
      group["lr"] = _RATE * (1 + math.cos(math.pi * min(done, 1))) / 2
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    step += 1
    if began is None:
      began = time.perf_counter()
    elif time.perf_counter() - began >= seconds:
      break
  spent = time.perf_counter() - began
  cost = {
    "steps": step,
    "images": step * _BATCH,
    "epochs": step * _BATCH / len(images),
    "seconds": spent,
    "images_per_second": (step - 1) * _BATCH / spent,
    "loss_over_lnk": loss.item() / math.log(_PROTOTYPES),
  }
  sets = [_folder(root / name, _clean(config)) for name in ("train", "test")]
  return cost, [_features(network.trunk, each) for each in sets]


def _folder(path, transform):
  from torchvision import datasets

  return datasets.ImageFolder(path, transform)


def _views(config):
  from lightly.transforms.swav_transform import SwaVTransform

  crops = config.crops
  return SwaVTransform(
    crop_sizes=crops.sizes,
    crop_counts=crops.counts,
    crop_min_scales=[0.14] + [low for low, _ in crops.scales[1:]],
    crop_max_scales=[high for _, high in crops.scales],
    gaussian_blur=0.0,
  )


def _clean(config):
  from torchvision import transforms

  augment = config.augment
  return transforms.Compose(
    [
      transforms.ToTensor(),
      transforms.Normalize(augment.mean, augment.std),
    ]
  )


def _endless(images):
  loader = torch.utils.data.DataLoader(
    images,
    batch_size=_BATCH,
    shuffle=True,
    drop_last=True,
    num_workers=len(os.sched_getaffinity(0)),
    persistent_workers=True,
  )
  while True:
    yield from loader


def _channels_last(x):
  return x.contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def _features(trunk, images):
  trunk.eval()
  loader = torch.utils.data.DataLoader(images, batch_size=500)
  found = [(trunk(_channels_last(x)).numpy(), y.numpy()) for x, y in loader]
  features, labels = zip(*found, strict=True)
  return np.concatenate(features), np.concatenate(labels)
