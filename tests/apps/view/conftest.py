"""A server of the page of a collection."""

import threading

import pytest

from seer_jax.apps.embedding import embeddings
from seer_jax.apps.view import collection_view, server


@pytest.fixture
def serve(monkeypatch, tmp_path):
  """`serve(folder)`: a server of its page, ended with the test."""
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  running = []

  def start(folder):
    view = collection_view.CollectionView(embeddings.Embeddings(folder), "pca")
    serving = server.Server(view)
    thread = threading.Thread(target=serving.serve_forever, args=(0.02,))
    thread.start()
    running.append((serving, thread))
    return serving

  yield start
  for serving, thread in running:
    serving.shutdown()
    thread.join()
    serving.server_close()
