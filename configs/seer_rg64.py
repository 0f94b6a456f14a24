"""SEER RG-64: RegNetY-64GF, 276 million parameters in the trunk.

Goyal et al. 2021; head and prototypes as in VISSL's d4920 file. Batch and
schedule were not published: they are RG-32's. Run as `seer_rg256.py`.
"""

from configs import hardware, seer_rg32


def get_config(chip=""):
  config = seer_rg32.get_config()
  config.model.trunk = "regnety_64gf"
  config.model.head.hidden = (8192, 8192)
  config.model.head.batch_norm = False
  hardware.apply(config, chip, parameters=390e6)
  return config
