"""Search, clusters and copies: over vectors, and by command over a folder."""

import csv
import pathlib
import sys

import cv2
import numpy as np
import photos
import pytest
from sklearn import metrics

import seer_jax
from seer_jax.apps.collection import cluster, kmeans, search
from seer_jax.apps.embedding import embed_folder, perceptual_hash, vectors
from seer_jax.runtime import errors


@pytest.fixture(scope="module")
def made(once, tiny):
  """A folder of 30 pictures with copies of some, and its embeddings."""

  def make(base):
    folder = photos.plant(base / "photos", 24, side=64)
    first = cv2.imread(str(folder / "cats" / "001.jpg"))
    (folder / "dogs" / "equal.jpg").write_bytes(
      (folder / "cats" / "001.jpg").read_bytes()
    )
    small = cv2.resize(first, (48, 48), interpolation=cv2.INTER_AREA)
    cv2.imwrite(str(folder / "dogs" / "small.jpg"), small)
    brighter = cv2.convertScaleAbs(
      cv2.imread(str(folder / "dogs" / "002.jpg")), alpha=1.1
    )
    cv2.imwrite(str(folder / "cats" / "brighter.png"), brighter)
    from seer_jax.apps.embedding import embed
    from seer_jax.data import sources

    keys = {"kind": "folder", "path": str(folder)}
    embed_folder.EmbeddedFolder(
      sources.open_source(keys),
      keys,
      embed.open_weights(str(tiny)),
      base / "out",
      embed.Options(batch_size=8),
    ).run()

  return once("collection", make)


def table(path):
  with open(path, newline="") as file:
    return list(csv.DictReader(file))


def test_search_by_id_image_and_several(seer, made, tmp_path):
  out = made / "out"
  status, said, err = seer("search", out, "cats/001.jpg", "--k", 3)
  assert status == 0, err
  first = said.splitlines()[1].split()
  assert first[0] == "1" and first[1] == "1.0000"
  assert first[2] == "dogs/equal.jpg"
  # The same image as a file: now its own is found too.
  path = tmp_path / "elsewhere.jpg"
  path.write_bytes((made / "photos/cats/001.jpg").read_bytes())
  results, page = tmp_path / "found.csv", tmp_path / "found.html"
  status, said, err = seer("search", out, path, "--out", results)
  assert status == 0, err
  found = {row["id"]: row["cosine"] for row in table(results)}
  assert len(found) == 10
  assert found["cats/001.jpg"] == found["dogs/equal.jpg"] == "1.0000"
  # The centroid of several.
  status, said, err = seer(
    *("search", out, path, "dogs/002.jpg", "--k", 5),
    *("--out", results, "--gallery", page),
  )
  assert status == 0, err
  rows = table(results)
  assert len(rows) == 5 and "dogs/002.jpg" not in {row["id"] for row in rows}
  text = page.read_text()
  assert text.count("data:image/jpeg") == 6 and "http" not in text


def test_exact_search_is_brute_force():
  rng = np.random.default_rng(0)
  bank = rng.standard_normal((300, 16)).astype(np.float16)
  query = rng.standard_normal((5, 16))
  index = seer_jax.Index(bank)
  similarity, rows = index.search(query, 4, without=[7, 9])
  wanted = vectors.unit(query) @ vectors.unit(bank).T
  wanted[:, [7, 9]] = -np.inf
  order = np.argsort(-wanted, 1)[:, :4]
  np.testing.assert_array_equal(rows, order)
  np.testing.assert_allclose(
    similarity, np.take_along_axis(wanted, order, 1), atol=1e-5
  )
  assert index.search(query[0], 1000)[1].shape == (1, 300)
  with pytest.raises(errors.UserError, match="has 3 numbers, but a vector"):
    index.search(np.zeros(3))
  with pytest.raises(errors.UserError, match="not finite"):
    index.search(np.full(16, np.nan))
  with pytest.raises(errors.UserError, match="at least 1"):
    seer_jax.Index(np.empty((0, 3), np.float32))


