"""Every key a config may hold: its default and the reason.

No default stands anywhere else in the package. A config file under `configs/`
takes `base()`, changes what its experiment needs and returns it; the command
line overrides single keys (`--config.batch_size=128`). A key left at None is
chosen from the data when the run starts (`auto.py`), and the log says why.
"""

import difflib
from collections.abc import Iterator
from typing import Any

import ml_collections
from ml_collections import config_dict

from seer_jax.data import sources
from seer_jax.data.storage import read_ahead

ConfigDict = ml_collections.ConfigDict


def base() -> ConfigDict:
  """All keys, with SwAV's and SEER's published values where there are any."""
  none = config_dict.placeholder
  config = ConfigDict()

  # What is learned: "swav", without labels; "probe", linear classifiers on a
  # frozen network; "finetune", the whole network as a classifier.
  config.task = "swav"
  # Where training begins: anything that seer_jax.load takes; "" for anew. The
  # network and the preprocessing then are those of the weights.
  config.weights = ""
  # L of classifiers; 0 for as many as the images have labels.
  config.classes = 0
  # Everything random follows from this number and the step.
  config.seed = 0
  # Passes over the data; chosen from its size when None.
  config.epochs = none(float)
  # Or the number of steps, which then wins over epochs.
  config.steps = none(int)
  # Images a step, over all devices.
  config.batch_size = none(int)
  # Parts of a batch that are differentiated one after the other, where the
  # whole does not fit; codes are still balanced over the whole.
  config.accumulate = 1
  # Of the trunk and head: "fp32", "bf16" or "fp16" (with a loss scale); None
  # picks what the hardware multiplies natively. The loss is always float32.
  config.precision = none(str)
  config.loss_scale = ConfigDict()  # For fp16.
  # Chosen from the batch. Too large costs a skipped step for each halving.
  config.loss_scale.first = none(float)
  config.loss_scale.growth_steps = 2000

  # Devices in a mesh of data x fsdp. The batch is split over all of them.
  config.mesh = ConfigDict()
  config.mesh.data = -1  # As many as there are.
  # Over how many devices each large kernel, its gradient and its momentum are
  # split: the devices of a host, for trunks that do not fit otherwise.
  config.mesh.fsdp = 1

  config.data = ConfigDict()
  config.data.train = source()
  # Labelled images for kNN queries. With no kind of its own, a held-out share
  # of the training images is used, if these are labelled.
  config.data.test = source()
  config.data.test.kind = ""
  # Processes that decode; 0 decodes in threads of the main process, None
  # picks by the cores there are.
  config.data.workers = none(int)
  # Images that each of them reads at once, ahead of decoding: more where a read
  # takes long, as on network file systems.
  config.data.reads = read_ahead.READS
  # Larger pictures are refused unread (a bomb's header is honest).
  config.data.max_pixels = 200_000_000
  # Share of the files that may be unusable before the run stops.
  config.data.max_bad = 0.1

  # One entry a resolution, largest first: SEER's 2 x 224 + 4 x 96.
  config.crops = ConfigDict()
  config.crops.counts = (2, 4)
  config.crops.sizes = none(tuple)
  config.crops.scales = ((0.14, 1.0), (0.05, 0.14))  # Area, of the image's.
  config.crops.ratio = (3 / 4, 4 / 3)  # Width over height.

  # SwAV's augmentation; a probability of 0 leaves the operation out.
  config.augment = ConfigDict()
  # Of the ranges of brightness, contrast, saturation and hue.
  config.augment.strength = 1.0
  config.augment.flip = 0.5
  config.augment.jitter = 0.8
  config.augment.brightness = 0.8
  config.augment.contrast = 0.8
  config.augment.saturation = 0.8
  config.augment.hue = 0.2
  config.augment.grey = 0.2
  config.augment.blur = 0.5
  config.augment.mean = (0.485, 0.456, 0.406)
  config.augment.std = (0.229, 0.224, 0.225)
  # RandAugment's operations an image, of a magnitude from 0 to 10; for
  # fine-tuning.
  config.augment.randaugment = 0
  config.augment.magnitude = 9.0

  config.model = ConfigDict()
  # A name of `architectures.MODELS`, or timm's or torchvision's for one of
  # them; chosen from image size and hardware when None.
  config.model.trunk = none(str)
  # Or depth, w_0, w_a, w_m, group width, which then win over the name.
  config.model.numbers = ()
  # Or blocks, channels and channels a group of each stage, which win over both.
  config.model.depths = ()
  config.model.widths = ()
  config.model.group_widths = ()
  config.model.se_ratio = 0.25
  config.model.stem_width = 32
  # 2 and (2, 2, 2, 2) as published; 1 keeps the pixels of small images.
  config.model.stem_stride = none(int)
  config.model.strides = none(tuple)
  # Parts of the batch that BatchNorm treats apart (SEER: of 64
  # GPUs each; RG-10B: of 8).
  config.model.bn_groups = 1
  # Normalise by the running statistics in training too.
  config.model.frozen_norms = False
  # What the backward pass computes again, for memory: "none", blocks in front
  # ("first-9"), each "block", or each "group" of blocks (regnet.Execution).
  # None picks the least that fits.
  config.model.remat = none(str)
  config.model.remat_groups = ()
  # Compile equal blocks as one loop: minutes instead of hours for large trunks
  # on TPUs, slower on CPUs.
  config.model.scan = none(bool)
  config.model.head = ConfigDict()
  config.model.head.hidden = (2048,)
  config.model.head.out = 128
  config.model.head.batch_norm = True
  # K of each prototype head; several heads are averaged.
  config.model.prototypes = none(tuple)

  config.swav = ConfigDict()
  config.swav.temperature = 0.1
  config.swav.epsilon = 0.05  # SEER-10B: 0.03.
  config.swav.iterations = 3  # SEER: 10.
  # Crops whose codes the others predict.
  config.swav.assign_crops = (0, 1)
  # Of `swav_loss.instance_loss` beside the swapped one; 0, as published, leaves
  # it out. In a short run it teaches what clusters have no time for. Images are
  # told from those of the batch, with `accumulate` from those of its part.
  config.swav.instance_weight = 0.0
  config.swav.instance_temperature = 0.2
  # Steps for which prototypes stay as drawn (SwAV: 313, an ImageNet epoch).
  config.swav.freeze_steps = none(int)
  # Features of earlier steps that codes are balanced over as well; helps when
  # the batch is smaller than the prototypes. 0 for none.
  config.swav.queue_length = none(int)
  # The step at which the queue starts to fill; it is used once full. Features
  # of an untrained network are no help, so not too early.
  config.swav.queue_start = none(int)

  # A linear classifier trained beside SwAV on the features of labelled images,
  # for a curve to watch; it changes nothing else.
  config.online = ConfigDict()
  config.online.lr = 0.0  # Its constant rate; 0 for none.

  config.probe = ConfigDict()
  # Outputs of the network, each with heads of its own (`heads.tap`); () for
  # all stages and the mean.
  config.probe.taps = ()
  # Heads with a BatchNorm before the linear layer, without, or both.
  config.probe.norms = (True, False)
  # A copy of each head for each of these factors of the learning rate.
  config.probe.rates = (0.1, 0.3, 1.0, 3.0, 10.0)
  # Share of the labels held out to choose the head by; 0 reports all of them.
  config.probe.held_out = 0.1

  config.finetune = ConfigDict()
  # "linear" on the trunk, or "swav": on the first layer of the pre-trained
  # projection, with a new BatchNorm (SEER, for few labels).
  config.finetune.head = "linear"
  config.finetune.head_rate = 1.0  # Of the learning rate.
  config.finetune.head_decay = 1.0  # Of the weight decay.
  # The rate of a block, of that of the block behind it.
  config.finetune.layer_decay = 1.0
  # Probability that an image skips the last block; lower for those before.
  config.finetune.drop_path = 0.0
  config.finetune.smoothing = 0.0  # Of labels.
  # Alpha of mixup and of CutMix; 0 for none, with both one of them an image.
  config.finetune.mixup = 0.0
  config.finetune.cutmix = 0.0
  # Decay of the moving average that is evaluated; 0 for none. SEER: 0.9999.
  config.finetune.ema = 0.0

  config.optim = ConfigDict()
  config.optim.name = "larc"  # Or "lars", "sgd", "adamw".
  # The peak rate is lr * batch_size / lr_batch. SwAV and SEER: 0.3 of 256.
  config.optim.lr = none(float)
  config.optim.lr_batch = 256
  config.optim.warmup_fraction = 0.025  # Of all steps.
  config.optim.warmup_start = 0.0625  # Of the peak: 0.3 of SwAV's 4.8.
  config.optim.end = 0.001  # Of the peak, where the cosine ends.
  # Instead of warm-up and cosine: shares of the run at which the rate, at its
  # peak from the first step, is multiplied by `step_factor`.
  config.optim.milestones = ()
  config.optim.step_factor = 0.1
  config.optim.momentum = 0.9
  config.optim.nesterov = False
  config.optim.weight_decay = 1e-6  # SEER: 1e-5.
  # Whether scales and biases of BatchNorms decay, and biases of other layers.
  config.optim.decay_norms = True
  config.optim.decay_biases = True
  config.optim.trust = 0.001  # LARC's and LARS's.

  config.eval = ConfigDict()
  # Steps between evaluations; 0 evaluates only before the first and after
  # the last.
  config.eval.every = 0
  # What is measured: names of `suite.EVALUATORS`.
  config.eval.evals = ("stats", "knn")
  # Images a clean pass reads at most, of the bank and of the queries alike.
  config.eval.max_images = 50_000
  config.eval.batch_size = 256
  # Clean views: the shorter side, then the centre; chosen from the crops.
  config.eval.resize = none(int)
  config.eval.size = none(int)
  # "bilinear" or "bicubic" are PIL's, bit for bit; "area" averages.
  config.eval.interpolation = "bilinear"
  # Outputs of the network that classifiers of frozen features look at.
  config.eval.taps = ("avgpool",)
  # A grid: kNN for each of these neighbours, temperatures and metrics.
  config.eval.knn_k = (20, 200)
  config.eval.knn_temperature = (0.1,)
  config.eval.knn_metric = ("cosine",)  # And "dot", "euclidean".
  # Labels that logistic regression and SVMs learn from: shares of all, and
  # numbers of each class, drawn with so many seeds.
  config.eval.shares = (1.0,)
  config.eval.shots = ()
  config.eval.seeds = 3
  # Share of the training images held out as queries when there is no test set.
  config.eval.held_out = 0.2

  config.log = ConfigDict()
  config.log.every = 20  # Steps between lines of metrics.jsonl.

  # The step from which three are traced for jax.profiler, into `profile/` of
  # the workdir, with a table of where their time went; -1 for none.
  config.profile = -1

  # The page that a finished run ends with.
  config.report = ConfigDict()
  # Images that it looks at, for pictures of neighbours, prototypes and a map; 0
  # leaves pictures out. On CPUs SEER's networks take seconds an image.
  config.report.images = 4000

  config.checkpoint = ConfigDict()
  config.checkpoint.every = 500  # Steps; the last step is always saved.
  # Stand still until a save is on the disk: kill -9 then costs at most `every`
  # steps. Else it is written while training goes on, and a kill meanwhile costs
  # those up to the save before as well: less than twice `every`.
  config.checkpoint.wait = False
  # Kept are the newest so many, those at multiples of so many steps (0: none
  # for that), and so many with the highest value of a metric, of those at whose
  # step there was an evaluation.
  config.checkpoint.keep = 2
  config.checkpoint.keep_every = 0
  config.checkpoint.best = 0
  config.checkpoint.best_metric = "knn/k=20"
  # When saving fails (a full disk), training goes on until so many times
  # `every` steps would be lost.
  config.checkpoint.risk = 10.0

  # So many steps in a row whose loss or gradient is not finite (none of them
  # is applied), and the run goes back to its last checkpoint and leaves out the
  # images seen since; if it comes to that again before the next checkpoint, it
  # ends. 0 ends at the first such step.
  config.rollback = ConfigDict()
  config.rollback.after = 10

  # Seconds that the loop may stay at one thing (a step, an evaluation) before
  # the run counts as stuck and ends; four times as long where something is
  # compiled. 0 waits for ever.
  config.watchdog = 1800.0
  return config


