"""Embeddings of folders: what is in the files, and what a kill leaves."""

import errno
import json
import os
import pickle

import numpy as np
import photos
import pytest
from pyarrow import parquet

import seer_jax
from seer_jax.apps.embedding import embed_folder, embeddings, shards
from seer_jax.data import sources
from seer_jax.runtime import errors
from seer_jax.runtime.parallel import process_pool


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """21 pictures in two folders, one of them damaged, and one twice."""
  folder = photos.plant(tmp_path_factory.mktemp("photos"), 20)
  (folder / "cats" / "damaged.jpg").write_bytes(b"\xff\xd8 no picture")
  first = (folder / "cats" / "001.jpg").read_bytes()
  (folder / "dogs" / "again.jpg").write_bytes(first)
  return folder


@pytest.fixture
def embed(seer, tiny, folder):
  def run(out, *arguments, weights=tiny, source=folder):
    return seer(
      *("embed", source, "--weights", weights, "--out", out),
      *("--batch", 8, "--shard", 8, *arguments),
    )

  return run


def rows_of(out):
  return parquet.read_table(out / "embeddings").to_pylist()


def test_a_row_for_each_usable_image(embed, tiny, folder, tmp_path):
  status, said, err = embed(tmp_path / "out")
  assert status == 0, err
  assert "21 embeddings" in said and "1 unusable" in said
  rows = rows_of(tmp_path / "out")
  names = [row["id"] for row in rows]
  every = sources.Folder(folder)
  assert names == [
    each for each in map(every.id_of, range(22)) if "damaged" not in each
  ]
  by_name = {row["id"]: row for row in rows}
  one = by_name["cats/001.jpg"]
  assert one["label"] == "cats" and one["path"] == str(folder / "cats/001.jpg")
  assert (one["height"], one["width"]) == (24, 24)
  again = by_name["dogs/again.jpg"]
  assert again["label"] == "dogs" and again["sha256"] == one["sha256"]
  assert again["embedding"] == one["embedding"] and one["prototype"] >= 0
  assert every.id_of(one["index"]) == "cats/001.jpg"
  bad = (tmp_path / "out" / "bad_images.txt").read_text()
  assert bad.startswith("cats/damaged.jpg\t") and bad.count("\n") == 1
  # From Python, one by one: the same numbers.
  x = seer_jax.embed([row["path"] for row in rows], tiny, batch_size=8)
  np.testing.assert_allclose(
    x, [row["embedding"] for row in rows], rtol=1e-5, atol=1e-6
  )


def test_gpus_of_a_cluster_need_a_precision(embed, tmp_path):
  status, _, err = embed(tmp_path / "out", "--on", "ray", "--task-gpus", 1)
  assert status == 2 and "--task-gpus needs --precision" in err


def test_a_folder_travels_with_its_precision(
  tiny, folder, tmp_path, monkeypatch
):
  from seer_jax.apps.embedding import embed

  # The cache of compiled programs that other tests use.
  monkeypatch.setattr(embed_folder.jax.config, "update", lambda *_: None)

  keys = {"kind": "folder", "path": str(folder)}
  made = embed_folder.EmbeddedFolder(
    sources.Portable(keys),
    keys,
    embed.open_weights(str(tiny)),
    tmp_path / "out",
    embed.Options(shard=8),
  )
  there = pickle.loads(pickle.dumps(made))
  assert there._options.precision == "fp32"
  there(0)
  assert len(list((tmp_path / "out" / "embeddings").glob("*.parquet"))) == 1
  (folder / "cats" / "new.jpg").write_bytes(b"")
  try:
    with pytest.raises(errors.UserError, match="are not the 22 where"):
      pickle.loads(pickle.dumps(made))
  finally:
    (folder / "cats" / "new.jpg").unlink()


