"""Accuracy of classifiers, however their images are batched and divided."""

import jax.numpy as jnp
import numpy as np
import pytest

from seer_jax.data import sources
from seer_jax.data.preprocessing import Preprocessing
from seer_jax.evals import accuracy, features
from seer_jax.runtime import errors
from seer_jax.runtime import mesh as mesh_lib


class Fixed:
  """Logits that are a fixed function of the pixels; of several heads."""

  preprocessing = Preprocessing(8, 8, mean=(0, 0, 0), std=(1, 1, 1))

  def __init__(self, heads=0):
    rng = np.random.default_rng(0)
    shape = (max(1, heads), 8 * 8 * 3, 10)
    self.weights_HxDxL = rng.normal(size=shape).astype(np.float32)
    if heads:
      self.names = tuple(f"head{at}" for at in range(heads))

  def apply(self, variables, x_NxHxWx3):
    x_NxD = x_NxHxWx3.reshape(len(x_NxHxWx3), -1)
    logits = jnp.einsum("nd,hdl->hnl", x_NxD, self.weights_HxDxL)
    return {"logits": logits if hasattr(self, "names") else logits[0]}


def images(count, split="test"):
  source = sources.open_source({"kind": "digits", "split": split})
  return features.ImageSet(source, range(count))


def measured(encoder, query, choice=None, devices=1, batch_size=64):
  evaluator = accuracy.Accuracy(
    encoder,
    mesh_lib.make(devices),
    query,
    choice,
    batch_size=batch_size,
    max_pixels=10**6,
  )
  return dict(evaluator.run({}))


def by_hand(encoder, query, head=0):
  """Top-1, top-5 and NLL, an image at a time, in float64."""
  found = []
  for i in query.indices:
    x = encoder.preprocessing(query.source[i]["image"])
    logits = x.reshape(-1).astype(float) @ encoder.weights_HxDxL[head]
    label = query.source.label_of(i)
    rank = int((logits > logits[label]).sum())
    nll = np.log(np.exp(logits - logits.max()).sum()) + logits.max()
    found.append((rank < 1, rank < 5, nll - logits[label]))
  return np.mean(found, axis=0)


@pytest.mark.parametrize(
  ("devices", "batch_size"), [(1, 64), (1, 7), (8, 64), (8, 24)]
)
def test_batches_devices_and_padding_change_no_figure(devices, batch_size):
  encoder, query = Fixed(), images(101)
  found = measured(encoder, query, devices=devices, batch_size=batch_size)
  top1, top5, nll = by_hand(encoder, query)
  assert found["accuracy"] == top1 and found["accuracy/top5"] == top5
  assert found["accuracy/nll"] == pytest.approx(nll, rel=1e-5)


def test_the_head_is_chosen_by_other_labels_than_it_is_tested_on():
  encoder, query, choice = Fixed(4), images(60), images(90, "train")
  found = measured(encoder, query, choice)
  by_choice = [by_hand(encoder, choice, head)[0] for head in range(4)]
  best = int(np.argmax(by_choice))
  assert found["accuracy"] == by_hand(encoder, query, best)[0]
  for head in range(4):
    assert found[f"choice/head{head}"] == by_choice[head]
    assert found[f"accuracy/head{head}"] == by_hand(encoder, query, head)[0]


def test_without_labels_to_choose_by_no_head_is_chosen():
  found = measured(Fixed(2), images(20))
  assert set(found) == {"accuracy/head0", "accuracy/head1"}


def test_images_without_labels_count_nothing(monkeypatch):
  encoder, query = Fixed(), images(40)
  label_of = query.source.label_of
  wanted = by_hand(encoder, images(20))[0]
  monkeypatch.setattr(
    query.source, "label_of", lambda i: label_of(i) if i < 20 else -1
  )
  assert measured(encoder, query)["accuracy"] == wanted
  monkeypatch.setattr(query.source, "label_of", lambda i: -1)
  with pytest.raises(errors.UserError, match="none of the 40 test images"):
    measured(encoder, query)


def test_logits_that_are_no_numbers_are_wrong():
  class Diverged(Fixed):
    def apply(self, variables, x):
      return {"logits": jnp.full((len(x), 10), jnp.nan)}

  found = measured(Diverged(), images(20))
  assert found["accuracy"] == found["accuracy/top5"] == 0


def test_equal_logits_are_the_first_label():
  class Equal(Fixed):
    def apply(self, variables, x):
      return {"logits": jnp.zeros((len(x), 10))}

  query = images(50)
  zeros = np.mean([query.source.label_of(i) == 0 for i in query.indices])
  assert measured(Equal(), query)["accuracy"] == zeros
