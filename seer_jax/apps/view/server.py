"""Serves the page of a collection to this machine's browser only.

It listens at the loopback address. Every path begins with a secret token, which
only the printed address has, so other users of the machine and other pages in
the browser cannot send requests. A foreign Host (DNS rebinding) or Origin is
refused. Images are requested by row, never by path.
"""

import hmac
import http.server
import importlib.resources
import json
import secrets
import sys
import urllib.parse
from collections.abc import Callable
from typing import Any

from seer_jax.apps.view import collection_view
from seer_jax.runtime import errors

_ADDRESS = "127.0.0.1"
_HOSTS = (_ADDRESS, "localhost")
_LARGEST = 2**20  # Bytes of a request.
_MOST = 200  # Images in a response.
_FILES = {
  "": ("page.html", "text/html; charset=utf-8"),
  "page.css": ("page.css", "text/css; charset=utf-8"),
  "page.js": ("page.js", "text/javascript; charset=utf-8"),
  "map.js": ("map.js", "text/javascript; charset=utf-8"),
}
_HEADERS = {
  # Loads nothing from elsewhere, and no page may embed it.
  "Content-Security-Policy": (
    "default-src 'self'; img-src 'self' data: blob:; frame-ancestors 'none';"
    " base-uri 'none'; form-action 'none'"
  ),
  "Referrer-Policy": "no-referrer",
  "X-Content-Type-Options": "nosniff",
  "Cross-Origin-Resource-Policy": "same-origin",
}


class _Refused(Exception):
  """An HTTP error: its status and message."""


class Server(http.server.ThreadingHTTPServer):
  """Serves one collection until it is closed.

  Attributes:
    view: the collection.
    token: the first part of every path.
  """

  daemon_threads = True

  def __init__(self, view: collection_view.CollectionView, port: int = 0):
    """Listens at a port; 0 is any free one. Raises UserError if it is taken."""
    self.view, self.token = view, secrets.token_urlsafe(16)
    try:
      super().__init__((_ADDRESS, port), _Handler)
    except (OSError, OverflowError) as error:
      raise errors.UserError(
        f"cannot listen at {_ADDRESS}:{port} ({error}); give another --port"
      ) from error

  def handle_error(self, request, client_address):
    """A browser that closed a connection is not an error."""
    if not isinstance(sys.exception(), ConnectionError):
      super().handle_error(request, client_address)

  @property
  def url(self) -> str:
    """The address to open."""
    return f"http://{_ADDRESS}:{self.server_port}/{self.token}/"


class _Handler(http.server.BaseHTTPRequestHandler):
  server: Server
  protocol_version = "HTTP/1.1"

  def do_GET(self):
    self._answer(self._get)

  def do_POST(self):
    self._answer(self._post)

  def _answer(self, act: Callable[[str, dict[str, list[str]]], Any]):
    try:
      path, query = self._checked()
      self._send(200, *act(path, query))
    except _Refused as refused:
      status, words = refused.args
      self._send(status, f"{words}\n".encode(), "text/plain; charset=utf-8")
    except errors.UserError as error:
      self._send(400, f"{error}\n".encode(), "text/plain; charset=utf-8")
    except errors.Lost as error:
      self._send(507, f"{error}\n".encode(), "text/plain; charset=utf-8")

  def _checked(self):
    """(path after the token, query) of a permitted request."""
    host = self.headers.get("Host", "")
    if host.rpartition(":")[0] not in _HOSTS and host not in _HOSTS:
      raise _Refused(403, f"this page is for {_ADDRESS} only")
    origin = self.headers.get("Origin")
    if origin not in (None, f"http://{host}"):
      raise _Refused(403, "requests from other pages are refused")
    parts = urllib.parse.urlsplit(self.path)
    token, _, path = parts.path.removeprefix("/").partition("/")
    if not hmac.compare_digest(token.encode(), self.server.token.encode()):
      raise _Refused(404, "open the address that seer-jax view printed")
    return path, urllib.parse.parse_qs(parts.query)

  def _get(self, path, query):
    view = self.server.view
    if path in _FILES:
      name, kind = _FILES[path]
      folder = importlib.resources.files("seer_jax.apps.view") / "page"
      return (folder / name).read_bytes(), kind
    match path.split("/"):
      case ["about"]:
        return _json(view.about())
      case ["arrays"]:
        return view.arrays(), "application/octet-stream"
      case ["thumbnail" | "picture" as size, text]:
        jpeg = view.picture(self._row(text), size == "picture")
        if jpeg is None:
          raise _Refused(410, "this image cannot be read any more")
        return jpeg, "image/jpeg"
      case ["rows"]:
        return _json([view.row(row) for row in self._rows(query)])
      case ["near"]:
        return _json(view.near(self._rows(query), _number(query, "k")))
      case ["ask"]:
        return _json(view.ask(_number(query, "n")))
    raise _Refused(404, "there is no such page")

  def _post(self, path, query):
    del query
    if path not in ("label", "rename"):
      raise _Refused(404, "there is no such page")
    size = self.headers.get("Content-Length", "")
    if not size.isdigit() or int(size) > _LARGEST:
      # The unread body would be parsed as the next request.
      self.close_connection = True
      raise _Refused(413, "the request is too large")
    try:
      asked = json.loads(self.rfile.read(int(size)))
      if path == "label":
        rows = [int(row) for row in asked["rows"]]
        self.server.view.give(rows, str(asked["label"]))
      else:
        self.server.view.rename(int(asked["cluster"]), str(asked["name"]))
    except (ValueError, KeyError, TypeError) as error:
      raise _Refused(400, "the request is not valid") from error
    return _json({"done": True})

  def _row(self, text):
    if not text.isdigit() or int(text) >= len(self.server.view.found):
      raise _Refused(404, "there is no such image")
    return int(text)

  def _rows(self, query):
    if "r" not in query:
      raise _Refused(404, "there is no such image")
    return [self._row(each) for each in query["r"][0].split(",")][:_MOST]

  def _send(self, status, body, kind):
    self.send_response(status)
    for name, value in _HEADERS.items():
      self.send_header(name, value)
    self.send_header("Content-Type", kind)
    self.send_header("Content-Length", str(len(body)))
    is_picture = kind == "image/jpeg"
    self.send_header(
      "Cache-Control", "private, max-age=3600" if is_picture else "no-store"
    )
    self.end_headers()
    self.wfile.write(body)

  def log_message(self, *arguments):
    """Requests are not logged."""


def _json(value):
  return json.dumps(value).encode(), "application/json"


def _number(query, name):
  text = "".join(query[name]) if name in query else ""
  if not text.isdigit() or not 1 <= int(text) <= _MOST:
    raise _Refused(400, f"{name} must be from 1 to {_MOST}")
  return int(text)