def test_python_takes_paths_arrays_and_sources(tiny, folder):
  paths = [folder / "cats/001.jpg", folder / "dogs/000.jpg"]
  weights = seer_jax.load(tiny)
  x = seer_jax.embed(paths, weights)
  every = sources.Folder(folder)
  from PIL import Image

  images = [Image.open(path) for path in paths]
  arrays = [np.asarray(image) for image in images]
  for others in (images, arrays, [path.read_bytes() for path in paths]):
    np.testing.assert_allclose(seer_jax.embed(others, weights), x, atol=2e-2)
  whole = seer_jax.embed(every, weights)
  assert whole.shape == (22, x.shape[1]) and whole.dtype == np.float32
  bad = [every.id_of(i) for i in np.flatnonzero(np.isnan(whole).any(1))]
  assert bad == ["cats/damaged.jpg"]
  np.testing.assert_array_equal(whole, seer_jax.embed(str(folder), weights))
  with pytest.raises(errors.UserError, match=r"damaged\.jpg|decode"):
    seer_jax.embed([folder / "cats/damaged.jpg"], weights)
  with pytest.raises(errors.UserError, match="no images"):
    seer_jax.embed([], weights)


def test_stopped_and_continued_the_rows_are_the_same(
  embed, tmp_path, monkeypatch
):
  assert embed(tmp_path / "whole")[0] == 0
  write = shards.write
  written = []

  def write_one(file, *arguments):
    write(file, *arguments)
    written.append(file.name)
    process_pool.stop()

  monkeypatch.setattr(shards, "write", write_one)
  out = tmp_path / "parts"
  status, _, err = embed(out)
  process_pool._asked.clear()
  assert status == 75 and "resumes" in err
  there = sorted(path.name for path in (out / "embeddings").iterdir())
  assert there and len(there) < 3

  monkeypatch.setattr(shards, "write", write)
  with pytest.raises(errors.UserError, match="not finished: .* of 3 shards"):
    embeddings.Embeddings(out)
  kept = {name: (out / "embeddings" / name).stat().st_mtime for name in there}
  assert embed(out)[0] == 0
  assert rows_of(out) == rows_of(tmp_path / "whole")
  for name, when in kept.items():
    assert (out / "embeddings" / name).stat().st_mtime == when


def test_processes_divide_the_shards(embed, tmp_path):
  out = tmp_path / "out"
  status, said, err = embed(out, "--processes", 2, "--process", 1)
  assert status == 0, err
  assert "2 of 3 shards are left to other processes" in said
  assert "rows" not in json.loads((out / "about.json").read_text())
  status, said, err = embed(out, "--processes", 2, "--process", 0)
  assert status == 0 and "21 embeddings" in said, err
  assert embed(tmp_path / "alone")[0] == 0
  assert rows_of(out) == rows_of(tmp_path / "alone")


def test_float16_and_another_tap(embed, tmp_path):
  assert embed(tmp_path / "wide")[0] == 0
  status, _, err = embed(
    tmp_path / "out", "--dtype", "float16", "--tap", "res2:2x2"
  )
  assert status == 0, err
  found = embeddings.Embeddings(tmp_path / "out")
  wide = embeddings.Embeddings(tmp_path / "wide")
  assert found.features.dtype == np.float16
  assert found.features.shape == (21, 4 * wide.width)
  quarters = found.features.astype(np.float32).reshape(21, 4, -1).mean(1)
  np.testing.assert_allclose(quarters, wide.features, rtol=3e-3, atol=1e-3)


def test_large_ones_are_mapped(embed, tmp_path, monkeypatch):
  assert embed(tmp_path / "out")[0] == 0
  x = embeddings.Embeddings(tmp_path / "out").features
  monkeypatch.setattr(embeddings, "_IN_MEMORY", 0)
  for _ in range(2):
    mapped = embeddings.Embeddings(tmp_path / "out").features
    assert isinstance(mapped, np.memmap)
    np.testing.assert_array_equal(mapped, x)


def test_exclusions_are_honoured(embed, folder, tmp_path):
  opt_out = tmp_path / "out.txt"
  opt_out.write_text("cats/001.jpg\n")
  status, said, err = embed(tmp_path / "out", "--exclude", opt_out)
  assert status == 0 and "1 were excluded" in said, err
  names = {row["id"] for row in rows_of(tmp_path / "out")}
  assert len(names) == 20 and "cats/001.jpg" not in names