@pytest.mark.extras
def test_faiss_finds_the_same_and_is_kept(tmp_path, monkeypatch):
  pytest.importorskip("faiss", reason="needs .[faiss]")
  monkeypatch.setattr(search, "_FLAT", 100)
  rng = np.random.default_rng(0)
  centres = rng.standard_normal((20, 8))
  bank = centres[rng.integers(0, 20, 4000)] + rng.normal(0, 0.1, (4000, 8))
  exact = search.Index(bank.astype(np.float32)).search(bank[:50], 5)
  for _ in range(2):
    index = search.Index(
      bank.astype(np.float32), "faiss", tmp_path / "index.faiss"
    )
    found = index.search(bank[:50], 5)
    assert np.mean(found[1] == exact[1]) > 0.9
  assert (tmp_path / "index.faiss").exists()


def test_without_faiss_a_line_says_what_to_install(monkeypatch):
  monkeypatch.setitem(sys.modules, "faiss", None)
  with pytest.raises(errors.UserError, match="pip install"):
    search.Index(np.ones((3, 2), np.float32), "faiss")


def test_queries_that_cannot_be(seer, made, tmp_path):
  status, _, err = seer("search", made / "out", "cats/none.jpg")
  assert (
    status == 2 and "neither a file nor an id" in err and err.count("\n") == 1
  )
  (tmp_path / "x.jpg").write_bytes(b"nothing")
  status, _, err = seer("search", made / "out", tmp_path / "x.jpg")
  assert status == 2 and err.count("\n") == 1
  status, _, err = seer("search", tmp_path, "a")
  assert status == 2 and "has no embeddings" in err
  status, _, err = seer("search", made / "out", "cats/001.jpg", "--k", 0)
  assert status == 2 and "positive" in err
  one = photos.plant(tmp_path / "one", 1)
  weights = made.parent / "tiny"
  seer("embed", one, "--weights", weights, "--out", tmp_path / "o")
  status, _, err = seer("search", tmp_path / "o", "dogs/000.jpg")
  assert status == 2 and "no other image" in err


def test_other_weights_than_the_folders(seer, made, tmp_path):
  import jax

  from seer_jax.weights.exports import orbax

  network, variables = seer_jax.load(made.parent / "tiny")
  others = jax.tree.map(lambda x: x * 1.5, variables)
  orbax.write(tmp_path / "w", network, others)
  path = tmp_path / "a.png"
  cv2.imwrite(str(path), photos.scene())
  status, _, err = seer(
    "search", made / "out", path, "--weights", tmp_path / "w"
  )
  assert status == 2 and "was embedded with" in err


def blobs(count=600, centres=6, width=12, noise=0.15):
  rng = np.random.default_rng(1)
  middle = rng.standard_normal((centres, width))
  label = rng.permutation(np.arange(count) % centres)
  return (
    (middle[label] + rng.normal(0, noise, (count, width))).astype(np.float32),
    label,
  )


@pytest.mark.parametrize("method", ["kmeans", "balanced", "hdbscan"])
def test_clusters_are_what_is_there(method):
  x, label = blobs()
  (found,) = seer_jax.cluster(x, 6, method=method)
  inside = found.cluster_N >= 0
  assert inside.mean() > 0.95
  assert metrics.adjusted_rand_score(label[inside], found.cluster_N[inside]) > (
    0.99
  )
  assert found.sizes.max() == found.sizes[0]
  np.testing.assert_allclose(
    np.linalg.norm(found.centre_KxD, axis=1), 1, atol=1e-5
  )


def test_kmeans_is_as_good_as_scikit_learns(monkeypatch):
  from sklearn import cluster as sklearn_cluster

  monkeypatch.setattr(kmeans, "_CHUNK", 4000)  # Of several chunks, one short.
  x, _ = blobs(2500, 40, 16, 0.8)
  unit = vectors.unit(x)
  found = kmeans.spherical_kmeans(x.astype(np.float16), 20)
  inertia = np.sum((unit - found.centre_KxD[found.cluster_N]) ** 2)
  theirs = sklearn_cluster.KMeans(20, n_init=1, random_state=0).fit(unit)
  centre = vectors.unit(theirs.cluster_centers_)
  assert inertia < 1.03 * np.sum((unit - centre[theirs.labels_]) ** 2)
  again = kmeans.spherical_kmeans(x.astype(np.float16), 20)
  np.testing.assert_array_equal(again.cluster_N, found.cluster_N)


