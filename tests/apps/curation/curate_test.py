"""Curation: exact clusters, near copies, balanced choices, by command."""

import csv

import numpy as np
import points
import pytest
from sklearn import cluster as sklearn_cluster

from seer_jax.apps.curation import (
  curate,
  grid,
  hierarchy,
  lloyd,
  near_copies,
  sampling,
  summary,
)
from seer_jax.apps.embedding import vectors
from seer_jax.data import sources
from seer_jax.runtime import errors
from seer_jax.runtime import mesh as mesh_lib


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def long_tail(count: int, width: int = 16, concepts: int = 12, noise=0.3):
  """(vectors around centres of which some are far more frequent, concepts)."""
  rng = np.random.default_rng(0)
  centre_CxD = rng.standard_normal((concepts, width))
  share_C = 100.0 ** (-np.arange(concepts) / (concepts - 1))
  kind_N = rng.choice(concepts, count, p=share_C / share_C.sum())
  x_NxD = centre_CxD[kind_N] + noise * rng.standard_normal((count, width))
  return x_NxD.astype(np.float32), kind_N


def on_grid(x_NxD):
  return grid.Points(grid.rounded(x_NxD))


# The grid.


@pytest.mark.parametrize("width", [3, 256, 3712, 11110])
def test_every_sum_on_the_grid_is_exact_in_float32(width):
  rng = np.random.default_rng(0)
  x_NxD = grid.rounded(rng.standard_normal((64, width))).astype(np.int64)
  # The worst case: two equal vectors, lengthened by rounding.
  worst = (x_NxD * x_NxD).sum(1) * 1.5
  assert worst.max() <= 2**23
  assert worst.min() >= 2**23 * (0.85 if width > 3712 else 0.9)


def test_the_grid_keeps_directions():
  x_NxD = np.random.default_rng(0).standard_normal((50, 256))
  unit_NxD = vectors.unit(x_NxD)
  moved_N = np.linalg.norm(
    grid.rounded(x_NxD) / grid.scale_of(256) - unit_NxD, axis=1
  )
  assert moved_N.max() < 3e-3


def test_components_are_white(tmp_path):
  x_NxD, _ = long_tail(500)
  x_NxD[:, 3] *= 20
  found_NxC = grid.write(
    tmp_path / "x", lambda: iter([x_NxD]), x_NxD.shape, str, components=5
  )
  assert found_NxC.shape == (500, 5)
  unit_NxD = vectors.unit(x_NxD).astype(np.float64)
  unit_NxD -= unit_NxD.mean(0)
  u_NxD, _, _ = np.linalg.svd(unit_NxD, full_matrices=False)
  theirs_NxC = vectors.unit(u_NxD[:, :5])
  ours_NxC = found_NxC[:, ::-1] / grid.scale_of(5)
  signs_C = np.sign((ours_NxC * theirs_NxC).sum(0))
  np.testing.assert_allclose(ours_NxC * signs_C, theirs_NxC, atol=5e-3)


# k-means.


def test_assignment_is_that_of_integers():
  points_NxD = on_grid(long_tail(2500)[0])
  centre_KxD = points_NxD.block(0, 1100)
  found = lloyd.assign(points_NxD, centre_KxD, mesh_lib.make(2))
  x, c = (
    each.astype(np.int64) for each in (points_NxD.block(0, 2500), centre_KxD)
  )
  distance_NxK = ((x[:, None] - c) ** 2).sum(-1)
  np.testing.assert_array_equal(found[0], distance_NxK.argmin(1))
  np.testing.assert_array_equal(found[1], distance_NxK.min(1))
  sums_KxD = np.zeros(c.shape, np.int64)
  np.add.at(sums_KxD, found[0], x)
  np.testing.assert_array_equal(found[2], sums_KxD)


