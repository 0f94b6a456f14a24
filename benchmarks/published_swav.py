"""SwAV's training step in PyTorch, from public parts: the peer of `step.py`.

The trunk is timm's RegNet; head, prototypes, Sinkhorn, loss and LARC follow
SwAV's and apex's published formulas. On a CPU: eager mode, channels last,
float32, convolutions by oneDNN. On a GPU: `torch.compile`, autocast to
bfloat16, horizontally fused (`foreach`) updates.

Needs `pip install -e '.[parity]'` and
`pip install --no-deps timm torchvision==0.28.0`.
"""

import sys
from collections.abc import Sequence

import published_transforms
import torch
import torch.nn.functional as F
from torch import nn

_MEAN_3, _STD_3 = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def sinkhorn(
  scores_NxK: torch.Tensor, epsilon: float, iterations: int
) -> torch.Tensor:
  """Codes NxK, as SwAV's `distributed_sinkhorn` computes them."""
  q_KxN = torch.exp(scores_NxK / epsilon).t()
  k, n = q_KxN.shape
  q_KxN = q_KxN / q_KxN.sum()
  for _ in range(iterations):
    q_KxN = q_KxN / q_KxN.sum(dim=1, keepdim=True) / k
    q_KxN = q_KxN / q_KxN.sum(dim=0, keepdim=True) / n
  return (q_KxN * n).t()


def swapped_loss(
  scores_VxBxK: Sequence[torch.Tensor],
  epsilon: float = 0.05,
  iterations: int = 3,
  temperature: float = 0.1,
) -> torch.Tensor:
  """SwAV's loss; the first two crops assign (Caron et al. 2020, equation 2)."""
  views, loss = len(scores_VxBxK), 0.0
  for assigning in range(2):
    with torch.no_grad():
      codes_BxK = sinkhorn(scores_VxBxK[assigning], epsilon, iterations)
    for view in range(views):
      if view != assigning:
        log_p_BxK = F.log_softmax(scores_VxBxK[view] / temperature, dim=1)
        loss -= (codes_BxK * log_p_BxK).sum(dim=1).mean()
  return loss / (2 * (views - 1))


class Network(nn.Module):
  """timm's RegNet, SwAV's projection head and prototypes."""

  def __init__(self, trunk, small, hidden, out, prototypes):
    super().__init__()
    published_transforms.import_torchvision()  # timm imports it.
    import timm

    self.trunk = timm.create_model(trunk, num_classes=0)
    if small:  # As `config.auto` has it for small images.
      self.trunk.stem.conv.stride = (1, 1)
      first = self.trunk.s1.b1
      first.conv2.conv.stride = first.downsample.conv.stride = (1, 1)
    width = self.trunk.num_features
    self.head = nn.Sequential(
      nn.Linear(width, hidden),
      nn.BatchNorm1d(hidden),
      nn.ReLU(inplace=True),
      nn.Linear(hidden, out),
    )
    self.prototypes = nn.Linear(out, prototypes, bias=False)

  def forward(self, crops):
    """Pixels, N x 3 x H x W of each resolution, to scores, (V * B) x K."""
    features = torch.cat([self.trunk(x) for x in crops])
    z = F.normalize(self.head(features).float(), dim=1)
    with torch.autocast(z.device.type, enabled=False):
      return self.prototypes(z)


class Step:
  """A training step: `step(crops)` returns the loss, not yet waited for.

  Attributes:
    parameters: how many there are.
  """

  def __init__(
    self,
    trunk: str,
    *,
    small: bool,
    hidden: int,
    out: int,
    prototypes: int,
    rate: float = 0.1,
    weight_decay: float = 1e-6,
    trust: float = 0.001,
  ):
    """Builds the network where there is a GPU, on it.

    Args:
      trunk: timm's name.
      small: whether the stem and the first stage keep the resolution.
      hidden: width of the head's hidden layer.
      out: P.
      prototypes: K.
      rate: constant learning rate.
      weight_decay: of all parameters.
      trust: LARC's.
    """
    self.device = "cuda" if torch.cuda.is_available() else "cpu"
    network = Network(trunk, small, hidden, out, prototypes)
    network = network.to(self.device, memory_format=torch.channels_last)
    self._network, self._forward = network, network
    if self.device == "cuda":
      torch.backends.cudnn.benchmark = True
      torch.backends.cuda.matmul.allow_tf32 = True
      torch.backends.cudnn.allow_tf32 = True
      self._forward = torch.compile(network)
    self._all = list(network.parameters())
    self.parameters = sum(p.numel() for p in self._all)
    self._sgd = torch.optim.SGD(
      self._all, rate, momentum=0.9, fused=self.device == "cuda" or None
    )
    self._weight_decay, self._trust = weight_decay, trust
    self._mean = torch.tensor(_MEAN_3, device=self.device).view(3, 1, 1)
    self._std = torch.tensor(_STD_3, device=self.device).view(3, 1, 1)

  def put(self, crops_BxVxHxWx3):
    """uint8 crops of NumPy, one array a resolution, to the device."""
    return [torch.from_numpy(x).to(self.device) for x in crops_BxVxHxWx3]

  def __call__(self, crops: Sequence[torch.Tensor]) -> torch.Tensor:
    """One update."""
    views, images = [], crops[0].shape[0]
    for x_BxVxHxWx3 in crops:
      # Crop-major, as SwAV's loader has them.
      x = x_BxVxHxWx3.transpose(0, 1).flatten(0, 1).permute(0, 3, 1, 2)
      x = ((x.float() / 255) - self._mean) / self._std
      views.append(x.contiguous(memory_format=torch.channels_last))
    self._sgd.zero_grad(set_to_none=True)
    on_gpu = self.device == "cuda"
    with torch.autocast(self.device, torch.bfloat16, enabled=on_gpu):
      scores = self._forward(views)
    loss = swapped_loss(scores.split(images))
    loss.backward()
    self._larc()
    self._sgd.step()
    with torch.no_grad():
      kernel = self._network.prototypes.weight
      kernel.copy_(F.normalize(kernel, dim=1))
    return loss

  @torch.no_grad()
  def _larc(self):
    """apex's LARC with `clip=False`, all tensors at a time."""
    grads = [p.grad for p in self._all]
    norms_p = torch._foreach_norm(self._all)
    norms_g = torch._foreach_norm(grads)
    torch._foreach_add_(grads, self._all, alpha=self._weight_decay)
    ratios = []
    for p, g in zip(norms_p, norms_g, strict=True):
      ratio = self._trust * p / (g + self._weight_decay * p + 1e-8)
      ratios.append(torch.where((p > 0) & (g > 0), ratio, 1.0))
    torch._foreach_mul_(grads, ratios)

  def wait(self, loss: torch.Tensor) -> float:
    """The loss, when the step is done."""
    return float(loss.detach())

  def peak_memory(self) -> int | None:
    """Bytes of the GPU, at most; None on a CPU."""
    if self.device == "cpu":
      return None
    return torch.cuda.max_memory_allocated()


if __name__ == "__main__":
  sys.exit("run benchmarks/step.py or benchmarks/loss.py")
