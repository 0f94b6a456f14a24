"""Where images come from: one protocol, and a file for each kind."""

from collections.abc import Collection, Mapping
from typing import Any

from seer_jax.data.sources import opt_out, subset
from seer_jax.data.sources.array_record import ArrayRecords
from seer_jax.data.sources.base import Source
from seer_jax.data.sources.file_list import Listing
from seer_jax.data.sources.folder import Folder
from seer_jax.data.sources.mixture import Mixture
from seer_jax.data.sources.subset import Subset
from seer_jax.data.sources.synthetic import Digits, Synthetic
from seer_jax.data.sources.tar import Tars
from seer_jax.data.sources.tfds import Tfds
from seer_jax.data.storage.example import EXTENSIONS, UNLABELLED, Example
from seer_jax.runtime import errors

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
  "Portable",
  "Source",
  "Subset",
  "Synthetic",
  "Tars",
  "Tfds",
  "exclude_lists",
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
  # For a folder: the sub-folder to read. For TFDS: in its language. For the
  # digits: train, test or all.
  "split": "",
  "name": "",  # Of the TFDS dataset.
  # For a list: an `.npy` file with a label per entry. For ArrayRecords by other
  # programs: a text file with the name of each label.
  "labels": "",
  # For a list in Parquet or CSV: the column of paths; "" for the one named
  # path, image, file or url, or else the first column of strings.
  "column": "",
  # A file with the names of the only images to use, one per line.
  "only": "",
  # A part of one permutation of the images: a number, or up to 1 a share, after
  # skipping some; 1 is all the rest. If balanced, equally many of each class,
  # where shares are of the smallest.
  "take": 1.0,
  "skip": 0.0,
  "balanced": False,
  "take_seed": 0,  # Of the permutation.
  # A file of ids, paths or SHA-256 hashes, one per line: such images are never
  # used, neither in training nor in evaluations, wherever it is set.
  "exclude": "",
  # For a mix: a dict of these keys for each source, and its weight.
  "parts": (),
}


def open_source(
  options: Mapping[str, Any], exclude: Collection[str] = ()
) -> Source:
  """Opens the source that some of the keys of `DEFAULTS` describe.

  `exclude` are lists of images to leave out, in addition to those in `options`.
  Raises UserError if the kind or a key is unknown, or the source cannot be
  opened.
  """
  lists = {*exclude, *exclude_lists(options)}
  return _opened(options, opt_out.Exclusions(lists) if lists else None)


class Portable:
  """A source for work on other machines: they open it again by its keys.

  What other sources pickle may be in the cache of one machine. Where it is
  unpickled it raises UserError, unless it has the same images there.
  """

  def __init__(self, options: Mapping[str, Any]):
    """Opens the source of `open_source`."""
    self._options, self._source = dict(options), open_source(options)

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, i: int) -> Example:
    return self._source[i]

  def __repr__(self) -> str:
    return repr(self._source)

  def __getattr__(self, name: str) -> Any:
    if name.startswith("_"):
      raise AttributeError(name)
    return getattr(self._source, name)

  def __getstate__(self):
    return self._options, self._source.fingerprint, len(self)

  def __setstate__(self, state):
    self._options, fingerprint, count = state
    self._source = open_source(self._options)
    if (self._source.fingerprint, len(self)) != (fingerprint, count):
      raise errors.UserError(
        f"{self._options['path']} has {len(self)} images here, which are not"
        f" the {count} where the command was started; mount the same folder"
      )


def exclude_lists(options: Mapping[str, Any]) -> set[str]:
  """The paths of all lists of images that options exclude.

  Raises UserError if a part of a mixture is malformed.
  """
  lists = {options.get("exclude")} - {"", None}
  return lists.union(*map(exclude_lists, _parts(options)))


def _opened(options, exclusions, prefix=""):
  unknown = sorted(set(options) - set(DEFAULTS) - {"weight"})
  if unknown:
    raise errors.UserError(
      f"a source has no key {unknown[0]!r}; use {' '.join(DEFAULTS)}"
    )
  options = DEFAULTS | dict(options)
  if options["kind"] == "mix":
    return _mix(options, exclusions, prefix)
  source = _open(options)
  if exclusions:
    source = opt_out.Excluding(source, exclusions, prefix)
    # A mixture's list also has lines for other parts.
    if options["exclude"] and not prefix:
      opt_out.warn_of_idle_lines(source, options["exclude"])
  if options["only"]:
    source = subset.named(source, options["only"])
  if options["take"] != 1 or options["skip"] or options["balanced"]:
    keys = "take", "skip", "balanced", "take_seed"
    source = subset.some(source, *(options[key] for key in keys))
  return source


def _open(options):
  kind, path, split = (options[key] for key in ("kind", "path", "split"))
  if options["column"] and kind != "list":
    raise errors.UserError(
      f"column is {options['column']!r}, but kind is {kind} and only lists have"
      " columns; remove it"
    )
  match kind:
    case "folder":
      if not path:
        raise errors.UserError(
          "no folder given: path is ''; set it to a folder of images"
        )
      return Folder(f"{path}/{split}" if split else path)
    case "list":
      return Listing(path, options["labels"], options["column"])
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
    f"there is no kind of source {kind!r}; use {', '.join(KINDS)}"
  )


def _mix(options, exclusions, prefix):
  for key in ("only", "take", "skip", "balanced"):
    if options[key] != DEFAULTS[key]:
      raise errors.UserError(
        f"{key} is {options[key]!r}, but a mix has none; set it in its parts"
      )
  parts = _parts(options)
  if not parts:
    raise errors.UserError(
      "nothing to mix: parts is (); set it to sources, as"
      ' ({"kind": "folder", "path": "photos", "weight": 2}, ...)'
    )
  opened, weights = [], []
  for number, part in enumerate(parts):
    try:
      weights.append(_weight(part.get("weight", 1)))
      opened.append(_opened(part, exclusions, f"{prefix}{number}/"))
    except errors.UserError as error:
      raise errors.UserError(f"parts[{number}]: {error}") from error
  return Mixture(opened, weights)


def _parts(options) -> list[dict[str, Any]]:
  """The parts of a mixture; none of another source."""
  parts = options.get("parts", ())
  try:
    return [dict(part) for part in parts]
  except (TypeError, ValueError):
    raise errors.UserError(
      f"parts is {parts!r:.100}; set it to dicts of a source's keys, as"
      ' ({"kind": "folder", "path": "photos", "weight": 2}, ...)'
    ) from None


def _weight(weight):
  try:
    number = float(weight)
  except (TypeError, ValueError):
    raise errors.UserError(
      f"weight is {weight!r}; it must be a number"
    ) from None
  if not 0 < number < float("inf"):
    raise errors.UserError(f"weight is {number:g}; it must be positive")
  return number
