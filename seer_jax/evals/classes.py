"""Which classes of a classifier are right for a label of the images.

Labels are matched to classes by name. A label may name several classes,
separated by `|`: each is right (ReaL, ObjectNet, concepts of Dollar Street).
"""

import collections
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from seer_jax.runtime import errors, files

SEPARATOR = "|"


class Truth(NamedTuple):
  """The right answers."""

  right_LxC: np.ndarray  # Bool: for each label of the images, classes.
  # Bool: classes that may be predicted; None for all. The logits of others
  # count as -inf.
  allowed_C: np.ndarray | None = None


def of_labels(
  labels: Sequence[str], classes: Sequence[str], masked: bool = False
) -> Truth:
  """The truth of images with labels, for a classifier with named classes.

  Args:
    labels: names of the images' labels; numbers that are no names are those of
      classes, as the folders of ImageNet-V2 (sorted as text, 10 precedes 2).
    classes: names of the classifier's classes, in order.
    masked: whether only classes that some label names may be predicted, as
      published for ImageNet-A, ImageNet-R and ObjectNet.

  Raises:
    UserError: a label names no class.
  """
  number_of = {name: at for at, name in enumerate(classes)}
  right_LxC = np.zeros((len(labels), len(classes)), bool)
  for at, label in enumerate(labels):
    for name in label.split(SEPARATOR):
      if name not in number_of and name.isdigit() and int(name) < len(classes):
        right_LxC[at, int(name)] = True
        continue
      if name not in number_of:
        some = ", ".join(errors.shown(each) for each in classes[:3])
        raise errors.UserError(
          f"the images have the label {errors.shown(name)!r}, but it is no"
          f" class of the classifier, which has {len(classes)} ({some}, ...);"
          " correct the label, or set config.eval.class_names to a file with"
          " their names"
        )
      right_LxC[at, number_of[name]] = True
  return Truth(right_LxC, right_LxC.any(0) if masked else None)


def read_names(path: str) -> tuple[str, ...]:
  """The names of classes in a text file, one per line, in order.

  Raises UserError if the file cannot be read, or a name is there twice.
  """
  with errors.reading(path):
    text = files.user_path(path).read_text(errors="surrogateescape")
  names = tuple(line.strip() for line in text.splitlines() if line.strip())
  counts = collections.Counter(names)
  twice = [name for name, count in counts.items() if count > 1]
  if twice or not names:
    what = f"{twice[0]!r} twice" if twice else "no names"
    raise errors.UserError(f"{path} has {what}; give one class per line")
  return names
