"""VISSL's linear probes, behind SEER's tables: linear_vissl.py:DATASET.

    seer-jax eval seer_32 --evals linear --linear configs/linear_vissl.py \
      --train ~/imagenet/train --test ~/imagenet/val

Heads with BatchNorm on taps averaged to grids, SGD with Nesterov momentum at
0.01 for 256 images, trained jointly; no labels are held out. SEER's taps:

    RG-32   ("res4:7x1", "res5:3x1", "avgpool")
    RG-128  ("res4:3x1", "res5:2x1", "avgpool")
    RG-256  ("res4:2x1", "res5:1x2", "avgpool")
    RG-10B  ("res4:2x1", "res4:1x2", "res5:2x1", "res5:1x2", "avgpool")

Expected on ImageNet: 74.0 (RG-32, res5), 76.0 (RG-128, avgpool), 77.5 (RG-256,
avgpool), 79.8 (RG-10B, res4). RG-32 needs about 28 epochs of a forward pass,
1.2e18 multiplications; not yet run.
"""

from seer_jax import config as config_lib

# Epochs, and the epochs at which the rate falls to a tenth.
_STEPPED = {
  "imagenet": (28, (8, 16, 24)),
  "places205": (14, (4, 8, 12)),
  "inaturalist18": (84, (24, 48, 72)),
  "iwildcam": (84, (24, 48, 72)),
  # Caltech101, CIFAR, DTD, EuroSAT, FGVC, Food101, Flowers, Pets and others.
  "small": (28, (8, 16, 24)),
}
# Epochs, rate and weight decay of recipes with a cosine to a hundredth.
_COSINE = {
  "clevr_count": (50, 0.01, 5e-4),
  "clevr_dist": (100, 0.01, 5e-4),
  "ucf101": (50, 0.01, 0.01),
  "patch_camelyon": (28, 0.003, 5e-4),
}


def get_config(dataset="imagenet"):
  known = (*_STEPPED, *_COSINE)
  if dataset not in known:
    raise ValueError(f"no probe of {dataset!r}; there are {', '.join(known)}")
  config = config_lib.labelled()
  config.task = "probe"
  config.batch_size = 256
  config.probe.taps = ("res4:2x1", "res5:1x2", "avgpool")
  config.probe.norms = (True, False)
  config.probe.rates = (1.0,)
  config.probe.held_out = 0.0
  config.optim.lr, config.optim.weight_decay = 0.01, 5e-4
  if dataset in _STEPPED:
    epochs, milestones = _STEPPED[dataset]
    config.optim.milestones = tuple(each / epochs for each in milestones)
  else:
    epochs, rate, decay = _COSINE[dataset]
    config.optim.lr, config.optim.weight_decay = rate, decay
    config.optim.end = 0.01
  config.epochs = float(epochs)
  if dataset == "small":
    # Small images are resized to 224, and neither cropped nor flipped.
    config.crops.scales, config.crops.ratio = ((1.0, 1.0),), (1.0, 1.0)
    config.augment.flip = 0.0
    config.eval.resize = config.eval.size = 224
  return config
