"""Signs of a run's health, each with its interpretation."""

import math
from collections.abc import Iterator
from typing import NamedTuple

from seer_jax.apps.report.history import History
from seer_jax.apps.report.worth import Worth
from seer_jax.training import monitors

# States of a check and of a verdict; each has a mark of its own on the page.
GOOD, UNSURE, BAD = "good", "unsure", "bad"

# Below this share of ln K the network predicts codes.
_LEARNING = 0.9
# Share of the prototypes that are used, in the last window of metrics.
_FEW_IN_USE = 0.5
# Share of the images that one prototype takes.
_COLLAPSED = 0.5
# The effective rank is 1 if all features point in one direction.
_NO_RANK = 2.0
# Share of the rank before training.
_RANK_LEFT = 0.25
# Top-1 accuracy varies by this much, on any number of images.
_NOISE = 0.01


class Check(NamedTuple):
  """One sign: its name, its value in words, its state and what it means."""

  name: str
  value: str
  state: str
  meaning: str


def of_learning(history: History) -> Iterator[Check]:
  """Signs that decide whether a run worked."""
  if history.is_pretraining:
    yield _check_loss(history)
    yield _check_prototypes(history)
    yield _check_rank(history)
  else:
    yield _check_falling(history)
  if history.score:
    yield _check_score(history, history.score)


def of_worth(worth: Worth) -> Check:
  """Whether features beat raw pixels."""
  name, ours, pixels = worth.rows[0]
  value = f"{name}: {percent(ours)}; raw pixels {percent(pixels)}"
  if pixels - ours > _margin(ours, pixels, worth.queries):
    state, words = UNSURE, "Raw pixels tell these images apart better."
  else:
    state, words = GOOD, "Features are at least as good as raw pixels."
  return Check("Beside raw pixels, on a sample", value, state, words)


def of_operation(history: History) -> Iterator[Check]:
  """Signs about numbers, input and files, which may cost quality."""
  yield _check_finite(history)
  yield _check_supply(history)
  yield _check_images(history)


def _check_loss(history):
  name, value = "Loss over ln K", history.last("loss_over_lnk")
  if value is None:
    return Check(name, "not logged", UNSURE, "No step has been logged.")
  share = history.last("prototypes/max_share") or 0
  if share > _COLLAPSED:
    state = UNSURE
    words = "With one prototype for most images the loss says nothing."
  elif value < _LEARNING:
    state, words = GOOD, "The network predicts the codes of other crops."
  elif value <= 0.99:
    state, words = (
      UNSURE,
      "The network predicts codes little better than chance.",
    )
  else:
    state, words = BAD, "The network predicts codes no better than chance."
  return Check(name, f"{abs(value):.2f}", state, f"{words} Guessing scores 1.")


def _check_prototypes(history):
  name = "Prototypes in use"
  used, share = (
    history.last("prototypes/in_use"),
    history.last("prototypes/max_share"),
  )
  if used is None:
    return Check(name, "not logged", UNSURE, "No step has been logged.")
  count = max(history.config.model.prototypes)
  value = f"{used:.0f} of {count}; the largest takes {percent(share)}"
  if share > _COLLAPSED:
    return Check(name, value, BAD, "One prototype takes most of the images.")
  if used < _FEW_IN_USE * count:
    return Check(
      name,
      value,
      UNSURE,
      "Half of the prototypes or more are nearest to no crop.",
    )
  return Check(name, value, GOOD, "Images are spread over the prototypes.")


def _check_rank(history):
  name, value = "Directions the features use", history.last("features/rank")
  if value is None:
    return Check(name, "not measured", UNSURE, "Features were not looked at.")
  state, words = GOOD, "Features of different images differ."
  if value < _NO_RANK:
    state, words = BAD, "Features of all images are nearly the same."
  elif value < _RANK_LEFT * history.first("features/rank"):
    state = UNSURE
    words = "Features use far fewer directions than before training."
  return Check(name, f"{value:.0f} (effective rank)", state, words)


def _check_falling(history):
  first, last = history.first("loss"), history.last("loss")
  if first is None:
    return Check("Loss", "not logged", UNSURE, "No step has been logged.")
  value = f"{first:.3g}, then {last:.3g}"
  if last < first:
    return Check("Loss", value, GOOD, "The loss fell.")
  return Check("Loss", value, BAD, "The loss did not fall.")


def _check_score(history, score):
  before, after = history.first(score), history.last(score)
  value = f"{percent(before)} before training, {percent(after)} now"
  margin = _margin(before, after, history.record.query)
  words = "Test images are classified {} than before training."
  if history.is_pretraining:
    words = "Features are {} than those of an untrained network."
  if after - before > margin:
    state, words = GOOD, words.format("better")
  elif after - before >= -margin:
    state, words = UNSURE, words.format("no better")
  else:
    state, words = BAD, words.format("worse")
  return Check(named(score), value, state, words)


def _margin(before, after, images):
  """Two standard errors of a difference of accuracies, at least 0.01."""
  mean = (before + after) / 2
  error = math.sqrt(2 * mean * (1 - mean) / images) if images else 0.0
  return max(_NOISE, 2 * error)


def _check_finite(history):
  name = "Steps that were not finite"
  skipped = int(history.total("skipped"))
  if history.gave_up:
    return Check(name, f"{skipped}", BAD, "The run gave up.")
  if not skipped:
    return Check(name, "none", GOOD, "No loss or gradient overflowed.")
  if history.config.precision == "fp16":
    return Check(
      name, f"{skipped}", GOOD, "In fp16 some overflow; they are not applied."
    )
  return Check(
    name, f"{skipped}", UNSURE, "They were not applied; look at the log."
  )


def _check_supply(history):
  name, value = "Waiting for images", history.median("data_wait")
  if value is None:
    return Check(name, "not logged", UNSURE, "No step has been logged.")
  if monitors.is_starved(value):
    return Check(
      name,
      f"{percent(value)} of the time",
      UNSURE,
      "Images come too slowly; the devices are idle meanwhile.",
    )
  return Check(
    name, f"{percent(value)} of the time", GOOD, "Images come fast enough."
  )


def _check_images(history):
  name, count = "Unusable files", len(history.bad_images)
  if not count:
    return Check(name, "none met", GOOD, "Every image that was read is usable.")
  return Check(name, f"{count:,}", UNSURE, "Other images were drawn instead.")


def named(metric: str) -> str:
  """A metric of accuracy in words: "kNN (k = 20) accuracy" for "knn/k=20"."""
  if metric == "accuracy":
    return "Accuracy on the test images"
  if metric.endswith("/top5"):
    return f"{named(metric.removesuffix('/top5'))}, one of five right"
  kind, _, rest = metric.partition("/")
  kind = {"knn": "kNN", "logistic": "Logistic regression", "svm": "SVM"}.get(
    kind, kind
  )
  return f"{kind} accuracy ({rest.replace('=', ' = ')})"


def percent(value: float) -> str:
  """A share as "12.3 %"."""
  return f"{100 * value:.1f} %"
