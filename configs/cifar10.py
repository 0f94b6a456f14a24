"""SwAV on CIFAR-10's 50,000 training images, as a folder of JPEGs.

Data: train/CLASS/*.jpg and test/CLASS/*.jpg. Ten epochs, an hour of one CPU
core. Only the kNN check uses labels. Expected: kNN (k = 20) 0.63, linear 0.66
(docs/learning.md).

    python -m seer_jax.main --config configs/cifar10.py \
      --config.data.train.path=~/cifar10 --config.data.test.path=~/cifar10 \
      --workdir runs/cifar10
"""

from seer_jax import config as config_lib


def get_config():
  config = config_lib.base()
  config.data.train.split = "train"
  config.data.test.kind = "folder"
  config.data.test.split = "test"
  config.epochs = 10.0
  config.batch_size = 128

  config.crops.counts = (2,)
  config.crops.sizes = (32,)
  config.crops.scales = ((0.15, 1.0),)
  # Usual for 32 px: a milder jitter, and no blur.
  config.augment.brightness = 0.4
  config.augment.contrast = 0.4
  config.augment.saturation = 0.4
  config.augment.hue = 0.1
  config.augment.blur = 0.0

  # Few channels at 16 px, where they are expensive; many at 4 px.
  config.model.depths = (1, 1, 2)
  config.model.widths = (64, 160, 384)
  config.model.group_widths = (16, 16, 16)
  config.model.stem_stride = 2
  config.model.strides = (1, 2, 2)
  config.model.head.hidden = (512,)
  config.model.head.out = 128
  config.model.prototypes = (128,)

  config.swav.epsilon = 0.03
  # Ten epochs are a short run: docs/learning.md.
  config.swav.instance_weight = 4.0
  config.swav.instance_temperature = 0.1
  config.swav.freeze_steps = 100
  config.swav.queue_length = 0
  config.optim.lr = 3.0
  config.optim.warmup_fraction = 0.05
  config.eval.every = 400
  config.eval.knn_k = (20, 200)
  return config
