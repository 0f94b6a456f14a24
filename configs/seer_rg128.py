"""SEER RG-128: RegNetY-128GF, 4,096 images on 128 V100-32GB, 32 each.

Goyal et al. 2021; batch, constant rate and 8,000 steps of warm-up as in the
name of the released file. Length: a billion images. BatchNorm is synchronized
over 64 GPUs, half of the batch. Run as `seer_rg256.py`.
"""

from configs import hardware, seer_rg256


def get_config(chip=""):
  config = seer_rg256.get_config()
  config.batch_size = 4096
  config.steps = 244_140  # 1e9 / 4096.
  config.model.trunk = "regnety_128gf"
  config.model.bn_groups = 2
  # A peak of 4.8, at which the schedule stays.
  config.optim.warmup_fraction = 8_000 / 244_140
  config.optim.warmup_start = 0.3 / 4.8  # Of 8 GPUs with 32 images each.
  config.optim.end = 1.0
  hardware.apply(config, chip, parameters=771e6)
  return config
