"""RegNets of other projects, for tests to compare with; all need PyTorch."""

import importlib.util

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")


def torchvision():
  """The package, importable without its compiled operators."""
  if importlib.util.find_spec("torchvision") is None:
    pytest.skip("torchvision is not installed")
  from benchmarks import published_transforms

  published_transforms.import_torchvision()
  import torchvision as package
  import torchvision.models

  return package


def timm():
  """The package; it imports torchvision."""
  torchvision()
  return pytest.importorskip("timm", reason="timm is not installed")


def transformers():
  """Hugging Face's package; it imports torchvision where that is installed."""
  if importlib.util.find_spec("torchvision") is not None:
    torchvision()
  return pytest.importorskip(
    "transformers", reason="transformers is not installed"
  )


def randomize(network, seed: int = 0):
  """Random weights and statistics that keep activations in bounds."""
  torch.manual_seed(seed)
  with torch.no_grad():
    for module in network.modules():
      if isinstance(module, torch.nn.BatchNorm2d | torch.nn.BatchNorm1d):
        module.weight.uniform_(0.5, 1.0)
        module.bias.uniform_(-0.2, 0.2)
        module.running_mean.uniform_(-0.2, 0.2)
        module.running_var.uniform_(0.8, 1.2)
      elif isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
        fan_in = module.weight[0].numel()
        module.weight.normal_(0, (2 / fan_in) ** 0.5)
        if module.bias is not None:
          module.bias.uniform_(-0.1, 0.1)
  return network.eval()


def images(side: int, seed: int = 0) -> np.ndarray:
  """Two images as a network takes them, N x 3 x H x W."""
  rng = np.random.default_rng(seed)
  return rng.normal(size=(2, 3, side, side)).astype(np.float32)


def error(ours: np.ndarray, theirs) -> float:
  """Largest difference over the largest value."""
  theirs = theirs.detach().numpy()
  return float(np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max())
