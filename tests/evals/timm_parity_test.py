"""From a file to logits, as timm does it with SEER's fine-tuned weights."""

import dataclasses
import io
import tarfile

import jax
import numpy as np
import photos
import pytest

import seer_jax
from seer_jax.weights import model_zoo

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
pytestmark = pytest.mark.extras
import peers  # noqa: E402  It needs PyTorch.

_WEIGHTS = "regnety_320.seer_ft_in1k"


def jpegs(count=4):
  """Photographs where there are any, else pictures made here."""
  if photos.PHOTOS.exists():
    with tarfile.open(photos.PHOTOS) as tar:
      names = [name for name in tar.getnames() if name.upper().endswith("JPEG")]
      picked = names[:: len(names) // count][:count]
      return [tar.extractfile(name).read() for name in picked]
  sides = ((500, 375), (333, 500), (640, 640), (300, 900))
  return [photos.encode(".jpg", photos.scene(*side)) for side in sides[:count]]


def published(size):
  """timm's transform of the weights, (image) -> tensor, at a size."""
  timm = peers.timm()
  config = timm.get_pretrained_cfg(_WEIGHTS).to_dict()
  config = timm.data.resolve_data_config(
    {"input_size": (3, size, size)}, pretrained_cfg=config
  )
  return timm.data.create_transform(**config)


def theirs(data, size):
  from PIL import Image

  image = Image.open(io.BytesIO(data)).convert("RGB")
  return published(size)(image).numpy().transpose(1, 2, 0)


def prepared(size):
  found = model_zoo.find(f"timm/{_WEIGHTS}").preprocessing
  assert found.size == 384 and found.interpolation == "bicubic"
  return dataclasses.replace(found, size=size, resize=size)


@pytest.mark.parametrize("size", [224, 384])
def test_tensors_are_those_of_timm_s_transform(size):
  prepare = prepared(size)
  std = np.array(prepare.std)
  for data in jpegs():
    wanted = theirs(data, size)
    error = np.abs(prepare(data)[0] - wanted) * std
    print(size, f"largest error {error.max() * 255:.2f}/255")
    assert error.max() <= 1.0 / 255 + 1e-6


@pytest.mark.parametrize("size", [224, 384])
@pytest.mark.parametrize(
  "name",
  ["regnety_002", pytest.param("regnety_320", marks=pytest.mark.slow)],
)
def test_logits_of_the_same_files(tmp_path, name, size):
  timm = peers.timm()
  network = peers.randomize(timm.create_model(name, num_classes=1000))
  path = tmp_path / "weights.pth"
  torch.save(network.state_dict(), path)
  model, variables = seer_jax.load(path)
  prepare = prepared(size)
  files = jpegs(2)
  x_NxSxSx3 = prepare(files)
  found = jax.jit(model.apply)(variables, x_NxSxSx3)["logits"]
  own = np.stack([theirs(data, size) for data in files])
  with torch.no_grad():
    wanted = network(torch.tensor(own.transpose(0, 3, 1, 2)))
    same = network(torch.tensor(x_NxSxSx3.transpose(0, 3, 1, 2)))
  print(
    f"{name} {size}: own path {peers.error(found, wanted):.1e},"
    f" same tensors {peers.error(found, same):.1e}"
  )
  assert peers.error(found, same) < 1e-4
  assert (np.asarray(found).argmax(1) == wanted.numpy().argmax(1)).all()
