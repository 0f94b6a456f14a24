"""The parts of a card, each from what is on disk."""

import dataclasses
import datetime
from collections.abc import Iterator, Sequence

from seer_jax.apps.card import words
from seer_jax.apps.card.measured import Measured, Split, splits
from seer_jax.apps.report import cost, facts, verdict
from seer_jax.apps.report.checks import GOOD
from seer_jax.apps.report.history import History
from seer_jax.data import sources
from seer_jax.data.sources import opt_out
from seer_jax.evals.groups import rates
from seer_jax.evals.robustness import corruptions
from seer_jax.runtime import errors

# Groups of people or regions; tables by other columns say nothing of fairness
# between people.
_ABOUT_PEOPLE = (
  *("gender", "sex", "age", "skin", "race", "ethnicity", "region", "country"),
  *("income", "religion", "disability"),
)


@dataclasses.dataclass(frozen=True)
class Table:
  """A table; the first cell of a row names it."""

  caption: str
  head: Sequence[str]
  rows: Sequence[Sequence[str]]


@dataclasses.dataclass(frozen=True)
class Section:
  """A part of the card."""

  title: str
  texts: Sequence[str] = ()
  points: Sequence[str] = ()
  tables: Sequence[Table] = ()
  details: Sequence[Table] = ()  # Folded on the page.


def sections(history: History, found: Measured) -> list[Section]:
  """All parts, in order; those without content are left out."""
  parts = [
    _use(history),
    _data(history),
    _training(history),
    _quality(found),
    _groups(found),
    _robustness(found),
    _other(found),
    _missing(found),
  ]
  return [part for part in parts if part]


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
  words = (judged.state == GOOD and _best(found)) or judged.sentence
  return f"A RegNet, {how} on {images}. {judged.title}. {words}"


def learned(history: History) -> bool:
  """Whether the verdict on the run is good."""
  return verdict.judge(history).state == GOOD


def _best(found):
  """A sentence about the first accuracy that was measured."""
  for name in found.run:
    kind, _, rest = name.partition("/")
    if kind in ("accuracy", "knn", "logistic") and "/" not in rest:
      others = [
        f"{what}: {words.share(figures[name])}"
        for what, figures in list(found.figures.items())[1:]
        if name in figures
      ]
      beside = f" ({', '.join(others)})" if others else ""
      return f"{words.named(name)} is {words.share(found.run[name])}{beside}."
  return ""


def _use(history):
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


