"""A file server that is away is waited for; a file that is damaged is not."""

import errno

import pytest
from photos import plant, tiny

from seer_jax.data.sources import folder
from seer_jax.data.storage import retry
from seer_jax.runtime import errors
from seer_jax.training import run


class Away:
  """Three images; `failing` of them cannot be read for so many attempts."""

  def __init__(self, failing, attempts, number):
    self.failing, self.left, self.number = failing, attempts, number

  def __len__(self):
    return 3

  def __getitem__(self, i):
    if i in self.failing and self.left > 0:
      self.left -= 1
      raise OSError(self.number, "went wrong", f"{i}.jpg")
    return {"image": b"here"}

  def id_of(self, i):
    return f"{i}.jpg"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
  monkeypatch.setattr(retry, "_A_WHILE", 0.02)
  monkeypatch.setattr(retry, "_TOO_LONG", 0.2)
  monkeypatch.setattr(retry, "_PAUSE", (0.01, 0.02))


@pytest.mark.parametrize("number", [errno.ESTALE, errno.ETIMEDOUT, errno.EIO])
def test_a_server_that_comes_back_costs_no_image(number):
  source = Away({0, 1, 2}, 5, number)
  assert retry.read(source, 1) == {"image": b"here"}


def test_one_that_does_not_ends_the_run_to_be_resumed():
  with pytest.raises(errors.Lost, match="the same command resumes"):
    retry.read(Away({0, 1, 2}, 10**9, errno.ESTALE), 1)


def test_where_others_can_be_read_it_is_the_image():
  with pytest.raises(OSError, match="went wrong"):
    retry.read(Away({1}, 10**9, errno.EIO), 1)


def test_an_excluded_image_answers_for_no_server():
  class Excluding(Away):
    def __getitem__(self, i):
      if i != 1:
        raise errors.Excluded(self.id_of(i))
      return super().__getitem__(i)

  with pytest.raises(errors.Lost, match="the same command resumes"):
    retry.read(Excluding({1}, 10**9, errno.ESTALE), 1)


def test_what_no_server_causes_is_not_waited_for():
  source = Away({0, 1, 2}, 2, errno.ENOENT)
  with pytest.raises(OSError, match="went wrong"):
    retry.read(source, 1)
  assert source.left == 1


def test_a_run_rides_out_an_outage(tmp_path, monkeypatch):
  read, calls = folder.Folder.__getitem__, []

  def stale_for_a_while(self, i):
    calls.append(i)
    if 30 < len(calls) < 40:
      raise OSError(errno.ESTALE, "Stale file handle", self.id_of(i))
    return read(self, i)

  monkeypatch.setattr(folder.Folder, "__getitem__", stale_for_a_while)
  photos = plant(tmp_path / "photos", 40)
  run.run(tiny(photos), tmp_path / "run")
  assert len(calls) > 40
  assert not (tmp_path / "run" / "bad_images.txt").exists()