def test_mistakes_are_told_in_a_line(embed, folder, tmp_path, tiny):
  def complaint(*arguments, **others):
    status, _, err = embed(*arguments, **others)
    # In front of it, perhaps, a progress bar.
    *_, line = err.splitlines()
    assert status == 2 and line.startswith("error: ")
    return line

  (tmp_path / "empty").mkdir()
  assert "image" in complaint(tmp_path / "a", source=tmp_path / "empty")
  (tmp_path / "w.pth").write_bytes(b"no weights")
  assert "w.pth" in complaint(tmp_path / "a", weights=tmp_path / "w.pth")
  assert "no tap" in complaint(tmp_path / "a", "--tap", "res9")
  assert "precision" in complaint(tmp_path / "b", "--precision", "fp8")
  assert "not empty" in complaint(folder)
  assert embed(tmp_path / "out")[0] == 0
  err = complaint(tmp_path / "out", "--dtype", "float16")
  assert "dtype was float32, is float16" in err
  os.truncate(embed_folder.shards_of(tmp_path / "out", {"shards": 3})[1], 100)
  with pytest.raises(errors.UserError, match=r"000001-of-000003.* remove it"):
    _ = embeddings.Embeddings(tmp_path / "out").features
  with pytest.raises(errors.UserError, match="has no embeddings"):
    embeddings.Embeddings(tmp_path / "empty")
  only_bad = tmp_path / "bad"
  only_bad.mkdir()
  (only_bad / "a.jpg").write_bytes(b"")
  assert "no image could be embedded" in complaint(
    tmp_path / "c", source=only_bad
  )


def test_a_full_disk_leaves_nothing_half_written(embed, tmp_path, monkeypatch):
  fsync = os.fsync
  shards = []

  def full(number):
    if ".parquet" in os.readlink(f"/proc/self/fd/{number}"):
      shards.append(number)
    if len(shards) == 2:
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    fsync(number)

  monkeypatch.setattr(os, "fsync", full)
  out = tmp_path / "out"
  status, _, err = embed(out)
  assert status == 70 and "No space left" in err.splitlines()[-1]
  names = [path.name for path in (out / "embeddings").iterdir()]
  assert names == ["images-000000-of-000003.parquet"]
  monkeypatch.setattr(os, "fsync", fsync)
  assert embed(out)[0] == 0 and len(rows_of(out)) == 21


def test_what_a_kill_left_is_not_read_and_goes(embed, tmp_path):
  out = tmp_path / "out"
  assert embed(out, "--processes", 2, "--process", 1)[0] == 0
  torn = out / "embeddings" / ".images-000000-of-000003.parquet.0123.part"
  torn.write_bytes(b"PAR1 torn")
  assert parquet.read_table(out / "embeddings").num_rows == 7
  assert embed(out)[0] == 0
  assert not torn.exists() and len(rows_of(out)) == 21


def test_processes_are_found_where_they_are_started(
  embed, tmp_path, monkeypatch
):
  out = tmp_path / "out"
  monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "3")
  monkeypatch.setenv("OMPI_COMM_WORLD_LOCAL_SIZE", "3")
  for rank in (2, 0, 1):
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", str(rank))
    status, said, err = embed(out)
    assert status == 0, err
  assert "21 embeddings" in said and len(rows_of(out)) == 21


def test_numbers_too_large_for_16_bits(tiny, folder):
  import jax

  from seer_jax.apps.embedding import embed as embed_lib

  network, variables = seer_jax.load(tiny)
  large = jax.tree.map(lambda x: x, variables)
  weights = embed_lib.Weights("large", network, large)
  options = embed_lib.Options(dtype="float16", batch_size=8)
  embedder = embed_lib.Embedder(weights, options)
  forward = embedder._forward
  embedder._forward = lambda *x: {
    name: value * 1e6 if name == "embedding" else value
    for name, value in forward(*x).items()
  }
  look = embed_lib.Look(sources.Folder(folder), network.preprocessing, 2**28)
  (found,) = embedder.of(look, [range(3)])
  assert {each.reason for each in found} == {
    "its embedding is not finite in float16"
  }
