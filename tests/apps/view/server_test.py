"""The server behind `seer-jax view`: what it answers, writes and refuses."""

import errno
import http.client
import json
import os
import signal
import subprocess
import sys

import numpy as np
import points
import pytest

from seer_jax.apps.collection import examples
from seer_jax.apps.embedding import embeddings
from seer_jax.apps.view import collection_view, projection, server
from seer_jax.runtime import errors


@pytest.fixture
def serving(serve, tmp_path):
  return serve(points.make(tmp_path, 60))


def ask(serving, path, body=None, token=None, **headers):
  """(status, body) of a request."""
  connection = http.client.HTTPConnection("127.0.0.1", serving.server_port)
  token = serving.token if token is None else token
  named = {name.replace("_", "-"): value for name, value in headers.items()}
  connection.request(
    "GET" if body is None else "POST", f"/{token}/{path}", body, named
  )
  answer = connection.getresponse()
  found = answer.status, answer.read()
  connection.close()
  return found


def test_what_the_page_asks_for(serving):
  for path in ("", "page.css", "page.js", "map.js"):
    assert ask(serving, path)[0] == 200
  about = json.loads(ask(serving, "about")[1])
  assert about["count"] == 60 and about["map"] == "pca"
  assert about["folders"] == [f"kind {at}" for at in range(6)]
  assert sum(each["size"] for each in about["clusters"]) == 60
  places = np.frombuffer(ask(serving, "arrays")[1][:480], np.float32)
  assert len(places) == 120 and places.min() >= 0 and places.max() <= 1
  status, jpeg = ask(serving, "thumbnail/59")
  assert status == 200 and jpeg.startswith(b"\xff\xd8")
  near = json.loads(ask(serving, "near?r=3,4&k=5")[1])
  assert len(near) == 5 and not {3, 4} & {each["row"] for each in near}
  assert near[0]["cosine"] >= near[4]["cosine"] and near[0]["id"]


def test_only_this_machines_browser_is_answered(serving):
  port = serving.server_port
  assert ask(serving, "about", Host=f"localhost:{port}")[0] == 200
  assert ask(serving, "about", Origin=f"http://127.0.0.1:{port}")[0] == 200
  assert ask(serving, "about", Host=f"evil.example:{port}")[0] == 403
  assert ask(serving, "about", Host="127.0.0.1.evil.example")[0] == 403
  assert ask(serving, "about", Origin="http://evil.example")[0] == 403
  assert ask(serving, "about", Origin="null")[0] == 403
  for token in ("", "x", serving.token[:-1], "..", "%2e%2e"):
    assert ask(serving, "about", token=token)[0] == 404
  assert serving.server_address[0] == "127.0.0.1"


@pytest.mark.parametrize(
  "path",
  [
    "../../../../etc/passwd",
    "..%2f..%2fetc/passwd",
    "thumbnail//etc/passwd",
    "thumbnail/../about.json",
    "thumbnail/60",
    "thumbnail/-1",
    "thumbnail/1e3",
    "picture/",
    "page/page.js",
    "server.py",
    "near?r=",
    "near?r=1,x",
    "rows?r=99",
  ],
)
def test_nothing_else_is_there(serving, path):
  status, body = ask(serving, path)
  assert status == 404 and body.count(b"\n") == 1 and b"root:" not in body


@pytest.mark.parametrize(
  ("path", "body", "status"),
  [
    ("label", b"{", 400),
    ("label", b"[]", 400),
    ("label", b'{"rows": [60], "label": "a"}', 400),
    ("label", b'{"rows": [1], "label": "%s"}' % (b"a" * 101), 400),
    ("rename", b'{"cluster": 99, "name": "a"}', 400),
    ("about", b"{}", 404),
    ("near?r=1&k=0", None, 400),
    ("near?r=1&k=9999", None, 400),
    ("ask", None, 400),
  ],
)
def test_requests_that_cannot_be(serving, path, body, status):
  answer = ask(serving, path, body)
  assert answer[0] == status and answer[1].count(b"\n") == 1
  assert not serving.view.given
  assert ask(serving, "about")[0] == 200


def test_a_request_that_is_too_large_is_not_read(serving):
  length = str(2**20 + 1)
  assert ask(serving, "label", b"", Content_Length=length)[0] == 413
  assert ask(serving, "label", b"", Content_Length="-1")[0] == 413
  assert ask(serving, "about")[0] == 200


