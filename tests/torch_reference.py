"""SwAV as published, transcribed to PyTorch: what seer_jax has to equal.

From the paper (Caron et al. 2020) and the behaviour of its authors' code, the
plain way round: exponentials instead of logarithms, crops one after another,
one device. Everything can run in float64 (`Network.double()`), so that what
differs is seer_jax's rounding.

Modules bear the names of seer_jax's parameter tree, so `locate` can say where
each leaf of one belongs in the other.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

# Arrays are tiny: threads would only wait for one another.
torch.set_num_threads(1)


def sinkhorn(scores_NxK, epsilon: float, iterations: int):
  """Codes in float64: exponentiate, then even out rows and columns in turn."""
  scores_KxN = scores_NxK.detach().double().T
  Q_KxN = torch.exp((scores_KxN - scores_KxN.max()) / epsilon)
  Q_KxN /= Q_KxN.sum()
  K, N = Q_KxN.shape
  for _ in range(iterations):
    Q_KxN *= 1 / K / Q_KxN.sum(dim=1, keepdim=True)
    Q_KxN *= 1 / N / Q_KxN.sum(dim=0, keepdim=True)
  return (Q_KxN / Q_KxN.sum(dim=0, keepdim=True)).T


def swapped_loss(scores_VxBxK, codes_AxBxK, assign_crops, temperature: float):
  """Every other crop predicts each assigning crop's codes; plain means."""
  total = 0
  for a, crop in enumerate(assign_crops):
    others = [v for v in range(len(scores_VxBxK)) if v != crop]
    for v in others:
      log_p_BxK = F.log_softmax(scores_VxBxK[v] / temperature, dim=1)
      entropy_B = -(codes_AxBxK[a] * log_p_BxK).sum(dim=1)
      total = total + entropy_B.mean() / len(others)
  return total / len(assign_crops)


class Queue:
  """Earlier features of each assigning crop, newest first.

  Zeros to begin with; used from the moment the oldest place is taken.
  """

  def __init__(self, crops: int, length: int, width: int):
    self.z_AxQxP = torch.zeros(crops, length, width, dtype=torch.float64)

  def is_used(self, a: int) -> bool:
    return bool(torch.any(self.z_AxQxP[a, -1] != 0))

  def push(self, a: int, z_BxP):
    batch = len(z_BxP)
    kept = self.z_AxQxP[a, :-batch].clone()
    self.z_AxQxP[a, batch:] = kept
    self.z_AxQxP[a, :batch] = z_BxP.detach()


def assign(scores_BxK, epsilon, iterations, queue_scores_QxK=None):
  """Codes of the batch; rows of the queue, if given, come before its own."""
  rows_NxK = scores_BxK.detach().double()
  if queue_scores_QxK is not None:
    rows_NxK = torch.cat([queue_scores_QxK.detach().double(), rows_NxK])
  return sinkhorn(rows_NxK, epsilon, iterations)[-len(scores_BxK) :]


def warmup_cosine(step, steps, warmup_steps, peak, start, end) -> float:
  """The rate of one step: SEER's warm-up, then its cosine of all progress."""
  if step < warmup_steps:
    return start + (peak - start) * step / warmup_steps
  return end + (peak - end) * 0.5 * (1 + math.cos(math.pi * step / steps))


def rate_of(config, step: int) -> float:
  """The rate of one step by a resolved seer_jax config."""
  optim, steps = config.optim, config.steps
  peak = optim.lr * config.batch_size / optim.lr_batch
  return warmup_cosine(
    step,
    steps,
    round(optim.warmup_fraction * steps),
    peak,
    peak * optim.warmup_start,
    peak * optim.end,
  )