def leave_open(config: ConfigDict, *keys: str) -> None:
  """Leaves keys to `auto`, although `base` has the published values."""
  for key in keys:
    put(config, key, config_dict.placeholder(kind(key)))


def labelled() -> ConfigDict:
  """`base`, with what tasks that learn from labels have in common.

  One random-resized crop of each image and a flip, SGD as VISSL's benchmarks
  have it, and the accuracy as what is measured.
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
  """Where images come from: keys and reasons stand in `sources.DEFAULTS`."""
  return ConfigDict(sources.DEFAULTS)


def flatten(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
  """Dotted keys and their values, in order."""
  for key, value in config.items():
    if isinstance(value, ConfigDict):
      yield from flatten(value, f"{prefix}{key}.")
    else:
      yield prefix + key, value


def nearest_key(config: ConfigDict, key: str) -> str | None:
  """The known dotted key most like a misspelt one."""
  known = [name for name, _ in flatten(config)]
  tail = {name.rsplit(".", 1)[-1]: name for name in known}
  close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
  if close:
    return close[0]
  close = difflib.get_close_matches(key.rsplit(".", 1)[-1], tail, n=1)
  return tail[close[0]] if close else None


def kind(key: str) -> type | None:
  """Of the values of a dotted key; None where there is no such key."""
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
