"""SEER RG-10B: ten billion parameters on 496 A100-40GB, 16 images each.

Goyal et al. 2022, "Vision Models Are More Robust And Fair When Pretrained On
Uncurated Images Without Supervision"; VISSL's regnet10B. 126,008 steps of 7,936
images are a billion; the released weights are those of step 124,500. BatchNorm
is synchronized over 8 GPUs. Kernels are split over the 8 GPUs of a host. Blocks
are rematerialized one by one; SEER's groups, ((2,), (7,), (9, 17), ()), keep
the kernels of nine blocks at a time.

Unlike in VISSL, small crops are not padded to 160 px: each resolution passes
the trunk by itself, which saves 43 % of the pixels and keeps padding out of
BatchNorm. Run as `seer_rg256.py`.
"""

from configs import hardware, seer_rg256


def get_config(chip=""):
  config = seer_rg256.get_config()
  config.batch_size = 7936
  config.steps = 126_008
  config.mesh.fsdp = 8
  config.crops.sizes = (160, 96)
  config.model.trunk = "seer_10b"
  config.model.bn_groups = 62
  config.swav.epsilon = 0.03
  config.optim.warmup_fraction = 5_500 / 126_008
  config.optim.warmup_start = 0.15 / 9.3
  hardware.apply(config, chip, parameters=9.629e9)
  return config