def post(serving, path, **body):
  status, _ = ask(serving, path, json.dumps(body))
  assert status == 200


def test_labels_are_on_disk_at_once_and_feed_label(serving):
  view = serving.view
  path = view.found.folder / "labels.csv"
  post(serving, "label", rows=[0, 1], label="a  cat")
  assert path.read_text() == "id,label\n000000,a cat\n000001,a cat\n"
  # A kill tore the last line.
  with path.open("a") as file:
    file.write('000009,"torn')
  post(serving, "label", rows=[2, 3, 1], label="dog")
  post(serving, "label", rows=[3], label="")
  assert view.given == {0: "a cat", 1: "dog", 2: "dog"}
  post(serving, "label", rows=[4], label="a cat")
  again = collection_view.CollectionView(view.found, "pca")
  assert again.given[4] == "a cat" and 3 not in again.given
  known = examples.of_table(str(path), view.found)
  assert known.names == ("a cat", "dog") and len(known.labels_E) >= 4
  asked = json.loads(ask(serving, "ask?n=5")[1])
  assert len(asked) == 5
  assert {each["guess"] for each in asked} <= {"a cat", "dog"}
  assert not {each["row"] for each in asked} & set(view.given)


def test_names_of_clusters_stay_with_their_clusters(serving):
  view = serving.view
  post(serving, "rename", cluster=1, name="birds")
  again = collection_view.CollectionView(view.found, "pca")
  assert again.about()["clusters"][1]["name"] == "birds"
  out = view.found.folder / "clusters"
  out.mkdir()
  lines = [f"{name},{at % 3}" for at, name in enumerate(view.found.ids)]
  (out / "clusters.csv").write_text("\n".join(["id,cluster", *lines]))
  others = collection_view.CollectionView(view.found, "pca")
  assert len(others.about()["clusters"]) == 3
  assert not any(each["name"] for each in others.about()["clusters"])


def test_a_full_disk_is_told_and_nothing_is_believed(serving, monkeypatch):
  def full(number):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  monkeypatch.setattr(os, "fsync", full)
  body = json.dumps({"rows": [1], "label": "a"})
  status, words = ask(serving, "label", body)
  assert status == 507 and b"No space left" in words
  assert not serving.view.given
  status, _ = ask(serving, "rename", json.dumps({"cluster": 0, "name": "a"}))
  assert status == 507


def test_an_image_that_has_gone(serving):
  (serving.view.found.folder.parent / "pictures/cats/001.jpg").unlink()
  gone = (
    serving.view.found.column("path")
    .tolist()
    .index(str(serving.view.found.folder.parent / "pictures/cats/001.jpg"))
  )
  status, words = ask(serving, f"thumbnail/{gone}")
  assert status == 410 and b"cannot be read" in words


def test_a_port_that_is_taken(serving):
  with pytest.raises(errors.UserError, match="another --port"):
    server.Server(serving.view, serving.server_port)


def test_umap_is_asked_for_and_not_there(tmp_path, monkeypatch):
  found = embeddings.Embeddings(points.make(tmp_path, 30))
  monkeypatch.setitem(sys.modules, "umap", None)
  with pytest.raises(errors.UserError, match="pip install"):
    projection.plane(found, "umap")


def test_a_map_of_lines_and_of_single_points():
  x = np.ones((3, 1), np.float32)
  assert projection.pca(x).shape == (3, 2)
  assert np.isfinite(projection._within(projection.pca(x))).all()


def test_the_command_prints_the_address_and_ends_on_ctrl_c(tmp_path):
  folder = points.make(tmp_path, 30)
  command = [sys.executable, "-m", "seer_jax", "view", str(folder)]
  with subprocess.Popen(
    [*command, "--no-browser", "--map", "pca"],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    env=os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")},
  ) as process:
    address = process.stdout.readline()
    assert address.startswith("http://127.0.0.1:")
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
  assert process.returncode == 0 and "labels.csv" in out


def test_clusters_that_cannot_be_read(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  found = embeddings.Embeddings(points.make(tmp_path, 30))
  (found.folder / "clusters").mkdir()
  (found.folder / "clusters" / "clusters.csv").write_text("id,kind\na,b\n")
  with pytest.raises(errors.UserError, match=r"clusters\.csv cannot be read"):
    collection_view.CollectionView(found, "pca")
