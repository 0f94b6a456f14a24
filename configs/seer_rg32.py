"""SEER RG-32: RegNetY-32GF, 141 million parameters, 244,000 steps of 4,096.

Goyal et al. 2021; the head has BatchNorm, like those of all SEER's trunks up to
this size. Batch and length as in the name of the released file; the warm-up is
RG-256's. BatchNorm over 64 of (assumed) 128 GPUs. Run as `seer_rg256.py`.
"""

from configs import hardware, seer_rg256


def get_config(chip=""):
  config = seer_rg256.get_config()
  config.batch_size = 4096
  config.steps = 244_000
  config.model.trunk = "regnety_32gf"
  config.model.bn_groups = 2
  config.model.head.hidden = (4096, 4096)
  config.model.head.batch_norm = True
  config.optim.warmup_fraction = 8_000 / 244_000
  config.optim.warmup_start = 0.3 / 4.8  # Of 8 GPUs with 32 images each.
  hardware.apply(config, chip, parameters=178.5e6)
  return config