def test_inertia_is_within_a_percent_of_scikit_learn():
  x_NxD, _ = long_tail(4000, concepts=40)
  found = lloyd.fit(on_grid(x_NxD), 40, mesh_lib.make(1))
  theirs = sklearn_cluster.KMeans(40, n_init=3, random_state=0)
  # scikit-learn's centres are means.
  unit_NxD, inertia = vectors.unit(x_NxD), 0.0
  for number in range(40):
    mine = unit_NxD[found.cluster_N == number]
    inertia += ((mine - mine.mean(0)) ** 2).sum()
  assert inertia < 1.01 * theirs.fit(unit_NxD).inertia_


def test_equal_points_leave_clusters_empty_and_nothing_breaks():
  points_NxD = grid.Points(np.repeat(grid.rounded(np.eye(4)), 5, axis=0))
  found = lloyd.fit(points_NxD, 7, mesh_lib.make(1))
  assert found.inertia == 0 and len(found.centre_KxD) == 7


def test_resampling_makes_clusters_more_alike():
  points_NxD = on_grid(long_tail(4000)[0])

  def evenness(resampling):
    found = hierarchy.clustered(
      points_NxD, 48, mesh_lib.make(1), resampling=resampling
    )
    # Of concepts: with as many clusters each, centres are far from each other.
    c_KxD = vectors.unit(found.centre_KxD)
    return np.sort(c_KxD @ c_KxD.T, axis=1)[:, -2].mean()

  assert evenness(10) < evenness(0)


@pytest.mark.parametrize("images", [1, 2, 19, 334, 10**4, 10**9])
def test_default_levels_fit_any_number_of_images(images):
  levels = hierarchy.levels_of(images)
  hierarchy.check_levels(levels, images)
  assert len(levels) == 3 or images < 400


# Near copies.


def test_a_copy_is_a_point_with_a_close_one_farther_out():
  x_NxD, _ = long_tail(3000, concepts=4, noise=0.2)
  points_NxD = on_grid(x_NxD)
  found = lloyd.fit(points_NxD, 3, mesh_lib.make(1))
  keeps = near_copies.kept(points_NxD, found, 0.9, mesh_lib.make(2))
  x_NxD = points_NxD.block(0, 3000).astype(np.int64)
  least = 0.9 * grid.scale_of(16) ** 2
  wanted = []
  for row in range(3000):
    same = np.flatnonzero(found.cluster_N == found.cluster_N[row])
    ahead = found.distance_N[same] > found.distance_N[row]
    ahead |= (found.distance_N[same] == found.distance_N[row]) & (same < row)
    if not (x_NxD[same[ahead]] @ x_NxD[row] >= least).any():
      wanted.append(row)
  assert 3 < len(wanted) < 2900
  np.testing.assert_array_equal(keeps, wanted)


def test_equal_images_are_kept_once():
  x_NxD = np.random.default_rng(0).standard_normal((40, 64))
  points_NxD = on_grid(np.concatenate([x_NxD, x_NxD, x_NxD]))
  found = lloyd.fit(points_NxD, 4, mesh_lib.make(1))
  keeps = near_copies.kept(points_NxD, found, 0.99, mesh_lib.make(1))
  assert len(keeps) == 40 and len({row % 40 for row in keeps.tolist()}) == 40
  ones = features_of(np.concatenate([x_NxD, x_NxD, x_NxD]))
  options = curate.Options((4,), cosine=1.0, resampling=0)
  every = curate.curate(ones, 1.0, options, mesh_lib.make(1))
  assert len(every.kept) == 120 and not every.copies


# Balanced choices.


@pytest.mark.parametrize("total", [0, 1, 9, 10, 37, 110])
def test_shares_are_as_equal_as_capacities_allow(total):
  capacity_K = np.array([3, 50, 0, 7, 50])
  share_K = sampling.shares(capacity_K, total, np.random.default_rng(0))
  assert share_K.sum() == total and (share_K <= capacity_K).all()
  # None that could have more has less than another, but for what is left over.
  room = share_K[share_K < capacity_K]
  if len(room):
    assert share_K.max() - room.min() <= 1


