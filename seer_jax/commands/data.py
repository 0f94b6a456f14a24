"""`pack`, `inspect`, `prepare`, `curate`: shards, surveys, tables, lists."""

import argparse
import functools
import os
from typing import Any

from seer_jax.commands.parser import Command, option
from seer_jax.runtime import errors, files, preemption
from seer_jax.runtime.parallel import process_pool

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


def add_pool(parser: argparse.ArgumentParser) -> None:
  """Adds the options that say where work runs."""
  several = parser.add_argument_group(
    "several machines",
    "--on ray: one task per shard on the Ray cluster at RAY_ADDRESS, whose\n"
    "machines share the folders. The same command resumes.",
  )
  add = functools.partial(option, several)
  add("--on", None, "local or ray", "local", choices=("local", "ray"))
  add("--task-cpus", "N", "of each task on Ray", 1.0)
  add("--task-gpus", "N", "of each task on Ray", 0.0)
  add("--task-memory", "GIB", "of each task on Ray; 0 is not counted", 0.0)


def cluster_of(options: argparse.Namespace, *paths: str) -> Any:
  """The cluster of `--on ray`; None for `--on local`.

  Raises UserError if it cannot do the work.

  Args:
    options: of `add_pool`.
    paths: files, folders, patterns and URLs that tasks read or write.
  """
  if options.on == "local":
    return None
  from seer_jax.data.storage import filesystem
  from seer_jax.runtime.parallel import ray_cluster

  task = options.task_cpus, options.task_gpus, options.task_memory
  if min(task) < 0 or not any(task):
    raise errors.UserError(
      f"--task-cpus is {task[0]:g}, --task-gpus {task[1]:g}, --task-memory"
      f" {task[2]:g}; none may be negative, and one must be positive"
    )
  local = [
    files.user_path(path).resolve()
    for path in paths
    if path and not filesystem.is_url(path)
  ]
  here = [path for path in local if path.exists()]  # Patterns do not.
  cluster = ray_cluster.Cluster(
    ray_cluster.address(), ray_cluster.Task(*task), here
  )
  print(f"on {cluster}")
  return cluster


def absolute_keys(options: argparse.Namespace) -> dict[str, Any]:
  """As `keys_of`, with paths that hold in any folder and on any machine."""
  from seer_jax.data.storage import filesystem

  keys = keys_of(options)
  for key in ("path", "labels", "exclude", "only"):
    keys[key] = filesystem.absolute(keys[key])
  return keys


def source_paths(keys: dict[str, Any]) -> tuple[str, ...]:
  """The files and folders of `absolute_keys`."""
  return keys["path"], keys["labels"], keys["exclude"], keys["only"]


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
  add_pool(parser)


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


def open_for(cluster: Any, keys: dict[str, Any]) -> Any:
  """The source of `absolute_keys`, for work here or on a cluster."""
  from seer_jax.data import sources

  source = (sources.Portable if cluster else sources.open_source)(keys)
  print(source)
  return source


def _pool(options, *paths):
  """(where work runs, the source)."""
  keys = absolute_keys(options)
  cluster = cluster_of(options, *source_paths(keys), *paths)
  source = open_for(cluster, keys)
  return cluster or process_pool.Local(options.workers), source


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
  target = files.user_path(options.target).resolve()
  if options.on == "ray":
    # Machines are asked whether they have it.
    with errors.writing(target):
      target.mkdir(parents=True, exist_ok=True)
  with preemption.Preemption(process_pool.stop):
    pool, source = _pool(options, str(target))
    done = pack.pack(
      source,
      target,
      shard=options.shard,
      side=options.side,
      max_pixels=options.max_pixels,
      pool=pool,
    )
    print(done)


def _add_inspect(parser):
  add_source(parser)
  add_pool(parser)


def _inspect(options: argparse.Namespace) -> None:
  from seer_jax.data import inspect

  with preemption.Preemption(process_pool.stop):
    pool, source = _pool(options)
    for line in inspect.report(source, options.max_pixels, pool):
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
    "--copies", "C", "cosine from which images are near copies; 1: none", 0.98
  )
  add(
    "--components",
    "N",
    "whitened principal components to compare by; 0: the features",
    0,
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
  kept = "".join(f"{name}\n" for name in features.ids_at(found.kept))
  files.write_text(files.user_path(options.out), kept)
  print(f"written: {options.out}; train on it with")
  print(f"  --config.data.train.only={options.out}")
  clusters = list(summary.clusters(found, features.ids_at))
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
    clusters,
    options.copies,
    options.components,
    options.resampling,
    options.seed,
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
  _add_inspect,
  _inspect,
)