def _data(history):
  record, train = history.record, history.config.data.train
  rows = [
    ("Training images", f"{record.images:,}" if record.images else "unknown"),
    ("Source", record.source or f"{train.kind} {train.path or train.name}"),
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


def _training(history):
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


def _quality(found):
  kinds = ("knn", "logistic", "svm", "accuracy", "linear", "finetune")
  names = [
    name
    for name in found.run
    if name.partition("/")[0].partition("@")[0] in kinds
    and _is_plain(name, found)
  ]
  if not names:
    return None
  return Section(
    "What was measured",
    _on(found, kinds),
    tables=[_table("", "Figure", names, found)],
  )


def _is_plain(name, found):
  """Whether a figure is not a detail of another."""
  last = name.rpartition("/")[2]
  is_whole = name in rates.whole(found.run)
  return is_whole and last not in ("std", "nll") and "@" not in last


def _on(found, kinds):
  """On which images evaluations of some kinds were."""
  texts = dict.fromkeys(
    images
    for name, images in found.images.items()
    if images and name.partition("@")[0] in kinds
  )
  return tuple(f"Measured on {images}." for images in texts)


def _table(caption, what, names, found, label=words.named):
  columns = {
    subject: figures
    for subject, figures in found.figures.items()
    if any(name in figures for name in names)
  }
  rows = [
    [label(name), *(words.rate(each, name) for each in columns.values())]
    for name in names
  ]
  return Table(caption, (what, *columns), rows)


def _groups(found: Measured) -> Section | None:
  every = list(splits(found.run))
  if not every:
    return None
  texts = [
    "Rates with 95 % intervals. The gap is between the groups with the highest"
    " and the lowest rate; an interval that includes 0 shows no difference."
    " Groups with too few images have no rate.",
  ]
  columns = {each.column for each in every}
  if not any(part in column for column in columns for part in _ABOUT_PEOPLE):
    texts.append(
      "These groups are kinds of images. No group of people was measured, so"
      " nothing here says how the model treats people of different gender, age,"
      " skin tone or region."
    )
  return Section(
    "By groups",
    texts,
    tables=[_gaps(every, found)],
    details=[_of_split(each, found) for each in every],
  )


def _gaps(every, found):
  rows = []
  for split in every:
    rates = {
      group: found.run[split.name(group)]
      for group in split.groups
      if split.name(group) in found.run and group != "unknown"
    }
    if len(rates) < 2:
      continue
    high, low = max(rates, key=rates.get), min(rates, key=rates.get)
    rows.append(
      (
        f"{words.named(split.figure)}, by {words.column(split.column)}",
        f"{high}: {words.share(rates[high])}",
        f"{low}: {words.share(rates[low])}",
        words.rate(found.run, f"{split.figure}/{split.column}/gap").replace(
          " %", " points"
        ),
      )
    )
  return Table("Gaps of this model", ("", "Highest", "Lowest", "Gap"), rows)


def _of_split(split: Split, found: Measured) -> Table:
  figures = found.run

  def label(name):
    group = name.rpartition("=")[2]
    return f"{group} ({int(figures[f'{name}/n']):,})"

  caption = f"{words.named(split.figure)}, by {words.column(split.column)}"
  names = [split.name(group) for group in split.groups]
  return _table(caption, "Group (number)", names, found, label)


def _robustness(found):
  tables = []
  kinds = ["clean", *corruptions.KINDS, "mean", "kept", "mce"]
  names = [
    f"corruptions/{kind}"
    for kind in kinds
    if f"corruptions/{kind}" in found.run
  ]
  if names:
    tables.append(
      _table(
        "Accuracy under common corruptions, the mean over five strengths; kept"
        " is the share of the clean accuracy",
        "Corruption",
        names,
        found,
        lambda name: name.partition("/")[2].replace("_", " "),
      )
    )
  shifts = [
    name
    for name in found.run
    if name.startswith("shift/") and not name.endswith("/top5")
  ]
  if shifts:
    tables.append(_table("Shifted test sets", "Set", shifts, found))
  if not tables:
    return None
  return Section(
    "Robustness", _on(found, ("corruptions", "shifts")), tables=tables
  )


def _other(found):
  kinds = ("retrieval", "geolocation")
  names = [
    name
    for name in found.run
    if name.partition("/")[0] in kinds and name in rates.whole(found.run)
  ]
  if not names:
    return None
  return Section(
    "Retrieval, copies and places",
    _on(found, kinds),
    tables=[_table("", "Figure", names, found)],
  )


# Evaluations, and what is unknown without them.
_UNKNOWN = {
  "associations": "whether it associates people with harmful labels",
  "same": "whether it groups people by gender or other attributes",
  "corruptions": "how it copes with noise, blur, weather and compression",
  "shifts": "how it copes with other renditions and harder images",
  "retrieval": "whether it finds copies and the same object",
}


def _missing(found: Measured) -> Section | None:
  kinds = {
    name.partition("/")[0].replace("shift", "shifts") for name in found.run
  }
  points = list(_unmeasured(kinds))
  if not points:
    return None
  return Section(
    "What was not measured",
    ("For lack of a measurement it is not known:",),
    [f"{each};" for each in points[:-1]] + [f"{points[-1]}."],
  )


def _unmeasured(kinds) -> Iterator[str]:
  for kind, what in _UNKNOWN.items():
    if kind not in kinds:
      yield f"{what} (--evals {kind})"
  if not kinds & {"knn", "logistic", "svm", "accuracy", "linear", "finetune"}:
    yield "how well its features tell images apart (--evals knn,logistic)"
