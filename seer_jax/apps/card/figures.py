"""The parts of a card about what was measured, and what was not."""

from collections.abc import Iterator

from seer_jax.apps.card import words
from seer_jax.apps.card.layout import Section, Table
from seer_jax.apps.card.measured import Measured, Split, splits
from seer_jax.evals.groups import rates
from seer_jax.evals.robustness import corruptions

# Groups of people or regions; tables by other columns say nothing of fairness
# between people.
_ABOUT_PEOPLE = (
  *("gender", "sex", "age", "skin", "race", "ethnicity", "region", "country"),
  *("income", "religion", "disability"),
)


def best(found: Measured) -> str:
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


def quality(found: Measured) -> Section | None:
  """Accuracies of classifiers and of features."""
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


def groups(found: Measured) -> Section | None:
  """Gaps, and a table for each figure that is split."""
  every = list(splits(found.run))
  if not every:
    return None
  corrupted = [each for each in every if each.figure.startswith("corruptions/")]
  clean = [each for each in every if each not in corrupted] or every
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
    tables=[_gaps("Gaps of this model", clean, found)],
    details=[
      *([_gaps("Gaps under corruptions", corrupted, found)] * bool(corrupted)),
      *(_of_split(each, found) for each in every),
    ],
  )


def _gaps(caption, every, found):
  rows = []
  for split in every:
    of_group = {
      group: found.run[split.name(group)]
      for group in split.groups
      if split.name(group) in found.run and group != "unknown"
    }
    if len(of_group) < 2:
      continue
    high = max(of_group, key=of_group.get)
    low = min((each for each in of_group if each != high), key=of_group.get)
    rows.append(
      (
        f"{words.named(split.figure)}, by {words.column(split.column)}",
        f"{high}: {words.share(of_group[high])}",
        f"{low}: {words.share(of_group[low])}",
        words.rate(found.run, f"{split.figure}/{split.column}/gap").replace(
          " %", " points"
        ),
      )
    )
  return Table(caption, ("", "Highest", "Lowest", "Gap"), rows)


def _of_split(split: Split, found: Measured) -> Table:
  figures = found.run

  def label(name):
    group = name.rpartition("=")[2]
    return f"{group} ({int(figures[f'{name}/n']):,})"

  caption = f"{words.named(split.figure)}, by {words.column(split.column)}"
  names = [split.name(group) for group in split.groups]
  return _table(caption, "Group (number)", names, found, label)


def robustness(found: Measured) -> Section | None:
  """Corruptions and shifted sets."""
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


def others(found: Measured) -> Section | None:
  """Retrieval and geolocation."""
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


def missing(found: Measured) -> Section | None:
  """What no figure says."""
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


# How to read figures, by what the card has: an evaluation or a subject.
_GLOSSARY = {
  "knn": "kNN accuracy (k = 20): the share of test images whose 20 most similar"
  " training images vote for the right label.",
  "logistic": "Logistic regression: a linear classifier of the features.",
  "linear": "Linear probe: a linear classifier trained on the frozen network.",
  "untrained": "untrained: the same network before training, the least that"
  " training must beat.",
  "pixels": "pixels: the pixels of the shrunken image instead of features.",
  "phash": "phash: a perceptual hash, 64 bits made for finding copies.",
  "corruptions": "Corruptions: test images with noise, blur, weather or"
  " compression added; kept is the accuracy as a share of the clean one.",
  "retrieval": "Mean average precision: 100 % if all right images are ranked"
  " before all wrong ones.",
}


def glossary(found: Measured) -> Section | None:
  """How to read the figures that the card has."""
  kinds = {name.partition("/")[0] for name in found.run} | set(found.subjects)
  points = [text for key, text in _GLOSSARY.items() if key in kinds]
  if not points:
    return None
  points.append(
    "(a to b): with other images of the same kind, the figure would be in about"
    " this range 95 times of 100."
  )
  return Section("How to read the figures", points=points)