class LarcSgd:
  """SGD with momentum of gradients that LARC rescaled, tensor by tensor.

  A parameter whose gradient is None is skipped, momentum and all.
  """

  def __init__(self, parameters, trust, weight_decay, momentum, epsilon=1e-8):
    self.parameters = list(parameters)
    self.velocity = [None] * len(self.parameters)
    self.trust, self.weight_decay = trust, weight_decay
    self.momentum, self.epsilon = momentum, epsilon

  def _adapted(self, p):
    norm_p, norm_g = p.norm(), p.grad.norm()
    if norm_p == 0 or norm_g == 0:
      return p.grad.clone()
    decayed = p.grad + self.weight_decay * p
    below = norm_g + self.weight_decay * norm_p + self.epsilon
    return self.trust * norm_p / below * decayed

  @torch.no_grad()
  def step(self, rate: float):
    for i, p in enumerate(self.parameters):
      if p.grad is None:
        continue
      v = self._adapted(p)
      if self.velocity[i] is not None:
        v += self.momentum * self.velocity[i]
      self.velocity[i] = v
      p -= rate * v


class SqueezeExcite(nn.Module):
  def __init__(self, channels: int, squeeze: int):
    super().__init__()
    self.reduce = nn.Conv2d(channels, squeeze, 1)
    self.expand = nn.Conv2d(squeeze, channels, 1)

  def forward(self, x):
    gate = x.mean(dim=(2, 3), keepdim=True)
    return x * torch.sigmoid(self.expand(F.relu(self.reduce(gate))))


class Block(nn.Module):
  """RegNet-Y's bottleneck."""

  def __init__(self, before, width, group_width, stride, se_ratio):
    super().__init__()
    self.a = nn.Conv2d(before, width, 1, bias=False)
    self.bn_a = nn.BatchNorm2d(width)
    self.b = nn.Conv2d(
      width, width, 3, stride, 1, groups=width // group_width, bias=False
    )
    self.bn_b = nn.BatchNorm2d(width)
    self.se = nn.Identity()
    if se_ratio:
      self.se = SqueezeExcite(width, round(se_ratio * before))
    self.c = nn.Conv2d(width, width, 1, bias=False)
    self.bn_c = nn.BatchNorm2d(width)
    self.projects = before != width or stride != 1
    if self.projects:
      self.shortcut = nn.Conv2d(before, width, 1, stride, bias=False)
      self.bn_shortcut = nn.BatchNorm2d(width)

  def forward(self, x):
    y = F.relu(self.bn_a(self.a(x)))
    y = self.se(F.relu(self.bn_b(self.b(y))))
    y = self.bn_c(self.c(y))
    if self.projects:
      x = self.bn_shortcut(self.shortcut(x))
    return F.relu(x + y)


class RegNet(nn.Module):
  """N x 3 x H x W images to N x D features, from an `Architecture`."""

  def __init__(self, arch):
    super().__init__()
    before = arch.stem_width
    self.stem = nn.Conv2d(3, before, 3, arch.stem_stride, 1, bias=False)
    self.bn_stem = nn.BatchNorm2d(before)
    self.blocks = []  # A list, lest they get a second name.
    stages = zip(
      arch.depths, arch.widths, arch.group_widths, arch.strides, strict=True
    )
    for stage, (depth, width, group_width, stride) in enumerate(stages, 1):
      for index in range(depth):
        block = Block(
          before, width, group_width, 1 if index else stride, arch.se_ratio
        )
        self.add_module(f"stage{stage}_block{index}", block)
        self.blocks.append(block)
        before = width

  def forward(self, x):
    x = F.relu(self.bn_stem(self.stem(x)))
    for block in self.blocks:
      x = block(x)
    return x.mean(dim=(2, 3))


class Projection(nn.Module):
  """Hidden layers with BatchNorm and ReLU, a bare last one, the sphere."""

  def __init__(self, width, hidden, out, batch_norm):
    super().__init__()
    self.layers = []
    for i, after in enumerate(hidden):
      self._add(f"linear{i}", nn.Linear(width, after))
      if batch_norm:
        self._add(f"bn{i}", nn.BatchNorm1d(after))
      self.layers.append(F.relu)
      width = after
    self._add(f"linear{len(hidden)}", nn.Linear(width, out))

  def _add(self, name, layer):
    self.add_module(name, layer)
    self.layers.append(layer)

  def forward(self, x):
    for layer in self.layers:
      x = layer(x)
    return F.normalize(x, dim=1)