def test_a_level_shares_what_its_parent_got():
  finest_N = np.repeat([0, 1, 2, 3], [1000, 10, 10, 10])
  parents = [finest_N, np.array([0, 0, 1, 1])]
  kept = sampling.sample(parents, 40, seed=0)
  sizes = np.bincount(finest_N[kept])
  assert sizes.tolist() == [10, 10, 10, 10]
  assert len(np.unique(kept)) == 40
  assert (np.diff(kept) > 0).all()


# All of it.


def features_of(x_NxD):
  def ids_at(rows):
    return [f"{row:05}.jpg" for row in rows]

  return curate.Features(x_NxD.shape, lambda: iter([x_NxD]), ids_at, "x")


def entropy(kind_N):
  return summary.evenness(np.bincount(kind_N))


def test_what_is_kept_has_a_flatter_tail():
  x_NxD, kind_N = long_tail(6000)
  options = curate.Options((775, 77, 12), cosine=1.0)
  found = curate.curate(features_of(x_NxD), 600, options, mesh_lib.make(1))
  assert len(found.kept) == 600
  assert entropy(kind_N) < 0.8 and entropy(kind_N[found.kept]) > 0.95
  top = next(summary.levels(found))
  assert float(top["evenness before"]) < float(top["evenness after"])


def test_one_device_and_eight_choose_the_same(tmp_path, monkeypatch):
  x_NxD, _ = long_tail(3000)
  options = curate.Options((120, 30, 6), resampling=2)
  chosen = []
  for devices in (1, 8):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / f"cache{devices}"))
    mesh = mesh_lib.make(devices)
    chosen.append(curate.curate(features_of(x_NxD), 0.25, options, mesh))
  for one, other in zip(*chosen, strict=True):
    np.testing.assert_array_equal(one, other)
  assert chosen[0].copies > 0


def test_it_resumes_after_the_last_level(monkeypatch):
  x_NxD, _ = long_tail(3000)
  options = curate.Options((100, 20, 4), cosine=0.99, resampling=0)
  mesh, fits = mesh_lib.make(1), []
  real = lloyd.fit

  def dies_at_the_third(points_NxD, k, *arguments, **more):
    if k == 20 and len(fits) == 2:
      raise KeyboardInterrupt
    fits.append(k)
    return real(points_NxD, k, *arguments, **more)

  monkeypatch.setattr(lloyd, "fit", dies_at_the_third)
  with pytest.raises(KeyboardInterrupt):
    curate.curate(features_of(x_NxD), 0.5, options, mesh)
  assert fits == [near_copies.clusters_of(3000), 100]
  fits.append(0)  # Alive again.
  resumed = curate.curate(features_of(x_NxD), 0.5, options, mesh)
  assert fits[3:] == [20, 4]
  # Another size needs none of it, nor the features.
  again = features_of(x_NxD)._replace(parts=None)
  fewer = curate.curate(again, 0.25, options, mesh)
  assert len(fits) == 5 and len(fewer.kept) < len(resumed.kept)


# By command.


@pytest.fixture
def array(tmp_path):
  x_NxD, _ = long_tail(1500)
  np.save(tmp_path / "x.npy", x_NxD)
  return tmp_path / "x.npy"


