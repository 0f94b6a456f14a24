"""Every key a config may hold, once: its default, its check and the reason.

`eval_keys.py` has those of `eval`; no other file has defaults. A config file
under `configs/` takes `base()`, changes what its experiment needs and returns
it; the command line overrides single keys (`--config.batch_size=128`). An
`Open` key is chosen from the data when the run starts (`auto.py`), and the log
says why.
"""

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

import ml_collections
from ml_collections import config_dict

from seer_jax.config import checks
from seer_jax.config.eval_keys import EVAL
from seer_jax.config.key import Key, Open
from seer_jax.data import sources
from seer_jax.data.storage import read_ahead

ConfigDict = ml_collections.ConfigDict


def _source(prefix: str, **changes: Any) -> dict[str, Key]:
  """The keys of a source of images, which `open_source` checks further."""
  checked = {
    bool: checks.FLAG,
    str: checks.TEXT,
    tuple: checks.SEQUENCE,
    float: checks.AT_LEAST_0,
  }
  checked[int] = checks.AT_LEAST_0
  return {
    f"{prefix}.{key}": Key(value, checked[type(value)])
    for key, value in (sources.DEFAULTS | changes).items()
  }


KEYS: Mapping[str, Key] = {
  # What is learned: "swav", without labels; "probe", linear classifiers on a
  # frozen network; "finetune", the whole network as a classifier.
  "task": Key("swav", checks.one_of("swav", "probe", "finetune")),
  # Weights to start from: anything that seer_jax.load takes; "" for none. They
  # decide the network and the preprocessing.
  "weights": Key("", checks.TEXT),
  # L of classifiers; 0 for as many as the images have labels.
  "classes": Key(0, checks.CLASSES),
  # All randomness follows from this number and the step.
  "seed": Key(0, checks.AT_LEAST_0),
  # Passes over the data; chosen from its size if None.
  "epochs": Open(float, checks.POSITIVE),
  # Number of steps, which takes precedence over epochs.
  "steps": Open(int, checks.POSITIVE),
  # Images per step, over all devices.
  "batch_size": Open(int, checks.POSITIVE),
  # Parts of a batch that are differentiated one after the other, if the whole
  # does not fit; codes are still balanced over the whole.
  "accumulate": Key(1, checks.POSITIVE),
  # Of the trunk and head: "fp32", "bf16" or "fp16" (with a loss scale); None
  # picks what the hardware multiplies natively. The loss is always float32.
  "precision": Open(str, checks.one_of("fp32", "bf16", "fp16")),
  # The first loss scale of fp16, chosen from the batch. One that is too large
  # costs a skipped step per halving.
  "loss_scale.first": Open(float, checks.POSITIVE),
  "loss_scale.growth_steps": Key(2000, checks.POSITIVE),
  # Devices in a mesh of data x fsdp, over which the batch is split; -1 for all.
  "mesh.data": Key(-1, checks.AXIS),
  # Devices over which each large kernel, its gradient and its momentum are
  # split: those of a host, for trunks that do not fit otherwise.
  "mesh.fsdp": Key(1, checks.POSITIVE),
  **_source("data.train"),
  # Labelled images for kNN queries. If it has no kind, a share of the training
  # images is held out, provided that these are labelled.
  **_source("data.test", kind=""),
  # Processes that decode; 0 decodes in threads of the main process; None picks
  # by the number of cores.
  "data.workers": Open(int, checks.AT_LEAST_0, free=True),
  # Images that each of them reads concurrently, ahead of decoding: more where
  # reads take long, as on network file systems.
  "data.reads": Key(read_ahead.READS, checks.between(1, 1024), free=True),
  # Images with more pixels are not decoded: the header of a bomb is honest.
  "data.max_pixels": Key(200_000_000, checks.POSITIVE),
  # Share of the files that may be unusable before the run stops.
  "data.max_bad": Key(0.1, checks.SHARE, free=True),
  # One entry per resolution, largest first: SEER's 2 x 224 + 4 x 96. Scales are
  # areas, as shares of the image's; the ratio is width over height.
  "crops.counts": Key((2, 4), checks.COUNTS),
  "crops.sizes": Open(tuple, checks.COUNTS),
  "crops.scales": Key(((0.14, 1.0), (0.05, 0.14)), checks.AREAS),
  "crops.ratio": Key((3 / 4, 4 / 3), checks.PAIR),
  # SwAV's augmentation. The strength multiplies the ranges of brightness,
  # contrast, saturation and hue; a probability of 0 leaves the operation out.
  "augment.strength": Key(1.0, checks.AT_LEAST_0),
  "augment.flip": Key(0.5, checks.SHARE),
  "augment.jitter": Key(0.8, checks.SHARE),
  "augment.brightness": Key(0.8, checks.AT_LEAST_0),
  "augment.contrast": Key(0.8, checks.AT_LEAST_0),
  "augment.saturation": Key(0.8, checks.AT_LEAST_0),
  "augment.hue": Key(0.2, checks.between(0, 0.5)),
  "augment.grey": Key(0.2, checks.SHARE),
  "augment.blur": Key(0.5, checks.SHARE),
  "augment.mean": Key((0.485, 0.456, 0.406), checks.COLORS),
  "augment.std": Key((0.229, 0.224, 0.225), checks.DEVIATIONS),
  # RandAugment's operations per image and their magnitude, for fine-tuning.
  "augment.randaugment": Key(0, checks.between(0, 8)),
  "augment.magnitude": Key(9.0, checks.between(0, 10)),
  # A name of `architectures.MODELS`, or timm's or torchvision's name of one;
  # chosen from image size and hardware if None.
  "model.trunk": Open(str, checks.TEXT),
  # Depth, w_0, w_a, w_m and group width: take precedence over the name.
  "model.regnet": Key((), checks.REGNET),
  # Blocks, channels and channels per group of each stage: take precedence over
  # both.
  "model.depths": Key((), checks.or_empty(checks.COUNTS)),
  "model.widths": Key((), checks.or_empty(checks.COUNTS)),
  "model.group_widths": Key((), checks.or_empty(checks.COUNTS)),
  "model.se_ratio": Key(0.25, checks.SHARE),
  "model.stem_width": Key(32, checks.POSITIVE),
  # 2 and (2, 2, 2, 2) as published; 1 keeps the pixels of small images.
  "model.stem_stride": Open(int, checks.between(1, 2)),
  "model.strides": Open(tuple, checks.STRIDES),
  # Parts of the batch that BatchNorm normalizes separately (SEER: of 64 GPUs
  # each; RG-10B: of 8).
  "model.bn_groups": Key(1, checks.POSITIVE),
  # Normalize by the running statistics in training too.
  "model.frozen_norms": Key(False, checks.FLAG),
  # What the backward pass recomputes, to save memory: "none", the first blocks
  # ("first-9"), each "block", or each "group" of blocks (regnet.Execution).
  # None picks the least that fits.
  "model.remat": Open(str, checks.REMAT),
  "model.remat_groups": Key((), checks.REMAT_GROUPS),
  # Compile equal blocks as one loop: minutes instead of hours for large trunks
  # on TPUs, slower on CPUs.
  "model.scan": Open(bool, checks.FLAG),
  "model.head.hidden": Key((2048,), checks.or_empty(checks.COUNTS)),
  "model.head.out": Key(128, checks.POSITIVE),
  "model.head.batch_norm": Key(True, checks.FLAG),
  # K of each prototype head; the losses of several heads are averaged.
  "model.prototypes": Open(tuple, checks.PROTOTYPES),
  "swav.temperature": Key(0.1, checks.POSITIVE),
  "swav.epsilon": Key(0.05, checks.POSITIVE),  # SEER-10B: 0.03.
  "swav.iterations": Key(3, checks.AT_LEAST_0),  # SEER: 10.
  # Prototype k gets a share of the crops proportional to (k + 1)^-power; 0, as
  # published, shares them equally.
  "swav.codes_power": Key(0.0, checks.AT_LEAST_0),
  # Crops whose codes the others predict.
  "swav.assign_crops": Key((0, 1), checks.CROPS),
  # Weight of `swav_loss.instance_loss` beside the swapped loss; 0, as
  # published, leaves it out. In short runs it helps before clusters have
  # formed. Images are contrasted with those of the batch; with `accumulate`, of
  # its part.
  "swav.instance_weight": Key(0.0, checks.AT_LEAST_0),
  "swav.instance_temperature": Key(0.2, checks.POSITIVE),
  # Steps for which prototypes keep their initial values (SwAV: 313, an ImageNet
  # epoch).
  "swav.freeze_steps": Open(int, checks.AT_LEAST_0),
  # Features of earlier steps that codes are balanced over too; helps if the
  # batch is smaller than the number of prototypes. 0 for none.
  "swav.queue_length": Open(int, checks.AT_LEAST_0),
  # The step at which the queue starts to fill; it is used once full. Not too
  # early: features of an untrained network do not help.
  "swav.queue_start": Open(int, checks.AT_LEAST_0),
  # Constant learning rate of a linear classifier trained beside SwAV on the
  # labels, for a curve to watch; it changes nothing else. 0 for none.
  "online.lr": Key(0.0, checks.AT_LEAST_0),
  # Outputs of the network, each with its own heads (`heads.tap`); () for all
  # stages and the mean.
  "probe.taps": Key((), checks.or_empty(checks.TAPS)),
  # Heads with a BatchNorm before the linear layer, without, or both.
  "probe.norms": Key((True, False), checks.FLAGS),
  # A copy of each head for each of these factors of the learning rate.
  "probe.rates": Key((0.1, 0.3, 1.0, 3.0, 10.0), checks.FACTORS),
  # Share of the labels held out to choose the head by; 0 reports all heads.
  "probe.held_out": Key(0.1, checks.BELOW_1),
  # "linear" on the trunk, or "swav": on the first layer of the pre-trained
  # projection, with a new BatchNorm (SEER, for few labels).
  "finetune.head": Key("linear", checks.one_of("linear", "swav")),
  # Factors of the head's learning rate and weight decay.
  "finetune.head_rate": Key(1.0, checks.POSITIVE),
  "finetune.head_decay": Key(1.0, checks.AT_LEAST_0),
  # Learning rate of a block, relative to that of the next block.
  "finetune.layer_decay": Key(1.0, checks.UP_TO_1),
  # Probability that an image skips the last block; lower for earlier ones.
  "finetune.drop_path": Key(0.0, checks.BELOW_1),
  "finetune.smoothing": Key(0.0, checks.BELOW_1),  # Of labels.
  # Alpha of mixup and of CutMix, 0 for none; with both, each image gets one.
  "finetune.mixup": Key(0.0, checks.AT_LEAST_0),
  "finetune.cutmix": Key(0.0, checks.AT_LEAST_0),
  # Decay of the moving average that is evaluated; 0 for none. SEER: 0.9999.
  "finetune.ema": Key(0.0, checks.BELOW_1),
  "optim.name": Key("larc", checks.one_of("larc", "lars", "sgd", "adamw")),
  # The peak rate is lr * batch_size / lr_batch. SwAV and SEER: 0.3 for 256.
  "optim.lr": Open(float, checks.POSITIVE),
  "optim.lr_batch": Key(256, checks.POSITIVE),
  # Warm-up as a share of the steps, and its start and the end of the cosine as
  # shares of the peak (SwAV: 0.3 of 4.8).
  "optim.warmup_fraction": Key(0.025, checks.BELOW_1),
  "optim.warmup_start": Key(0.0625, checks.SHARE),
  "optim.end": Key(0.001, checks.SHARE),
  # Instead of warm-up and cosine: shares of the run at which the rate, at its
  # peak from the first step, is multiplied by `step_factor`.
  "optim.milestones": Key((), checks.MILESTONES),
  "optim.step_factor": Key(0.1, checks.WITHIN_1),
  "optim.momentum": Key(0.9, checks.BELOW_1),
  "optim.nesterov": Key(False, checks.FLAG),
  "optim.weight_decay": Key(1e-6, checks.AT_LEAST_0),  # SEER: 1e-5.
  # Whether scales and biases of BatchNorms decay, and biases of other layers.
  "optim.decay_norms": Key(True, checks.FLAG),
  "optim.decay_biases": Key(True, checks.FLAG),
  "optim.trust": Key(0.001, checks.POSITIVE),  # Of LARC and LARS.
  **EVAL,
  "log.every": Key(
    20, checks.POSITIVE
  ),  # Steps between lines of metrics.jsonl.
  # First of three steps to trace with jax.profiler, into `profile/` of the
  # workdir, with a table of where their time went; -1 for none.
  "profile": Key(-1, checks.STEP, free=True),
  # Images that the page of a finished run looks at, for pictures of neighbours,
  # prototypes and a map; 0 leaves pictures out. On CPUs SEER's networks take
  # seconds per image.
  "report.images": Key(4000, checks.AT_LEAST_0, free=True),
  # Steps between checkpoints; the last step is always saved.
  "checkpoint.every": Key(500, checks.POSITIVE, free=True),
  # Wait until each save is on disk: kill -9 then costs at most `every` steps.
  # Otherwise it is written while training continues, and a kill meanwhile also
  # costs the steps since the previous save: less than twice `every`.
  "checkpoint.wait": Key(False, checks.FLAG, free=True),
  # Checkpoints to keep: the newest; those at multiples of so many steps (0 for
  # none); and of those with an evaluation, the best by a metric.
  "checkpoint.keep": Key(2, checks.POSITIVE, free=True),
  "checkpoint.keep_every": Key(0, checks.AT_LEAST_0, free=True),
  "checkpoint.best": Key(0, checks.AT_LEAST_0, free=True),
  "checkpoint.best_metric": Key("knn/k=20", checks.TEXT, free=True),
  # If saving fails (a full disk), training continues until this many times
  # `every` steps would be lost.
  "checkpoint.risk": Key(10.0, checks.POSITIVE, free=True),
  # After this many steps in a row with a loss or gradient that is not finite,
  # none of which is applied, the run goes back to its last checkpoint and skips
  # the images seen since. If that happens again before the next checkpoint, it
  # ends. 0 ends at the first such step.
  "rollback.after": Key(10, checks.AT_LEAST_0, free=True),
  # Seconds that the loop may stay in one activity (a step, an evaluation)
  # before the run counts as stuck and ends; four times as long where something
  # compiles. 0 waits forever.
  "watchdog": Key(1800.0, checks.AT_LEAST_0, free=True),
}


