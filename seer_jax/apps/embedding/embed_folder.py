"""Embeddings of a source, in a folder of Parquet shards.

A shard holds the embeddings of a fixed range of the source's images, and lists
the unusable ones in its footer. It appears complete or not at all, so an
interrupted pass resumes with the missing shards, and several processes divide
them without communication.
"""

import collections
import dataclasses
import functools
import json
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import jax
import tqdm

import seer_jax
from seer_jax.apps.embedding import embed, shards
from seer_jax.data import sources
from seer_jax.runtime import errors, files
from seer_jax.runtime import mesh as mesh_lib
from seer_jax.runtime.parallel import process_pool

# Keys that do not change the embeddings.
_LOCATIONS = "version", "weights", "source"
ABOUT, SHARDS, BAD = "about.json", "embeddings", "bad_images.txt"


class EmbeddedFolder:
  """Embeds a source into a folder, in shards."""

  def __init__(
    self,
    source: sources.Source,
    origin: dict[str, Any],
    weights: embed.Weights,
    out: pathlib.Path,
    options: embed.Options,
  ):
    """Starts or resumes in `out`.

    Raises UserError if it has other embeddings, or other files.

    Args:
      origin: arguments by which `open_source` opens the source again.
    """
    self._source, self._weights, self._out = source, weights, out
    self._origin, self._options = origin, options
    self._about = {
      "version": seer_jax.__version__,
      "weights": weights.name,
      "weights_fingerprint": weights.fingerprint,
      "preprocessing": dataclasses.asdict(weights.encoder.preprocessing),
      "tap": options.tap,
      "dtype": options.dtype,
      "precision": options.precision or mesh_lib.precision_here()[0],
      "source": origin,
      "source_fingerprint": source.fingerprint,
      "images": len(source),
      "max_pixels": options.max_pixels,
      "shard": options.shard,
      "shards": -(-len(source) // options.shard),
    }
    # With JSON's types, to compare it with what is read.
    self._about = json.loads(json.dumps(self._about))
    self._shards = shards_of(out, self._about)
    self._begin()

  def _begin(self):
    path = self._out / ABOUT
    if path.exists():
      theirs = read_about(self._out)
      for key, ours in lasting(self._about).items():
        if theirs.get(key) != ours:
          raise errors.UserError(
            f"{self._out} has other embeddings: {key} was"
            f" {errors.shown(str(theirs.get(key)))}, is"
            f" {errors.shown(str(ours))}; give another --out"
          )
      return
    there = [p.name for p in self._out.iterdir()] if self._out.is_dir() else []
    # Hidden files: another process may be writing the same one.
    others = sorted(name for name in there if not name.startswith("."))
    if others:
      raise errors.UserError(
        f"{self._out} is not empty: it has {others[0]}; give a new --out"
      )
    files.write_text(path, json.dumps(self._about, indent=1) + "\n")

  def run(
    self,
    process: int = 0,
    processes: int = 1,
    pool: process_pool.Pool | None = None,
  ) -> str:
    """Embeds the missing ones of every `processes`-th shard; returns a summary.

    Raises UserError if no image is usable, Lost if the disk is full, and
    Stopped after `process_pool.stop`; finished shards stay.

    Args:
      process: which of several processes this is, which divide the shards.
      processes: how many there are.
      pool: embeds one shard a task, instead of this process; its machines
        share the folder.
    """
    mine = range(process, self._about["shards"], processes)
    missing = [at for at in mine if not self._shards[at].exists()]
    images = sum(len(self._indices(at)) for at in mine)
    left = sum(len(self._indices(at)) for at in missing)
    began = time.monotonic()
    with tqdm.tqdm(total=images, initial=images - left, unit=" images") as bar:
      if pool is not None:
        for _ in pool.each(self, missing, bar.update):
          pass
      elif missing:
        self._embed(missing, bar.update)
    seconds = time.monotonic() - began
    speed = f" at {left / seconds:,.1f} images/s" if missing else ""
    unfinished = self._about["shards"] - sum(
      self._shards[at].exists() for at in range(self._about["shards"])
    )
    if unfinished:
      return (
        f"{left} images embedded{speed}; {unfinished} of"
        f" {self._about['shards']} shards are left to other processes"
      )
    return self._finish(speed)

  def __call__(self, shard: int) -> None:
    """Embeds one shard, as a task of a pool."""

    def ticked(images):
      for _ in range(images):
        process_pool.tick()

    self._embed([shard], ticked)

  def __getstate__(self):
    weights = self._weights.name, self._weights.fingerprint
    # A machine of the pool may prefer another precision.
    options = dataclasses.replace(
      self._options, precision=self._about["precision"]
    )
    return self._source, self._origin, weights, self._out, options

  def __setstate__(self, state):
    source, origin, (name, fingerprint), out, options = state
    # Each process of a pool compiles the network.
    jax.config.update("jax_compilation_cache_dir", str(files.cache_folder()))
    weights = embed.open_weights(name)
    if weights.fingerprint != fingerprint:
      raise errors.UserError(
        f"the weights {name} are others here than where the command was"
        " started; copy them to all machines"
      )
    self.__init__(source, origin, weights, out, options)

  @functools.cached_property
  def _embedder(self):
    return embed.Embedder(self._weights, self._options)

  def _embed(self, missing, progress):
    look = embed.Look(
      self._source,
      self._weights.encoder.preprocessing,
      self._options.max_pixels,
    )

    def watched(index):
      process_pool.stop_if_asked()
      return look(index)

    found = self._embedder.of(watched, map(self._indices, missing), progress)
    for number, seen in zip(missing, found, strict=True):
      self._write(number, seen, self._embedder.width)
      process_pool.stop_if_asked()

  def _indices(self, shard):
    size = self._options.shard
    return range(shard * size, min(len(self._source), (shard + 1) * size))

  def _write(self, number, group, width):
    usable = [seen.facts for seen in group if seen.view_SxSx3 is not None]
    report = {"rows": len(usable), "bad": [], "excluded": 0}
    for index, seen in zip(self._indices(number), group, strict=True):
      if seen.view_SxSx3 is None and seen.reason:
        report["bad"].append([self._source.id_of(index), seen.reason])
      elif seen.view_SxSx3 is None:
        report["excluded"] += 1
    with files.whole_file(self._shards[number]) as file:
      shards.write(file, usable, width, self._options.dtype, report)

  def _finish(self, speed):
    """Combines the reports of all shards into the files beside them."""
    sums, bad = collections.Counter(), []
    for at in range(self._about["shards"]):
      report = shards.report_of(self._shards[at])
      sums.update(rows=report["rows"], excluded=report["excluded"])
      bad += report["bad"]
    path = self._out / BAD
    files.write_text(path, "".join(f"{name}\t{why}\n" for name, why in bad))
    if not sums["rows"]:
      raise errors.UserError(
        f"no image could be embedded; {path} gives the reasons"
      )
    about = self._about | {
      "rows": sums["rows"],
      "bad": len(bad),
      "excluded": sums["excluded"],
    }
    files.remove_parts(self._out / SHARDS)
    # Last: it marks the folder as finished.
    files.write_text(self._out / ABOUT, json.dumps(about, indent=1) + "\n")
    return (
      f"{sums['rows']} embeddings in {self._out / SHARDS}{speed}; {len(bad)}"
      f" unusable images are listed in {path}"
      + f", {sums['excluded']} were excluded"
      * bool(sums["excluded"])
    )


def lasting(about: Mapping[str, Any]) -> dict[str, Any]:
  """The keys that determine embeddings; others are names and paths."""
  return {key: about[key] for key in sorted(about) if key not in _LOCATIONS}


def shards_of(
  folder: pathlib.Path, about: Mapping[str, Any]
) -> list[pathlib.Path]:
  """The files of a folder's embeddings, in order, written or not."""
  count = about["shards"]
  return [
    folder / SHARDS / f"images-{at:06d}-of-{count:06d}.parquet"
    for at in range(count)
  ]


def read_about(folder: pathlib.Path) -> dict[str, Any]:
  """The description of a folder of embeddings; `rows` if it is finished.

  Raises UserError if it has none, or a damaged one.
  """
  path = folder / ABOUT
  try:
    about = json.loads(path.read_text())
    return about | {"shards": int(about["shards"]), "dtype": about["dtype"]}
  except FileNotFoundError:
    raise errors.UserError(
      f"{folder} has no embeddings ({ABOUT} is missing); compute them with:"
      f" seer-jax embed PHOTOS --weights WEIGHTS --out {folder}"
    ) from None
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise errors.UserError(
      f"{path} cannot be read ({error}); embed into another folder"
    ) from error
