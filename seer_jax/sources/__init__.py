"""Where images come from: one protocol, and a file for each kind."""

from collections.abc import Mapping
from typing import Any

from seer_jax import errors
from seer_jax.sources import choice
from seer_jax.sources.array_records import ArrayRecords
from seer_jax.sources.folder import Folder
from seer_jax.sources.listing import Listing
from seer_jax.sources.made import Digits, Synthetic
from seer_jax.sources.mixture import Mixture
from seer_jax.sources.source import EXTENSIONS, UNLABELLED, Example, Source
from seer_jax.sources.tars import Tars
from seer_jax.sources.tfds import Tfds

__all__ = [
  "EXTENSIONS",
  "KINDS",
  "UNLABELLED",
  "ArrayRecords",
  "Digits",
  "Example",
  "Folder",
  "Listing",
  "Mixture",
  "Source",
  "Synthetic",
  "Tars",
  "Tfds",
  "open_source",
]

KINDS = (
  *("folder", "list", "array_record", "tar", "tfds"),
  *("digits", "synthetic", "mix"),
)
# The keys of `config.data.train` and `.test`.
DEFAULTS = {
  "kind": "folder",
  # A folder, list, shards (a folder of them or a pattern), or TFDS's data_dir.
  "path": "",
  # Of a folder: the sub-folder to read. Of TFDS: as it spells them. Of the
  # digits: train, test or all.
  "split": "",
  "name": "",  # Of TFDS: the data set.
  # Of a list: an `.npy` file with a label for each entry. Of ArrayRecords of
  # others: a text file with the name of each number.
  "labels": "",
  # A file that names the images to use, a line each, and no others.
  "only": "",
  # A part of one permutation of the images: so many, up to 1 as a share, after
  # leaving out so many; if balanced, as many of each class.
  "take": 1.0,
  "skip": 0.0,
  "balanced": False,
  "take_seed": 0,  # Of the permutation.
  # A file of ids, paths or SHA-256 hashes, a line each: such images are never
  # used, in training or in evaluations.
  "exclude": "",
  # Of a mix: a dict of these keys for each source, and its weight.
  "parts": (),
}


def open_source(options: Mapping[str, Any]) -> Source:
  """Opens what a config describes.

  Args:
    options: some of the keys of `DEFAULTS`.

  Raises:
    UserError: the kind is unknown, a key is, or the source cannot be opened.
  """
  unknown = sorted(set(options) - set(DEFAULTS) - {"weight"})
  if unknown:
    raise errors.UserError(
      f"no such key of a source: {unknown[0]!r}; there are {' '.join(DEFAULTS)}"
    )
  options = DEFAULTS | dict(options)
  if options["kind"] == "mix":
    return _mix(options)
  source = _open(options)
  if options["only"]:
    source = choice.named(source, options["only"])
  if options["take"] != 1 or options["skip"] or options["balanced"]:
    keys = "take", "skip", "balanced", "take_seed"
    source = choice.some(source, *(options[key] for key in keys))
  # Last, so that nothing gets around it.
  if options["exclude"]:
    source = choice.Excluding(source, options["exclude"])
  return source


def _open(options):
  kind, path, split = (options[key] for key in ("kind", "path", "split"))
  match kind:
    case "folder":
      if not path:
        raise errors.UserError(
          "no folder given: path is ''; set it to a folder of images"
        )
      return Folder(f"{path}/{split}" if split else path)
    case "list":
      return Listing(path, options["labels"])
    case "array_record":
      return ArrayRecords(path, options["labels"])
    case "tar":
      return Tars(path)
    case "tfds":
      return Tfds(options["name"], path, split)
    case "digits":
      return Digits(split or "all")
    case "synthetic":
      return Synthetic()
  raise errors.UserError(
    f"no such kind of source: {kind!r}; use one of {', '.join(KINDS)}"
  )


def _mix(options):
  parts, exclude = options["parts"], options["exclude"]
  for key in ("only", "take", "skip", "balanced"):
    if options[key] != DEFAULTS[key]:
      raise errors.UserError(f"{key} is of single sources; set it in parts")
  if not parts:
    raise errors.UserError(
      "nothing to mix: parts is (); set it to sources, as"
      ' ({"kind": "folder", "path": "photos", "weight": 2}, ...)'
    )
  opened, weights = [], []
  for number, part in enumerate(parts):
    try:
      weight = float(part.get("weight", 1))
      if not 0 < weight < float("inf"):
        raise errors.UserError(f"weight is {weight:g}; it must be positive")
      source = open_source(part)
    except errors.UserError as error:
      raise errors.UserError(f"parts[{number}]: {error}") from error
    opened.append(choice.Excluding(source, exclude) if exclude else source)
    weights.append(weight)
  return Mixture(opened, weights)
