"""Fine-tuning on CIFAR-10, and the same network from scratch.

The number of steps does not depend on the number of labels.

    seer-jax labels runs/cifar10 --finetune configs/cifar10_finetune.py

Expected: docs/results.md. Two CPU cores, 100 seconds per run.
"""

from seer_jax import config as config_lib


def get_config():
  config = config_lib.labelled()
  config.task = "finetune"
  config.steps = 300
  config.batch_size = 128
  config.crops.scales = ((0.4, 1.0),)
  config.optim.lr = 0.2
  config.optim.weight_decay = 5e-4
  config.optim.warmup_fraction = 0.05
  config.finetune.smoothing = 0.1
  return config