def test_an_array_gives_a_list_and_a_report(seer, array, tmp_path):
  (tmp_path / "ids.txt").write_text("".join(f"i{row}\n" for row in range(1500)))
  status, said, err = seer(
    *("curate", array, "--keep", 0.2, "--out", tmp_path / "list.txt"),
    *("--ids", tmp_path / "ids.txt", "--report", tmp_path / "clusters.csv"),
    *("--clusters", "60,12,4", "--resampling", 1, "--copies", 0.99),
  )
  assert status == 0, err
  assert "near copies, 300 kept" in said and "evenness after" in said
  names = (tmp_path / "list.txt").read_text().splitlines()
  assert len(set(names)) == 300 and names[0].startswith("i")
  with (tmp_path / "clusters.csv").open() as file:
    rows = list(csv.DictReader(file))
  assert sum(int(row["images"]) for row in rows) == 1500
  assert sum(int(row["kept"]) for row in rows) == 300
  for row in rows:
    assert (row["medoid_kept"] in names) == (row["kept"] != "0")
    assert row["medoid_dropped"] not in names


def test_the_list_is_a_source_and_the_page_shows_it(seer, tmp_path):
  folder = points.make(tmp_path, 12)
  status, _, err = seer(
    *("curate", folder, "--keep", 5, "--out", tmp_path / "list.txt"),
    *("--clusters", "4,2", "--copies", 1, "--gallery", tmp_path / "page.html"),
  )
  assert status == 0, err
  source = sources.open_source(
    {
      "kind": "folder",
      "path": str(tmp_path / "pictures"),
      "only": str(tmp_path / "list.txt"),
    }
  )
  assert len(source) == 5
  page = (tmp_path / "page.html").read_text()
  assert page.count("<img") == 12 and "dropped" in page


@pytest.mark.parametrize(
  ("arguments", "words"),
  [
    (("--keep", 0.5, "--clusters", "10,20"), "must fall"),
    (("--keep", 0.5, "--clusters", "2000,20"), "2000 to 20 clusters of 1500"),
    (("--keep", 0.5, "--clusters", "a"), "--clusters 'a'; give numbers"),
    (("--keep", 0.5, "--copies", 3), "--copies is 3"),
    (("--keep", 0.5, "--components", 17), "features have 16 numbers"),
    (("--keep", 0), "--keep is 0, of 1500 images"),
    (("--keep", 1501), "--keep is 1501, of 1500 images"),
    (("--keep", 1400, "--copies", 0.5), "1400 images, but"),
    (("--keep", 0.5, "--gallery", "x.html"), "--gallery needs images"),
    (("--keep", 0.5, "--ids", "no.txt"), "cannot read no.txt"),
  ],
)
def test_mistakes_are_one_line(seer, array, tmp_path, arguments, words):
  out = ("--out", tmp_path / "list.txt", "--resampling", 0)
  status, _, err = seer("curate", array, *out, *arguments)
  assert status == 2 and words in err
  assert "Traceback" not in err and not (tmp_path / "list.txt").exists()


@pytest.mark.parametrize(
  ("x", "words"),
  [
    (np.zeros((3, 2, 2)), "of shape (3, 2, 2)"),
    (np.zeros((3, 2), int), "int64 of shape (3, 2)"),
    (np.array([[0, 1], [2, np.nan], [1, 1]]), "features of 1 are not finite"),
  ],
)
def test_features_that_cannot_be_used_are_one_line(seer, tmp_path, x, words):
  np.save(tmp_path / "x.npy", x)
  arguments = ("--keep", 2, "--out", tmp_path / "l", "--clusters", "1")
  status, _, err = seer("curate", tmp_path / "x.npy", *arguments)
  assert status == 2 and words in err


def test_a_file_that_is_no_array_is_one_line(seer, tmp_path):
  (tmp_path / "x.npy").touch()
  status, _, err = seer("curate", "x.npy", "--keep", 2, "--out", "list.txt")
  assert status == 2 and "is no array" in err


def test_parts_of_another_width_are_one_line():
  parts = [np.zeros((2, 3)), np.zeros((1, 4))]
  features = features_of(np.zeros((3, 3)))._replace(parts=lambda: iter(parts))
  with pytest.raises(
    errors.UserError, match="from 00002.jpg on have 4 numbers"
  ):
    curate.curate(features, 1.0, curate.Options((1,)), mesh_lib.make(1))
