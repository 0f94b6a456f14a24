"""`pack`, `inspect`, `prepare`: shards, what is in images, tables of them."""

import argparse
import functools
import os
from typing import Any

from seer_jax.commands.parser import Command, option
from seer_jax.runtime import errors, files, preemption, process_pool

# Options that are also keys of a source.
_KEYS = (
  *("split", "name", "labels", "column", "exclude", "only"),
  *("take", "skip", "balanced"),
)


def add_source(parser: argparse.ArgumentParser) -> None:
  """Adds the options that describe a source."""
  parser.add_argument(
    "source", metavar="SRC", help="folder, list, shards, or a URL of these"
  )
  add = functools.partial(option, parser)
  add(
    "--kind", None, "folder, list, tar, tfds...; found from SRC where possible"
  )
  add("--split", None, "as config.data.train.split", "")
  add("--name", None, "of the TFDS dataset", "")
  add("--labels", "FILE", "of a list: .npy file of labels", "")
  add("--column", "NAME", "of a list in Parquet or CSV: with the paths", "")
  add(
    "--exclude",
    "FILE",
    "ids, paths or SHA-256 hashes of images to leave out, one per line",
    "",
  )
  add("--only", "FILE", "names of the images to take, one per line", "")
  add("--take", "N", "share or number of images to take", 1.0)
  add("--skip", "N", "share or number of images to skip before", 0.0)
  parser.add_argument(
    "--balanced", action="store_true", help="take equally many of each class"
  )
  add("--workers", "N", "images read concurrently", os.cpu_count())
  add("--max_pixels", "N", "images with more pixels are unusable", 200_000_000)


def _add_pack(parser):
  add_source(parser)
  parser.add_argument("target", metavar="DST", help="folder for the shards")
  add = functools.partial(option, parser)
  add("--side", "PIXELS", "shrink shorter sides to this, 0 for never", 0)
  add(
    "--shard",
    "N",
    "images per shard (4096; fewer for small collections)",
    kind=int,
  )


def keys_of(options: argparse.Namespace) -> dict[str, Any]:
  """The keys of a source (`open_source`) that the options describe.

  Raises UserError if a number is not positive, or it is a mixture.
  """
  from seer_jax.data import pack

  kind = options.kind
  if kind is None:
    kind = pack.kind_of(os.path.expanduser(options.source))
  if kind == "mix":
    raise errors.UserError(
      "--kind=mix is for training only; give one source at a time"
    )
  for key in ("shard", "workers", "max_pixels"):
    value = getattr(options, key, None)
    if value is not None and value < 1:
      raise errors.UserError(f"--{key} is {value}; it must be positive")
  keys = {key: getattr(options, key) for key in _KEYS}
  return keys | {"kind": kind, "path": options.source}


def _open(options):
  from seer_jax.data import sources

  return sources.open_source(keys_of(options))


def _pack(options: argparse.Namespace) -> None:
  from seer_jax.data import pack
  from seer_jax.data.storage import filesystem

  if filesystem.is_url(options.target):
    raise errors.UserError(
      f"DST is {options.target}, but shards can only be written to this"
      " machine's file systems; give a folder, and copy it afterwards"
    )
  if options.side < 0:
    raise errors.UserError(f"--side is {options.side}; it must be 0 or more")
  with preemption.Preemption(process_pool.stop):
    source = _open(options)
    print(source)
    done = pack.pack(
      source,
      files.user_path(options.target),
      shard=options.shard,
      side=options.side,
      max_pixels=options.max_pixels,
      workers=options.workers,
    )
    print(done)


def _inspect(options: argparse.Namespace) -> None:
  from seer_jax.data import inspect

  with preemption.Preemption(process_pool.stop):
    source = _open(options)
    print(source)
    for line in inspect.report(source, options.max_pixels, options.workers):
      print(line)


def _add_prepare(parser):
  parser.add_argument(
    "dataset",
    metavar="NAME",
    help="casual_conversations, miap, utkface, dollar_street, imagenet_a,"
    " imagenet_r, imagenet_sketch, imagenet_v2, objectnet, copydays,"
    " roxford5k, rparis6k, geolocation",
  )
  parser.add_argument("folder", metavar="FOLDER", help="of its images")
  parser.add_argument(
    "target",
    metavar="DST",
    help="CSV to write; of copydays, roxford5k and rparis6k a folder of them",
  )
  add = functools.partial(option, parser)
  add("--metadata", "FILE", "published JSON; gnd_*.pkl; CSV of coordinates")
  add("--concepts", "FILE", "JSON of Dollar Street: concept -> class names")
  add("--distractors", "DIR", "images that match nothing, for copydays")
  add("--cells", "FILE", "CSV of cells, for geolocation")


def _prepare(options: argparse.Namespace) -> None:
  from seer_jax.commands import logs
  from seer_jax.data.published import prepare

  logs.show()
  paths = {
    name: files.user_path(value) if value else None
    for name in ("metadata", "concepts", "distractors", "cells")
    for value in [getattr(options, name)]
  }
  written = prepare.prepare(
    options.dataset,
    files.user_path(options.folder),
    files.user_path(options.target),
    paths,
  )
  for path in written:
    print(path)


PREPARE = Command(
  "Makes tables of published test sets: images, labels, attributes.",
  (
    "seer-jax prepare utkface ~/UTKFace utk.csv",
    "seer-jax prepare roxford5k ~/oxford oxford --metadata gnd_roxford5k.pkl",
  ),
  _add_prepare,
  _prepare,
)
PACK = Command(
  "Packs images into ArrayRecord shards, without EXIF or GPS; resumes.",
  (
    "seer-jax pack ~/photos ~/packed",
    "seer-jax pack 'gs://bucket/x-*.tar' ~/packed --side=512 --shard=1000",
  ),
  _add_pack,
  _pack,
)
INSPECT = Command(
  "Surveys images: sizes, labels, unusable files, copies, reading speed.",
  (
    "seer-jax inspect ~/photos",
    "seer-jax inspect list.txt --labels=labels.npy",
  ),
  add_source,
  _inspect,
)
