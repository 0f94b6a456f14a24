"""SwAV on any folder of images, with settings chosen from the images.

Batch, crops, trunk, prototypes, queue and length are chosen from the number and
size of the images and from the hardware. The log has each choice with its
reason, and any key can still be set. Sub-folders serve as labels, but only for
the kNN check.

    python -m seer_jax.main --config configs/folder.py \
      --config.data.train.path=~/photos --workdir runs/photos
"""

from seer_jax import config as config_lib


def get_config():
  config = config_lib.base()
  config_lib.leave_open(
    config, "augment.strength", "swav.epsilon", "swav.instance_weight"
  )
  return config
