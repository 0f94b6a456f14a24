"""Selects images for training from a large, unbalanced collection.

Near copies are left out (`near_copies`), the others are clustered level by
level (`hierarchy`), and all clusters give equal shares (`sampling`). Each step
is kept in the user's cache: the same command resumes after the last level, and
another number of images to keep needs no clustering.
"""

import dataclasses
import functools
import logging
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import jax
import numpy as np

import seer_jax
from seer_jax.apps.curation import (
  grid,
  hierarchy,
  lloyd,
  near_copies,
  sampling,
)
from seer_jax.apps.embedding import embeddings
from seer_jax.data.storage import filesystem
from seer_jax.runtime import errors, files

_log = logging.getLogger(__name__)


class Features(NamedTuple):
  """Features to choose by."""

  shape: tuple[int, int]  # N x D.
  parts: Callable[[], Iterator[np.ndarray]]  # Of them, in order.
  ids_at: Callable[[np.ndarray], list[str]]  # Of images at rising rows.
  fingerprint: str


@dataclasses.dataclass(frozen=True)
class Options:
  """How images are clustered."""

  clusters: tuple[int, ...] = ()  # At each level; () for `levels_of`.
  cosine: float = 0.98  # Near copies are at least this close; 1 keeps all.
  components: int = 0  # Whitened principal ones to use; 0 for the features.
  resampling: int = 10  # Steps at each level but the first of many images.
  seed: int = 0


# Images from which the first level is not resampled, as by the authors.
_LARGE = 200_000


class Curation(NamedTuple):
  """What was chosen, and from what."""

  kept: np.ndarray  # Rows of the images to train on, rising.
  copies: int  # Near copies, of which none is kept.
  cluster_LxN: np.ndarray  # Of each image at each level, the finest first.
  distance_N: np.ndarray  # Squared, to the centre of the top level's cluster.


def opened(path: pathlib.Path, ids: pathlib.Path | None = None) -> Features:
  """Features in a folder of `seer-jax embed`, or in an .npy file: NxD.

  Raises UserError if they cannot be read.

  Args:
    path: the folder or file.
    ids: names of the rows of a file, one per line; None for their numbers.
  """
  if path.suffix != ".npy":
    if ids is not None:
      raise errors.UserError(
        f"--ids is {ids}, but {path} has ids of its own; leave --ids out"
      )
    found = embeddings.Embeddings(path)
    shape = len(found), found.width
    return Features(shape, found.parts, found.ids_at, found.fingerprint)
  with errors.reading(path):
    try:
      x_NxD = np.load(path, mmap_mode="r")
    except (ValueError, EOFError) as error:
      raise errors.UserError(
        f"{path} is no array ({errors.one_line(error)}); write it with np.save"
      ) from error
  if x_NxD.ndim != 2 or not np.issubdtype(x_NxD.dtype, np.floating):
    raise errors.UserError(
      f"{path} has {x_NxD.dtype} of shape {x_NxD.shape}; features are floats of"
      " shape (images, numbers of each)"
    )
  names = range(len(x_NxD)) if ids is None else _lines(ids)
  if len(names) != len(x_NxD):
    raise errors.UserError(
      f"{ids} has {len(names)} lines, {path} has {len(x_NxD)} rows; give an id"
      " for each row"
    )
  return Features(
    x_NxD.shape,
    lambda: iter([x_NxD]),
    lambda rows: [str(names[row]) for row in rows],
    filesystem.fingerprint(str(path)),
  )


def _lines(path):
  with errors.reading(path):
    return path.read_text(errors="surrogateescape").splitlines()


def curate(
  features: Features, keep: float, options: Options, mesh: jax.sharding.Mesh
) -> Curation:
  """Chooses images, as evenly from the clusters as these allow.

  The result is the same for any mesh. Raises UserError if features are not
  usable, or there are fewer images than clusters or than images to keep.

  Args:
    features: of N images.
    keep: how many images; up to 1 a share of them.
    options: how they are clustered.
    mesh: its devices share the work.
  """
  count = features.shape[0]
  wanted = _wanted(keep, count)
  counts = options.clusters or tuple(hierarchy.levels_of(count))
  hierarchy.check_levels(counts, count)
  if not 0 <= options.components <= features.shape[1]:
    raise errors.UserError(
      f"--components is {options.components}; features have"
      f" {features.shape[1]} numbers: give 1 to that, or 0 for all as they are"
    )
  known = dataclasses.replace(options, clusters=counts)
  used = seer_jax.__version__, features.fingerprint, options.components
  folder = files.cached("curate", used, known)
  path = files.cached("curate", used).with_suffix(".int16")
  steps = _Steps(features, known, folder, path, mesh)
  distinct_M = steps.distinct()
  if wanted > len(distinct_M):
    raise errors.UserError(
      f"--keep asks for {wanted} images, but only {len(distinct_M)} of {count}"
      " are not near copies of another; keep fewer, or raise --copies"
    )
  levels = [steps.level(number) for number in range(len(counts))]
  parents = [level.cluster_N for level in levels]
  kept = distinct_M[sampling.sample(parents, wanted, options.seed)]
  cluster_N, distance_N = steps.all_images()
  path.unlink(missing_ok=True)
  above = [cluster_N, *parents[1:]]
  cluster_LxN = np.stack(list(hierarchy.of_images(above)))
  return Curation(kept, count - len(distinct_M), cluster_LxN, distance_N)