def test_balanced_clusters_hold_no_more_than_their_share():
  rng = np.random.default_rng(0)
  x, label = blobs(900, 3, 8, 0.3)
  x = x[rng.permutation(np.flatnonzero((label > 0) | (np.arange(900) < 60)))]
  found = kmeans.spherical_kmeans(x, 7, balanced=True)
  assert found.sizes.max() == -(-len(x) // 7) and found.sizes.sum() == len(x)


def test_a_hierarchy_nests():
  x, _ = blobs()
  fine, coarse = seer_jax.cluster(x, (20, 4))
  for number in range(20):
    assert len(set(coarse.cluster_N[fine.cluster_N == number])) == 1
  with pytest.raises(errors.UserError, match="must fall"):
    seer_jax.cluster(x, (4, 20))
  with pytest.raises(errors.UserError, match="k is 700, but there are 600"):
    seer_jax.cluster(x, 700)


def test_agreement_with_labels():
  cluster_N = np.array([0, 0, 0, 1, 1, -1])
  labels = np.array(["a", "a", "b", "b", None, "a"], object)
  found = cluster.agreement(cluster_N, labels)
  assert found.purity == 0.75 and found.images == 4
  assert 0 < found.nmi < 1
  assert cluster.agreement(cluster_N, None) is None


@pytest.mark.parametrize("method", ["kmeans", "prototypes"])
def test_the_command_writes_tables_and_links(seer, made, tmp_path, method):
  status, said, err = seer(
    *("cluster", made / "out", "--k", "5,2", "--method", method),
    *("--out", tmp_path / "c", "--links", tmp_path / "l"),
    *("--gallery", tmp_path / "page.html"),
  )
  assert status == 0, err
  rows = table(tmp_path / "c" / "clusters.csv")
  assert len(rows) == 27 and "purity" in said and "27 links" in said
  whole = table(tmp_path / "c" / "summary.csv")
  assert sum(int(row["size"]) for row in whole) == 27
  links = sorted(pathlib.Path(tmp_path / "l").rglob("*.*"))
  assert len(links) == 27
  by_name = {row["path"]: int(row["cluster"]) for row in rows}
  for link in links:
    assert by_name[str(link.resolve())] == int(link.parent.name)
  medoid = next(iter(sorted((tmp_path / "l" / "0000").iterdir())))
  assert str(medoid.resolve()).endswith(whole[0]["medoid"])
  status, _, err = seer("cluster", made / "out", "--links", tmp_path / "l")
  assert status == 2 and "already exists" in err


def test_copies_are_found_and_one_is_kept(seer, made, tmp_path):
  status, said, err = seer(
    *("duplicates", made / "out", "--out", tmp_path / "copies.csv"),
    *("--drop", tmp_path / "drop.txt", "--gallery", tmp_path / "page.html"),
  )
  assert status == 0, err
  rows = table(tmp_path / "copies.csv")
  groups = {}
  for row in rows:
    groups.setdefault(row["group"], []).append(row)
  names = [{row["id"] for row in group} for group in groups.values()]
  assert {"cats/001.jpg", "dogs/equal.jpg", "dogs/small.jpg"} in names
  assert {"dogs/002.jpg", "cats/brighter.png"} in names
  assert len(groups) == 2 and "2 groups" in said
  dropped = set((tmp_path / "drop.txt").read_text().split())
  # Of the largest the one of most bytes stays, of equal files the first.
  assert dropped == {"dogs/equal.jpg", "dogs/small.jpg", "dogs/002.jpg"}
  status, said, err = seer("duplicates", made / "out", "--bits", -1)
  assert status == 0 and "1 groups of copies, 1 of equal files" in said
  status, _, err = seer("duplicates", made / "out", "--bits", 30)
  assert status == 2 and "--bits" in err


def test_close_hashes_are_all_found():
  rng = np.random.default_rng(0)
  hashes = rng.integers(0, 2**63, 400, np.uint64)
  for row in range(0, 200, 2):
    flips = rng.choice(64, rng.integers(0, 13), replace=False)
    mask = np.bitwise_or.reduce(np.uint64(1) << flips.astype(np.uint64))
    hashes[row + 1] = hashes[row] ^ np.uint64(mask if len(flips) else 0)
  distances = perceptual_hash.distance(hashes[:, None], hashes[None])
  for radius in (0, 3, 10):
    wanted = np.argwhere(np.triu(distances <= radius, 1))
    found = perceptual_hash.close_pairs(hashes, radius)
    np.testing.assert_array_equal(found, wanted)
  with pytest.raises(ValueError, match="radius"):
    perceptual_hash.close_pairs(hashes, 12)
