"""The parts of a card about the run itself."""

import datetime

from seer_jax.apps import frozen
from seer_jax.apps.card import figures
from seer_jax.apps.card.layout import Section, Table
from seer_jax.apps.card.measured import Measured
from seer_jax.apps.report import cost, facts, verdict
from seer_jax.apps.report.checks import GOOD
from seer_jax.apps.report.history import History
from seer_jax.data import sources
from seer_jax.data.sources import opt_out
from seer_jax.runtime import errors


def summary(history: History, found: Measured) -> str:
  """What the model is, and whether it learned."""
  record = history.record
  how = (
    "trained without labels (SwAV)"
    if history.is_pretraining
    else f"trained with labels ({history.config.task})"
  )
  images = f"{record.images:,} images" if record.images else "images"
  judged = verdict.judge(history)
  words = (judged.state == GOOD and figures.best(found)) or judged.sentence
  return f"A RegNet, {how} on {images}. {judged.title}. {words}"


def learned(history: History) -> bool:
  """Whether the verdict on the run is good."""
  return verdict.judge(history).state == GOOD


def use(history: History) -> Section:
  """What it is for, and what it is not for."""
  size = history.config.eval.size
  return Section(
    "Intended use",
    (
      "Features of images: to search and cluster a collection, to find"
      " near-copies, and to train classifiers from few labels, on images like"
      f" those it was trained on. It expects {size} x {size} pixels."
      if history.is_pretraining
      else "To classify images like those it was trained on.",
      "It is not meant for:",
    ),
    (
      "decisions about people, such as hiring, credit, policing or medicine;",
      "recognizing individual people;",
      "inferring gender, age, origin, health or beliefs from a picture.",
    ),
  )


def data(history: History) -> Section:
  """The training images, and which were left out."""
  record, train = history.record, history.config.data.train
  rows = [
    ("Training images", f"{record.images:,}" if record.images else "unknown"),
    ("Source", f"{train.kind}: {frozen.source_in_words(train)}"),
    (
      "Labels in training",
      "not used" if history.is_pretraining else f"{len(record.labels)} classes",
    ),
    *_exclusions(train, history.config.data.test),
    (
      "Unusable files",
      f"{len(history.bad_images):,}; other images were drawn instead"
      if history.bad_images
      else "none met",
    ),
  ]
  return Section(
    "Training data",
    (
      "The card knows the images by their source only. Who took them, who is in"
      " them, and whether these people agreed is not recorded; whoever"
      " publishes the model must say so.",
    ),
    tables=[Table("", ("", ""), rows)],
  )


def _exclusions(*parts):
  """What was opted out, by list."""
  lists = sorted(set().union(*map(sources.exclude_lists, parts)))
  if not lists:
    yield "Excluded images", "no list was given"
  for path in lists:
    try:
      count = f"{len(opt_out.read_lines(path)):,} entries"
    except errors.UserError:
      count = "a list that is not there any more"
    yield (
      "Excluded images",
      f"{count} of {path}; these images are never used, neither in training nor"
      " in evaluations",
    )


def training(history: History) -> Section:
  """Length, hardware, time and energy."""
  energy = cost.energy(history)
  wanted = ("Images seen", "Steps", "Batch", "Time", "Devices", "Versions")
  known = dict(facts.facts(history))
  rows = [(name, known[name]) for name in wanted if name in known]
  starts = history.record.starts
  if starts:
    begun = datetime.datetime.fromtimestamp(starts[0].time, datetime.UTC)
    rows.append(("Begun", f"{begun:%Y-%m-%d}"))
  seconds = history.last("seconds")
  if seconds and starts:
    hours = starts[-1].devices * seconds / 3600
    rows.append(("Device hours", f"{hours:,.2f}"))
  amount = energy.amount and f"{energy.amount}. "
  rows.append(("Energy, estimated", f"{amount}{energy.words}"))
  return Section(
    "Training, and what it took", tables=[Table("", ("", ""), rows)]
  )
