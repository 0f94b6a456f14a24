"""SEER RG-256: 1.3 billion parameters, a billion images, one epoch.

Goyal et al. 2021, "Self-supervised Pretraining of Visual Features in the Wild";
sizes from VISSL's regnet256Gf_1 and its head with 16,000 prototypes. Published:
512 V100-32GB with 16 images each, 8 days; 84.2 % on ImageNet when fine-tuned.
Epsilon, freeze and augmentation are SwAV's, as the paper does not give them.
BatchNorm is synchronized over 64 GPUs, an eighth of the batch.

Data: unlabelled, a billion images or as many as you have (then also set steps).
Plan before you rent (docs/scale.md):

    seer-jax plan --topology v100:64x8 \
      --config configs/seer_rg256.py:v100
    python -m seer_jax.main --config configs/seer_rg256.py:v100 \
      --config.data.train.path=DIR --workdir runs/rg256
"""

from configs import hardware
from seer_jax import config as config_lib


def get_config(chip=""):
  config = config_lib.base()
  config.batch_size = 8192
  config.steps = 122_070  # 1e9 / 8192.

  config.crops.counts = (2, 4)
  config.crops.sizes = (224, 96)

  config.model.trunk = "seer_256gf"
  config.model.stem_stride = 2
  config.model.strides = (2, 2, 2, 2)
  config.model.bn_groups = 8
  config.model.head.hidden = (8192, 8192)
  config.model.head.out = 256
  config.model.head.batch_norm = False
  config.model.prototypes = (16_000,)

  config.swav.epsilon = 0.05
  config.swav.iterations = 10
  config.swav.freeze_steps = 313
  config.swav.queue_length = 0

  config.optim.name = "larc"
  config.optim.lr = 0.3  # Of 256 images: a peak of 9.6.
  config.optim.warmup_fraction = 8_000 / 122_070
  # VISSL starts at the rate of one node's images: 8 GPUs with 16 each.
  config.optim.warmup_start = 0.15 / 9.6
  config.optim.end = 0.001
  config.optim.weight_decay = 1e-5
  config.checkpoint.every = 100
  hardware.apply(config, chip, parameters=1.431e9)
  return config
