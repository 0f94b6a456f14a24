"""SwAV on ImageNet-1k: the baseline of SEER's recipes.

Caron et al. 2020; VISSL's swav_8node_resnet: 64 GPUs with 64 images each, 400
epochs. The trunk is a RegNetY-4.0GF instead of a ResNet-50, with as many
multiply-adds. Published for the ResNet-50: 74.6 % by a linear probe.
BatchNorm is synchronized over 8 GPUs.

Data: TFDS's imagenet2012, prepared with --file_format=array_record.

    python -m seer_jax.main --config configs/swav_imagenet.py:a100 \
      --workdir runs/swav

The default folder is ~/tensorflow_datasets; for another one, give
--config.data.train.path=DIR --config.data.test.path=DIR.
"""

from configs import hardware
from seer_jax import config as config_lib


def get_config(chip=""):
  config = config_lib.base()
  config.data.train.kind = config.data.test.kind = "tfds"
  config.data.train.name = config.data.test.name = "imagenet2012"
  config.data.train.split = "train"
  config.data.test.split = "validation"
  config.epochs = 400.0
  config.batch_size = 4096

  config.crops.counts = (2, 6)
  config.crops.sizes = (224, 96)

  config.model.trunk = "regnety_4.0gf"
  config.model.stem_stride = 2
  config.model.strides = (2, 2, 2, 2)
  config.model.bn_groups = 8
  config.model.head.hidden = (2048,)
  config.model.head.out = 128
  config.model.prototypes = (3000,)

  config.swav.freeze_steps = 313
  config.swav.queue_length = 0
  config.optim.lr = 0.3  # Of 256 images: a peak of 4.8.
  config.optim.warmup_start = 0.6 / 4.8  # That of the 512 images of a node.
  config.eval.every = 12_500
  hardware.apply(config, chip, parameters=24e6)
  return config
