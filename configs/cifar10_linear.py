"""Linear probe of configs/cifar10.py's representation: three stages, the mean.

    seer-jax eval runs/cifar10 --evals linear --linear configs/cifar10_linear.py

Expected: docs/results.md. Two CPU cores, 3 minutes.
"""

from seer_jax import config as config_lib


def get_config():
  config = config_lib.labelled()
  config.task = "probe"
  config.epochs = 2.0
  config.batch_size = 256
  config.crops.scales = ((0.5, 1.0),)
  config.optim.lr = 0.1
  config.optim.weight_decay = 0.0
  return config