class Network(nn.Module):
  """Trunk, head and prototypes of a resolved seer_jax config."""

  def __init__(self, arch, options):
    super().__init__()
    head = options.head
    self.trunk = RegNet(arch)
    self.head = Projection(
      arch.features, head.hidden, head.out, head.batch_norm
    )
    self.prototypes = []
    for i, count in enumerate(options.prototypes):
      prototypes = nn.Linear(head.out, count, bias=False)
      self.add_module(f"prototypes_{i}", prototypes)
      self.prototypes.append(prototypes)

  def forward(self, crops):
    """BxVxHxWx3 arrays, one a resolution, to VxBxP and VxBxK of each head."""
    features = []
    for crops_BxVxHxWx3 in crops:
      x_VxBx3xHxW = crops_BxVxHxWx3.permute(1, 0, 4, 2, 3)
      features.append(self.trunk(x_VxBx3xHxW.flatten(0, 1)))
    batch = len(crops[0])
    z_NxP = self.head(torch.cat(features))
    z_VxBxP = z_NxP.reshape(-1, batch, z_NxP.shape[1])
    return z_VxBxP, [prototypes(z_VxBxP) for prototypes in self.prototypes]

  @torch.no_grad()
  def normalize_prototypes(self):
    for prototypes in self.prototypes:
      prototypes.weight.copy_(F.normalize(prototypes.weight, dim=1))


class Trainer:
  """The published training step, with the settings of a seer_jax config."""

  def __init__(self, network: Network, config):
    self.network, self.config = network, config
    self.done = 0
    optim, options = config.optim, config.swav
    self.optimizer = LarcSgd(
      network.parameters(), optim.trust, optim.weight_decay, optim.momentum
    )
    self.queue = None
    if options.queue_length:
      self.queue = Queue(
        len(options.assign_crops), options.queue_length, config.model.head.out
      )

  def step(self, crops) -> float:
    self.network.train()
    self.network.normalize_prototypes()
    z_VxBxP, scores = self.network([torch.as_tensor(x) for x in crops])
    loss = sum(
      self._loss_of(prototypes, scores_VxBxK)
      for prototypes, scores_VxBxK in zip(
        self.network.prototypes, scores, strict=True
      )
    ) / len(scores)
    if self.queue and self.done >= self.config.swav.queue_start:
      for a, crop in enumerate(self.config.swav.assign_crops):
        self.queue.push(a, z_VxBxP[crop])
    self._update(loss)
    return loss.item()

  def _loss_of(self, prototypes, scores_VxBxK):
    options, codes = self.config.swav, []
    for a, crop in enumerate(options.assign_crops):
      queued = None
      if self.queue and self.queue.is_used(a):
        queued = self.queue.z_AxQxP[a] @ prototypes.weight.T
      codes.append(
        assign(scores_VxBxK[crop], options.epsilon, options.iterations, queued)
      )
    return swapped_loss(
      scores_VxBxK, codes, options.assign_crops, options.temperature
    )

  def _update(self, loss):
    self.network.zero_grad()
    loss.backward()
    if self.done < self.config.swav.freeze_steps:
      for prototypes in self.network.prototypes:
        prototypes.weight.grad = None
    self.optimizer.step(rate_of(self.config, self.done))
    self.done += 1


_NAMES = {
  "kernel": "weight",
  "scale": "weight",
  "mean": "running_mean",
  "var": "running_var",
}


def locate(path: str, leaf: np.ndarray) -> tuple[str, np.ndarray]:
  """The PyTorch name and layout of a leaf of seer_jax's params or stats."""
  module, name = path.rsplit("/", 1)
  if name == "kernel":
    leaf = leaf.transpose(3, 2, 0, 1) if leaf.ndim == 4 else leaf.T
  return f"{module.replace('/', '.')}.{_NAMES.get(name, name)}", leaf


def load(network: Network, leaves: dict[str, np.ndarray]):
  """Fills the network with seer_jax's params and batch_stats, by path."""
  state = {
    name: torch.tensor(leaf.copy())
    for name, leaf in (locate(*item) for item in leaves.items())
  }
  missing, unexpected = network.load_state_dict(state, strict=False)
  assert not unexpected, unexpected
  assert all(name.endswith("num_batches_tracked") for name in missing), missing