def base() -> ConfigDict:
  """All keys, with SwAV's and SEER's published values where there are any."""
  config = ConfigDict()
  for name, key in KEYS.items():
    *parents, last = name.split(".")
    part = config
    for parent in parents:
      if parent not in part:
        part[parent] = ConfigDict()
      part = part[parent]
    # A placeholder is a reference, which two configs must not share.
    part[last] = config_dict.placeholder(key.kind) if key.kind else key.default
  return config


def leave_open(config: ConfigDict, *keys: str) -> None:
  """Has keys chosen by `auto`, although `base` has the published values."""
  for key in keys:
    put(config, key, config_dict.placeholder(kind(key)))


def labelled() -> ConfigDict:
  """`base`, changed for tasks that learn from labels.

  One random-resized crop of each image and a flip, SGD as in VISSL's
  benchmarks, and accuracy as the metric.
  """
  config = base()
  config.crops.counts = (1,)
  config.crops.scales = ((0.08, 1.0),)
  config.augment.jitter = config.augment.grey = config.augment.blur = 0.0
  config.optim.name = "sgd"
  config.optim.nesterov = True
  config.optim.decay_norms = False
  config.optim.warmup_fraction = 0.0
  config.eval.evals = ("accuracy",)
  return config


def source() -> ConfigDict:
  """A part of a mixture: `sources.DEFAULTS` has the keys and reasons."""
  return ConfigDict(sources.DEFAULTS)


def flatten(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
  """Dotted keys and their values, in order."""
  for key, value in config.items():
    if isinstance(value, ConfigDict):
      yield from flatten(value, f"{prefix}{key}.")
    else:
      yield prefix + key, value


def nearest_key(config: ConfigDict, key: str) -> str | None:
  """The known dotted key that is closest to a misspelt one, if any is."""
  known = [name for name, _ in flatten(config)]
  tail = {name.rsplit(".", 1)[-1]: name for name in known}
  close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
  if close:
    return close[0]
  close = difflib.get_close_matches(key.rsplit(".", 1)[-1], tail, n=1)
  return tail[close[0]] if close else None


def kind(key: str) -> type | None:
  """The type of a dotted key's values; None if there is no such key."""
  *parts, last = key.split(".")
  config = base()
  for part in parts:
    config = config.get(part, ConfigDict())
  return config.get_type(last) if last in config else None


def get(config: ConfigDict, key: str) -> Any:
  """The value at a dotted key."""
  for part in key.split("."):
    config = config[part]
  return config


def put(config: ConfigDict, key: str, value: Any) -> None:
  """Sets the value at a dotted key."""
  *parents, last = key.split(".")
  for part in parents:
    config = config[part]
  config[last] = value
