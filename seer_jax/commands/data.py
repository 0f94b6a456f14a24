"""`pack` and `inspect`: images into shards, and what is in them."""

import argparse
import os
from typing import Any

from seer_jax.commands.parser import Command
from seer_jax.runtime import errors, files, preemption, process_pool

# Options that are keys of a source too.
_KEYS = (
  *("split", "name", "labels", "column", "exclude", "only"),
  *("take", "skip", "balanced"),
)


def add_source(parser: argparse.ArgumentParser) -> None:
  """Adds the options that describe a source."""
  add = parser.add_argument
  add("source", metavar="SRC", help="folder, list, shards, or a URL of these")
  add("--kind", help="of SRC, if SRC does not show: folder, list, tar, tfds...")
  add("--split", default="", help="as config.data.train.split")
  add("--name", default="", help="of the TFDS data set")
  add("--labels", metavar="FILE", default="", help="of a list: .npy of labels")
  add(
    "--column",
    metavar="NAME",
    default="",
    help="of a list in Parquet or CSV: with the paths",
  )
  add(
    "--exclude",
    metavar="FILE",
    default="",
    help="ids, paths or SHA-256 hashes of images to leave out, a line each",
  )
  add("--only", metavar="FILE", default="", help="names the images to take")
  add("--take", type=float, default=1.0, help="share or number to take")
  add("--skip", type=float, default=0.0, help="share or number to leave before")
  add("--balanced", action="store_true", help="as many of each class")
  add(
    "--workers",
    metavar="N",
    type=int,
    default=os.cpu_count(),
    help="how many read images at once (%(default)s)",
  )
  add(
    "--max_pixels",
    metavar="N",
    type=int,
    default=200_000_000,
    help="larger images are unusable (%(default)s)",
  )


def _add_pack(parser):
  add_source(parser)
  add = parser.add_argument
  add("target", metavar="DST", help="folder for the shards")
  add(
    "--side",
    metavar="PIXELS",
    type=int,
    default=0,
    help="shrink shorter sides to this; 0 leaves them",
  )
  add(
    "--shard",
    metavar="N",
    type=int,
    help="images a shard (4096; of small collections fewer)",
  )


def keys_of(options: argparse.Namespace) -> dict[str, Any]:
  """The keys of a source that the options describe, for `open_source`.

  Raises:
    UserError: a number is not positive; a mixture.
  """
  from seer_jax.data import pack

  kind = options.kind
  if kind is None:
    kind = pack.kind_of(os.path.expanduser(options.source))
  if kind == "mix":
    raise errors.UserError("--kind=mix is for training: give one source a time")
  for key in ("shard", "workers", "max_pixels"):
    value = getattr(options, key, None)
    if value is not None and value < 1:
      raise errors.UserError(f"--{key} must be positive")
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
      f"DST is {options.target}; shards are written to this machine's file"
      " systems only: give a folder, then copy it"
    )
  if options.side < 0:
    raise errors.UserError("--side must be 0 or positive")
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


PACK = Command(
  "Packs images into ArrayRecord shards, without EXIF and GPS; resumes.",
  (
    "seer-jax pack ~/photos ~/packed",
    "seer-jax pack 'gs://bucket/x-*.tar' ~/packed --side=512 --shard=1000",
  ),
  _add_pack,
  _pack,
)
INSPECT = Command(
  "Looks through images: sizes, labels, unusable and equal ones, speed.",
  (
    "seer-jax inspect ~/photos",
    "seer-jax inspect list.txt --labels=labels.npy",
  ),
  add_source,
  _inspect,
)
