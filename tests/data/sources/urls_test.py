"""Lists, folders and shards on a web server, in S3 and in Google's storage."""

import contextlib
import http.server
import os
import re
import threading

import pytest
import shards
from photos import encode, plant, scene

from seer_jax import commands
from seer_jax.data import sources
from seer_jax.runtime import errors


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


class Handler(http.server.SimpleHTTPRequestHandler):
  """A web server's files, and parts of them."""

  def do_GET(self):
    wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"] or "")
    path = self.translate_path(self.path)
    if not wanted or not os.path.isfile(path):
      return super().do_GET()
    first, last = map(int, wanted.groups())
    with open(path, "rb") as file:
      data = file.read()
    part = data[first : last + 1]
    self.send_response(206)
    self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
    self.send_header("Content-Length", str(len(part)))
    self.end_headers()
    return self.wfile.write(part)

  def log_message(self, *_):
    pass


@pytest.fixture
def web(tmp_path):
  """A folder and the address under which it is served."""
  pytest.importorskip("aiohttp")
  folder = tmp_path / "web"
  folder.mkdir()

  def handler(*args):
    return Handler(*args, directory=str(folder))

  server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
  serve = threading.Thread(
    target=server.serve_forever, args=(0.01,), daemon=True
  )
  serve.start()
  yield folder, f"http://127.0.0.1:{server.server_port}"
  server.shutdown()
  server.server_close()


def test_a_list_of_the_web(web):
  folder, url = web
  image = encode(".jpg", scene(20, 30))
  (folder / "a.jpg").write_bytes(image)
  (folder / "list.txt").write_text(
    f"a.jpg\tcat\n{url}/a.jpg\tdog\nno.jpg\tdog\n"
  )
  source = sources.Listing(f"{url}/list.txt")
  assert [source[i]["image"] for i in (0, 1)] == [image] * 2
  assert source.label_names == ("cat", "dog")
  with pytest.raises(OSError):
    source[2]
  with pytest.raises(errors.UserError, match="cannot read the list"):
    sources.Listing(f"{url}/nowhere.txt")


def test_shards_of_the_web_are_named_by_braces(web):
  folder, url = web
  for number in range(3):
    shards.write_tar(
      folder / f"x-{number}.tar", [(f"{number}.jpg", b"image %d" % number)]
    )
  source = sources.Tars(f"{url}/x-{{0..2}}.tar")
  assert [source[i]["image"] for i in range(3)] == [
    b"image 0",
    b"image 1",
    b"image 2",
  ]
  with pytest.raises(errors.UserError, match=r"no such file.*x-3\.tar"):
    sources.Tars(f"{url}/x-{{0..3}}.tar")


@pytest.mark.parametrize(
  ("url", "library"),
  [("https://a.org/list.txt", "aiohttp"), ("s3://a/list.txt", "s3fs")],
)
def test_the_library_that_is_missing_is_named(url, library, monkeypatch):
  import fsspec

  def missing(kind):
    raise ImportError(kind)

  monkeypatch.setattr(fsspec, "filesystem", missing)
  with pytest.raises(errors.UserError, match=f"pip install {library}"):
    sources.Listing(url)


@pytest.mark.parametrize("url", ["s3://bucket/x", "gs://bucket/x"])
def test_array_records_in_buckets_are_answered_in_one_line(url, capsys):
  path = f"{url}/a.array_record"
  with pytest.raises(errors.UserError, match="copy them, mount the bucket"):
    sources.ArrayRecords(path)
  assert commands.main(["pack", "photos", url]) == 2
  line = capsys.readouterr().err
  assert "shards can only be written to this machine's" in line
  assert line.count("\n") == 1


@contextlib.contextmanager
def s3_bucket():
  moto_server = pytest.importorskip("moto.server")
  pytest.importorskip("s3fs")
  server = moto_server.ThreadedMotoServer(port=0)
  server.start()
  try:
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
  finally:
    server.stop()


def test_a_bucket_of_s3(tmp_path, monkeypatch):
  """Against moto's server, where there is one: moto[server], s3fs."""
  with s3_bucket() as endpoint:
    for key, value in {
      "AWS_ENDPOINT_URL": endpoint,
      "AWS_ACCESS_KEY_ID": "a",
      "AWS_SECRET_ACCESS_KEY": "b",
      "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
      monkeypatch.setenv(key, value)
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    bucket = s3fs.S3FileSystem()
    bucket.mkdir("photos")
    plant(tmp_path / "photos", 4)
    for path in (tmp_path / "photos").rglob("*.jpg"):
      bucket.put(str(path), f"photos/{path.parent.name}/{path.name}")
    folder = sources.Folder("s3://photos")
    assert len(folder) == 4 and folder.label_names == ("cats", "dogs")
    assert folder[0]["image"] == (tmp_path / "photos/cats/001.jpg").read_bytes()
    bucket.pipe("photos/list.csv", b"path,label\ncats/001.jpg,1\n")
    listed = sources.Listing("s3://photos/list.csv")
    assert listed[0]["image"] == folder[0]["image"]
    shards.write_tar(tmp_path / "x.tar", [("1.jpg", b"one"), ("1.cls", b"cat")])
    bucket.put(str(tmp_path / "x.tar"), "photos/shards/x-00.tar")
    for path in ("s3://photos/shards", "s3://photos/shards/x-{00..00}.tar"):
      tars = sources.Tars(path)
      assert tars[0] == {"image": b"one", "label": 0, "id": "1"}
    s3fs.S3FileSystem.clear_instance_cache()