def _wanted(keep, count):
  wanted = round(keep * count) if keep <= 1 else keep
  if not 1 <= wanted <= count or wanted != int(wanted):
    raise errors.UserError(
      f"--keep is {keep:g}, of {count} images; give a share up to 1, or a"
      " number"
    )
  return int(wanted)


class _Steps:
  """The steps that take long, each computed once and kept in a folder."""

  def __init__(self, features, options, folder, path, mesh):
    self._features, self._options = features, options
    self._folder, self._path, self._mesh = folder, path, mesh

  @functools.cached_property
  def _points(self):
    return grid.Points(
      grid.write(
        self._path,
        self._features.parts,
        self._features.shape,
        lambda row: self._features.ids_at(np.array([row]))[0],
        self._options.components,
      )
    )

  def distinct(self) -> np.ndarray:
    """Rows of the images that are not near copies, rising."""
    return self._once("distinct", self._find_distinct)["rows"]

  def _find_distinct(self):
    count, options = len(self._points), self._options
    if options.cosine >= 1:
      return {"rows": np.arange(count)}
    k = near_copies.clusters_of(count)
    _log.info("near copies of %d images, in %d clusters", count, k)
    found = lloyd.fit(
      self._points, k, self._mesh, seed=options.seed, iterations=5
    )
    return {
      "rows": near_copies.kept(self._points, found, options.cosine, self._mesh)
    }

  def level(self, number: int) -> lloyd.Clusters:
    """The clusters of a level."""
    saved = self._once(f"level_{number + 1}", lambda: self._cluster(number))
    return lloyd.Clusters(**saved)

  def _cluster(self, number):
    if number:
      below = self.level(number - 1)
      points = grid.Points(lloyd.directions(below.centre_KxD))
    else:
      points = self._points.only(self.distinct())
    k, options = self._options.clusters[number], self._options
    if k > len(points):
      raise errors.UserError(
        f"--clusters asks for {k} clusters of {len(points)} images that are not"
        " near copies; ask for fewer"
      )
    resampling = options.resampling
    if not number and len(points) > _LARGE:
      resampling = 0
    _log.info(
      "level %d: %d clusters of %d %s, resampled %d times",
      number + 1,
      k,
      len(points),
      "centres" if number else "images",
      resampling,
    )
    found = hierarchy.clustered(
      points,
      k,
      self._mesh,
      resampling=resampling,
      seed=options.seed,
      spherical=number > 0,
    )
    return found._asdict()

  def all_images(self) -> tuple[np.ndarray, np.ndarray]:
    """(finest cluster, distance to the centre of the top level): N each."""
    found = self._once("images", self._assign_all)
    return found["cluster_N"], found["distance_N"]

  def _assign_all(self):
    points, rows = self._points, self.distinct()
    levels = [self.level(at) for at in range(len(self._options.clusters))]
    cluster_N = np.empty(len(points), np.int32)
    cluster_N[rows] = levels[0].cluster_N
    copies = np.setdiff1d(np.arange(len(points)), rows, assume_unique=True)
    if len(copies):
      centre_KxD = levels[0].centre_KxD
      found = lloyd.assign(points.only(copies), centre_KxD, self._mesh)
      cluster_N[copies] = found[0]
    above = [cluster_N, *(level.cluster_N for level in levels[1:])]
    *_, top_N = hierarchy.of_images(above)
    distance_N = grid.distances(points, levels[-1].centre_KxD, top_N)
    return {"cluster_N": cluster_N, "distance_N": distance_N}

  def _once(self, name, make: Callable[[], Mapping[str, np.ndarray]]):
    folder = self._folder / name
    if not folder.exists():
      found = make()
      with files.whole(folder) as part:
        part.mkdir()
        for key, value in found.items():
          np.save(part / f"{key}.npy", value)
    return {
      path.stem: np.load(path, mmap_mode="r") for path in folder.glob("*.npy")
    }
