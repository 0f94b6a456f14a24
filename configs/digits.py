"""SwAV on 1,797 handwritten digits: the whole of SEER in two minutes.

Data: part of scikit-learn, no download. Two CPU cores.
Expected: kNN (k = 20) of trunk features from 0.85 untrained to 0.98 trained,
above raw pixels; loss / ln K below 0.5. Batches are small and the rate is high
because the run is short: LARC's progress is the number of steps times the rate.

    python -m seer_jax.main --config configs/digits.py --workdir runs/digits
"""

from seer_jax import config as config_lib


def get_config():
  config = config_lib.base()
  config.data.train.kind = "digits"
  config.data.train.split = "train"
  config.data.test.kind = "digits"
  config.data.test.split = "test"
  config.steps = 1400
  config.batch_size = 64

  # Two views; digits are 8 x 8, have no color, and must not be mirrored.
  # Writers differ in the width of digits and in the pen: hence the ratio and
  # the blur.
  config.crops.counts = (2,)
  config.crops.sizes = (12,)
  config.crops.scales = ((0.5, 1.0),)
  config.crops.ratio = (5 / 9, 9 / 5)
  config.augment.flip = 0.0
  config.augment.brightness = 0.2
  config.augment.contrast = 0.2
  config.augment.saturation = 0.0
  config.augment.hue = 0.0
  config.augment.grey = 0.0
  config.augment.blur = 0.8

  # Depth, w_0, w_a, w_m, group width: stages of 1, 1 and 3 blocks.
  config.model.regnet = (5, 32, 32.0, 2.0, 16)
  config.model.stem_stride = 1
  config.model.strides = (1, 2, 2)
  config.model.head.hidden = (256,)
  config.model.head.out = 64
  config.model.prototypes = (30,)

  config.swav.epsilon = 0.03
  config.swav.instance_weight = 1.0
  config.swav.freeze_steps = 20
  config.swav.queue_length = 0
  config.optim.lr = 4.8
  config.optim.warmup_fraction = 0.03
  config.eval.every = 280
  config.checkpoint.every = 350
  return config
