"""`pack`, `inspect`, `prepare`, `curate`: shards, surveys, tables, lists."""

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


def _add_curate(parser):
  parser.add_argument(
    "features",
    metavar="FEATURES",
    help="folder of seer-jax embed, or .npy file: images x numbers",
  )
  add = functools.partial(option, parser)
  add("--keep", "N", "images to keep, or a share of them", required=True)
  add("--out", "LIST", "ids of those kept, one per line", required=True)
  add("--clusters", "N,N,N", "at each level (10 sqrt(images), / 10, / 100)", "")
  add(
    "--copies", "C", "cosine from which images are near copies; 1: none", 0.95
  )
  add(
    "--resampling",
    "N",
    "times each level is clustered again; not the first of 200,000 images",
    10,
  )
  add("--seed", "N", "of everything random", 0)
  add("--ids", "FILE", "of the rows of an .npy file, one per line")
  add("--report", "FILE", "clusters of the top level as CSV")
  add("--gallery", "FILE", "what is kept and dropped, as a page of pictures")


def _curate(options: argparse.Namespace) -> None:
  from seer_jax.apps import tables
  from seer_jax.apps.curation import curate, summary
  from seer_jax.apps.embedding import embeddings, shards
  from seer_jax.commands import logs, process
  from seer_jax.runtime import mesh as mesh_lib

  logs.show()
  process.keep_compiled()
  keep, settings = _curate_options(options)
  path = files.user_path(options.features)
  features = curate.opened(
    path, files.user_path(options.ids) if options.ids else None
  )
  if options.gallery and path.suffix == ".npy":
    raise errors.UserError(
      f"--gallery needs images, which {path} has not; leave it out, or embed"
      " them with seer-jax embed"
    )
  with preemption.Preemption(process_pool.stop):
    found = curate.curate(features, keep, settings, mesh_lib.make())
  rows = list(summary.levels(found))
  print(tables.terminal([list(rows[0]), *(list(r.values()) for r in rows)]))
  print(
    f"{features.shape[0]:,} images: {found.copies:,} near copies,"
    f" {len(found.kept):,} kept"
  )
  kept = "".join(f"{features.ids[row]}\n" for row in found.kept)
  files.write_text(files.user_path(options.out), kept)
  print(f"written: {options.out}; train on it with")
  print(f"  --config.data.train.only={options.out}")
  clusters = list(summary.clusters(found, features.ids))
  if options.report:
    files.write_text(files.user_path(options.report), shards.as_csv(clusters))
    print(f"written: {options.report}")
  if options.gallery:
    page = summary.page(found, embeddings.Embeddings(path))
    files.write_text(files.user_path(options.gallery), page)
    print(f"written: {options.gallery}")


def _curate_options(options):
  """(how much to keep, how images are clustered)."""
  from seer_jax.apps.curation import curate

  try:
    keep = float(options.keep)
    clusters = tuple(map(int, filter(None, options.clusters.split(","))))
  except ValueError:
    raise errors.UserError(
      f"--keep is {options.keep} and --clusters {options.clusters!r}; give"
      " numbers, as in --keep 0.5 --clusters 10000,1000,100"
    ) from None
  if not -1 <= options.copies <= 1 or options.resampling < 0:
    raise errors.UserError(
      f"--copies is {options.copies:g}, a cosine of -1 to 1, and --resampling"
      f" {options.resampling}, which must be 0 or more; correct them"
    )
  return keep, curate.Options(
    clusters, options.copies, options.resampling, options.seed
  )


CURATE = Command(
  "Selects images for training: no near copies, all concepts alike.",
  (
    "seer-jax curate ~/photos.seer --keep 0.5 --out chosen.txt",
    "seer-jax curate x.npy --ids ids.txt --keep 100000 --out chosen.txt"
    " --clusters 10000,1000,100",
  ),
  _add_curate,
  _curate,
)
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
