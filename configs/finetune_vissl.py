"""VISSL's and SwAV's full fine-tuning, behind SEER's tables: file.py:RECIPE.

    seer-jax eval seer_256 --evals finetune \
      --finetune configs/finetune_vissl.py:seer --train ~/imagenet/train \
      --test ~/imagenet/val

| recipe | is |
| --- | --- |
| seer | SEER's on ImageNet: 35 epochs, SwAV's augmentation (84.2 %) |
| seer_384 | that of the released weights: 384 px, bicubic, only flips |
| seer_384_swav | with color distortion and blur too (tricks_384_swav) |
| imagenet | VISSL's base: 105 epochs, a tenth at 30, 60, 90, 100 |
| cosine | 100 epochs of a cosine, without decay of biases |
| two_rates | trunk and head with different rates |
| inaturalist18, places205, small | other data sets |
| geolocation | cells of the Earth (MP-16): 15 epochs |
| semisup | SEER's 1 % and 10 %: 70 epochs, the projection's first layer |
| swav_1percent, swav_10percent | SwAV's own: 20 epochs, a rate for the head |
| strong | mixup 0.8, CutMix 1, RandAugment, EMA, stochastic depth |

For 1 % and 10 % of the labels use `--evals finetune@1%`, or the published lists
with `--config.data.train.only=FILE`. Expected with RG-256: 84.2 (seer), 60.5
and 77.9 (semisup with 1 % and 10 %). Not yet run: it needs a cluster.
"""

from seer_jax import config as config_lib


def get_config(recipe="seer"):
  config = config_lib.labelled()
  config.task = "finetune"
  config.batch_size = 256
  config.crops.sizes = (224,)
  config.eval.size, config.eval.resize = 224, 256
  config.optim.weight_decay = 0.0
  if recipe not in _RECIPES:
    raise ValueError(f"no recipe {recipe!r}; there are {', '.join(_RECIPES)}")
  _RECIPES[recipe](config)
  return config


def _stepped(config, epochs, rate, *milestones):
  config.epochs, config.optim.lr = float(epochs), rate
  config.optim.milestones = tuple(each / epochs for each in milestones)


def _of_swav(config):
  """SwAV's color jitter and blur, on one crop."""
  config.augment.jitter, config.augment.grey = 0.8, 0.2
  config.augment.blur = 0.5


def _at_384(config):
  config.crops.sizes = (384,)
  config.eval.size = config.eval.resize = 384
  config.eval.interpolation = "bicubic"


def _seer(config):
  _stepped(config, 35, 0.0125, 30)
  config.optim.weight_decay = 1e-4
  _of_swav(config)


def _seer_384(config):
  _imagenet(config)
  _at_384(config)


def _seer_384_swav(config):
  _seer_384(config)
  _of_swav(config)


def _imagenet(config):
  _stepped(config, 105, 0.1, 30, 60, 90, 100)


def _cosine(config):
  config.epochs = 100.0
  config.optim.lr, config.optim.lr_batch = 0.5, 512
  config.optim.end = 1e-6
  config.optim.decay_biases = False


def _two_rates(config):
  _imagenet(config)
  config.optim.weight_decay = 1e-4
  config.finetune.head_decay = 0.01  # 1e-6.


def _inaturalist18(config):
  _stepped(config, 24, 0.1, 7, 14, 21)


def _geolocation(config):
  _stepped(config, 15, 0.1, 4, 8, 12, 13, 14)
  config.optim.weight_decay = 1e-4


def _semisup(config):
  _stepped(config, 70, 0.05, 30)
  config.finetune.head = "swav"


def _swav(config, trunk, head):
  _stepped(config, 20, trunk, 12, 16)
  config.optim.step_factor = 0.2
  config.optim.nesterov = False
  config.optim.decay_norms = True
  config.finetune.head_rate = head / trunk


def _swav_1percent(config):
  _swav(config, 0.02, 5.0)


def _swav_10percent(config):
  _swav(config, 0.01, 0.2)


def _strong(config):
  config.epochs = 100.0
  config.optim.lr, config.optim.warmup_fraction = 0.1, 0.05
  config.optim.weight_decay = 5e-5
  config.augment.randaugment = 2
  config.finetune.mixup, config.finetune.cutmix = 0.8, 1.0
  config.finetune.smoothing = 0.1
  config.finetune.ema = 0.9999
  config.finetune.drop_path = 0.1
  config.finetune.layer_decay = 0.9


_RECIPES = {
  "seer": _seer,
  "seer_384": _seer_384,
  "seer_384_swav": _seer_384_swav,
  "imagenet": _imagenet,
  "cosine": _cosine,
  "two_rates": _two_rates,
  "inaturalist18": _inaturalist18,
  "places205": _imagenet,
  "small": _imagenet,
  "geolocation": _geolocation,
  "semisup": _semisup,
  "swav_1percent": _swav_1percent,
  "swav_10percent": _swav_10percent,
  "strong": _strong,
}
