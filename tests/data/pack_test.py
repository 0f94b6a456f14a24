import contextlib
import hashlib
import json
import os
import pickle
import signal
import subprocess
import sys
import time
import tracemalloc

import numpy as np
import pytest
from photos import encode, scene

from seer_jax import commands
from seer_jax.data import pack, sources
from seer_jax.runtime import errors


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def photos(tmp_path):
  for number in range(20):
    path = tmp_path / "photos" / f"{'ab'[number % 2]}" / f"{number:02}.jpg"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode(".jpg", scene(30, 40) // 20 * number))
  (tmp_path / "photos" / "a" / "00.jpg").write_bytes(b"nonsense")
  (tmp_path / "photos" / "a" / "02.jpg").write_bytes(b"")
  return tmp_path / "photos"


def run(*args, command="pack"):
  return commands.main([command, *map(str, args), "--workers=1"])


def test_a_packed_folder_is_the_folder(photos, tmp_path, capsys):
  assert run(photos, tmp_path / "out", "--shard=6") == 0
  assert "18 images in 4 shards" in capsys.readouterr().out
  packed = sources.open_source(
    {"kind": "array_record", "path": str(tmp_path / "out")}
  )
  folder = sources.Folder(photos)
  assert packed.label_names == folder.label_names
  found = {packed.id_of(i): packed.label_of(i) for i in range(len(packed))}
  wanted = {folder.id_of(i): folder.label_of(i) for i in range(len(folder))}
  del wanted["a/00.jpg"], wanted["a/02.jpg"]
  assert found == wanted
  for i in range(len(packed)):
    example = packed[i]
    assert (example["id"], example["label"]) == (
      packed.id_of(i),
      packed.label_of(i),
    )
    assert example["image"] == (photos / example["id"]).read_bytes()
  bad = (tmp_path / "out" / "bad_images.txt").read_text().splitlines()
  assert bad == ["a/00.jpg\tnot an image", "a/02.jpg\tempty file"]


def test_packing_again_says_that_it_is_done(photos, tmp_path, capsys):
  run(photos, tmp_path / "out")
  assert run(photos, tmp_path / "out") == 0
  assert "packed already: 18 images" in capsys.readouterr().out


def test_stopped_at_any_shard_it_goes_on_to_the_same(
  photos, tmp_path, monkeypatch
):
  run(photos, tmp_path / "whole", "--shard=4")
  strip = pack.strip_metadata.strip

  class Killed(BaseException):
    pass

  for stop in (1, 7, 15):
    calls = []

    def until(data, *others, calls=calls, stop=stop):
      calls.append(0)
      if len(calls) > stop:
        raise Killed
      return strip(data, *others)

    out = tmp_path / f"out{stop}"
    monkeypatch.setattr(pack.strip_metadata, "strip", until)
    with pytest.raises(Killed):
      run(photos, out, "--shard=4")
    monkeypatch.setattr(pack.strip_metadata, "strip", strip)
    assert not (out / "images.json").exists()
    assert run(photos, out, "--shard=4") == 0
    names = sorted(path.name for path in out.iterdir())
    assert names == sorted(p.name for p in (tmp_path / "whole").iterdir())
    for name in names:
      if name != "parts":
        ours, whole = (f / name for f in (out, tmp_path / "whole"))
        assert ours.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize(
  ("images", "shard"),
  [
    (20, 64),
    (334, 64),
    (4096, 64),
    (50_000, 782),
    (10**6, 4096),
    (10**9, 4096),
  ],
)
def test_small_collections_have_shards_for_all_cores(images, shard):
  assert pack.shard_of(images) == shard


def test_a_pack_that_was_begun_keeps_its_shards(photos, tmp_path, capsys):
  out = tmp_path / "out"
  assert run(photos, out, "--shard=7") == 0
  (out / "images.json").unlink()
  for shard in range(3):
    (out / f"parts/{shard:06d}.json").write_text("")
  assert pack._begun(out) == 7
  assert pack._begun(tmp_path / "nowhere") is None


def test_the_end_of_a_pack_holds_one_shard_in_memory(tmp_path):
  """A billion images have 36 bytes each beside the shards."""
  each, shards = 2048, 24
  source = sources.Synthetic()
  packer = pack.Packer(source, tmp_path, each, 0, 1 << 20)
  packer.__class__ = type("Many", (pack.Packer,), {"__len__": lambda _: shards})
  (tmp_path / "parts").mkdir()
  for shard in range(shards):
    report = {
      "ids": [f"{shard}/{i}" for i in range(each)],
      "labels": [shard] * each,
      "originals": [f"{shard:02x}" * 32] * each,
      "bad": [],
      "excluded": 0,
      "bytes": 1,
      "shard_bytes": 1,
    }
    packer.report_of(shard).write_text(json.dumps(report))
  tracemalloc.start()
  try:
    assert f"{each * shards} images" in pack._finish(tmp_path, packer, source)
    _, most = tracemalloc.get_traced_memory()
  finally:
    tracemalloc.stop()
  originals = np.load(tmp_path / "originals.npy")
  assert originals.shape == (each * shards, 32)
  assert originals[:, 0].tolist() == [
    n for n in range(shards) for _ in range(each)
  ]
  assert np.load(tmp_path / "labels.npy").dtype == np.int32
  assert not list(tmp_path.glob("*.part"))
  # A report and its text; all 24 together would be 1.8 MB and more.
  assert most < 1.5e6


def test_a_signal_stops_it_to_go_on(photos, tmp_path):
  for number in range(400):
    (photos / f"{number}.jpg").write_bytes(encode(".jpg", scene(400, 600)))
  command = [sys.executable, "-m", "seer_jax", "pack", str(photos)]
  command += [str(tmp_path / "out"), "--shard=10", "--workers=2"]
  process = subprocess.Popen(
    command, stderr=subprocess.PIPE, text=True, start_new_session=True
  )
  deadline = time.monotonic() + 300
  while not list((tmp_path / "out").glob("parts/0*")):
    assert time.monotonic() < deadline
    time.sleep(0.01)
  os.killpg(process.pid, signal.SIGTERM)
  _, err = process.communicate(timeout=300)
  assert process.returncode == 75, err
  assert "the same command resumes" in err and "Traceback" not in err
  ended = subprocess.run(command, capture_output=True, text=True)
  assert ended.returncode == 0 and "418 images" in ended.stdout, ended.stderr


def test_ctrl_c_while_workers_start_ends_it(photos, tmp_path):
  """It goes to all processes of a terminal, which may know no handler yet."""
  command = [sys.executable, "-m", "seer_jax", "pack", str(photos)]
  command += [str(tmp_path / "out"), "--shard=1", "--workers=4"]
  with subprocess.Popen(
    command,
    stderr=subprocess.PIPE,
    text=True,
    start_new_session=True,
  ) as process:
    children = f"/proc/{process.pid}/task/{process.pid}/children"
    while process.poll() is None:
      with contextlib.suppress(OSError), open(children) as file:
        if len(file.read().split()) > 2:
          break
    time.sleep(0.05)  # They are starting.
    os.killpg(process.pid, signal.SIGINT)
    _, told = process.communicate(timeout=300)
  assert process.returncode == 75, told
  assert "Traceback" not in told


def test_excluded_images_are_not_packed(photos, tmp_path, capsys):
  (tmp_path / "optout").write_text("a/04.jpg\nb/01.jpg\n")
  run(photos, tmp_path / "out", f"--exclude={tmp_path / 'optout'}")
  assert "2 were excluded" in capsys.readouterr().out
  ids = (tmp_path / "out" / "ids.txt").read_text().splitlines()
  assert len(ids) == 16 and not {"a/04.jpg", "b/01.jpg"} & set(ids)


def files_below(folder):
  return sorted(path for path in folder.rglob("*") if path.is_file())


def test_inspect_counts_what_is_there(photos, tmp_path, capsys):
  (photos / "copy.jpg").write_bytes((photos / "b" / "01.jpg").read_bytes())
  before = files_below(tmp_path)
  assert run(photos, command="inspect") == 0
  out = capsys.readouterr().out
  assert "19 usable, 2 not, 0 excluded" in out
  assert "a/00.jpg: not an image" in out
  assert "labels: 2, with 8 to 10 images each; 1 images have none" in out
  assert "1 are copies" in out and "2 times: b/01.jpg, copy.jpg" in out
  assert "shorter side: 30 to 30 px" in out and "images a second" in out
  assert files_below(tmp_path) == before


def test_an_unfinished_survey_resumes(photos, tmp_path, capsys, monkeypatch):
  from seer_jax.data import inspect

  monkeypatch.setattr(pack, "shard_of", lambda images: 4)
  assert run(photos, command="inspect") == 0
  whole = capsys.readouterr().out.splitlines()
  real, seen = inspect._Scan.__call__, []

  def dies(scan, part):
    if len(seen) == 3:
      raise errors.Lost("the machine is gone")
    seen.append(part)
    return real(scan, part)

  monkeypatch.setattr(inspect._Scan, "__call__", dies)
  assert run(photos, command="inspect") == 70
  capsys.readouterr()
  (part,) = [each for each in files_below(tmp_path) if each.name == "1.npz"]
  part.write_bytes(b"damaged")
  seen.append("alive again")
  assert run(photos, command="inspect") == 0
  assert seen[4:] == [1, 3, 4]
  # All but the speed.
  assert capsys.readouterr().out.splitlines()[:-1] == whole[:-1]
  assert not [each for each in files_below(tmp_path) if "cache" in each.parts]


def told(capsys, *args):
  assert run(*args) == 2
  out, err = capsys.readouterr()
  assert "Traceback" not in out + err
  *bars, words = err.splitlines()
  assert all("images/s" in bar for bar in bars if bar)
  return words


def test_mistakes_are_told_in_one_line(photos, tmp_path, capsys):
  out = tmp_path / "out"
  assert "required: DST" in told(capsys, photos)
  assert "did you mean --shard?" in told(capsys, photos, out, "--shards=3")
  assert "argument 'more' is unexpected" in told(capsys, photos, out, "more")
  assert "--shard is 0; it must be" in told(capsys, photos, out, "--shard=0")
  assert "no such folder" in told(capsys, tmp_path / "nowhere", out)
  assert "is not empty" in told(capsys, photos, photos)
  (tmp_path / "file").write_text("")
  assert "cannot write" in told(capsys, photos, tmp_path / "file")
  run(photos, out)
  assert "shard was 64, is 5" in told(capsys, photos, out, "--shard=5")
  (photos / "new.jpg").write_bytes(encode(".jpg", scene(30, 40)))
  assert "its images" in told(capsys, photos, out)


def test_nothing_usable_is_a_mistake(tmp_path, capsys):
  (tmp_path / "photos").mkdir()
  (tmp_path / "photos" / "a.jpg").write_bytes(b"nonsense")
  assert run(tmp_path / "photos", command="inspect") == 2
  out, told = capsys.readouterr()
  assert "a.jpg: not an image" in out
  assert "images is usable" in told


def test_nothing_but_unusable_images(tmp_path, capsys):
  (tmp_path / "photos").mkdir()
  (tmp_path / "photos" / "a.jpg").write_bytes(b"nonsense")
  assert "no image could be packed" in told(
    capsys, tmp_path / "photos", tmp_path / "out"
  )


def test_kinds_are_recognised(tmp_path, photos):
  (tmp_path / "list.txt").write_text(f"{photos}/b/01.jpg\n")
  assert pack.kind_of(str(tmp_path / "list.txt")) == "list"
  assert pack.kind_of(str(photos)) == "folder"
  assert pack.kind_of("gs://bucket/x-*.tar") == "tar"
  run(tmp_path / "list.txt", tmp_path / "out")
  assert pack.kind_of(str(tmp_path / "out")) == "array_record"
  about = json.loads((tmp_path / "out" / "images.json").read_text())
  assert about["images"] == 1
  assert np.load(tmp_path / "out" / "labels.npy").tolist() == [-1]


def test_an_opt_out_by_the_original_s_hash_outlives_packing(photos, tmp_path):
  original = (photos / "b" / "03.jpg").read_bytes()
  digest = hashlib.sha256(original).digest()
  for side, folder in ((0, "once"), (20, "twice")):
    source = photos if folder == "once" else tmp_path / "once"
    assert run(source, tmp_path / folder, f"--side={side}") == 0
    packed = sources.ArrayRecords(str(tmp_path / folder))
    digests = [packed.digest(i) for i in range(len(packed))]
    assert digests.count(digest) == 1
    assert packed.id_of(digests.index(digest)) == "b/03.jpg"
    assert pickle.loads(pickle.dumps(packed)).digest(0) == digests[0]


def test_a_url_is_no_place_for_shards(photos, capsys):
  assert run(photos, "gs://bucket/out") == 2
  assert "gs://bucket/out" in capsys.readouterr().err


def test_a_photo_with_the_name_of_a_shard_is_a_photo(photos, tmp_path, capsys):
  (photos / "b" / "01.jpg").rename(photos / "photo.target.jpg")
  assert run(photos, tmp_path / "out") == 0
  assert "18 images" in capsys.readouterr().out
  (photos / "backup.tar").write_bytes(b"")
  assert run(photos, tmp_path / "other") == 2
  assert "--kind=folder or --kind=tar" in capsys.readouterr().err
  assert not (tmp_path / "other").exists()


def test_two_packs_into_one_folder_are_one_too_many(photos, tmp_path, capsys):
  with pack._alone(tmp_path / "out"):
    assert run(photos, tmp_path / "out") == 2
  assert "another process is packing" in capsys.readouterr().err
  assert run(photos, tmp_path / "out") == 0


def test_a_disk_that_fills_up_is_told_and_the_same_command_goes_on(
  photos, tmp_path
):
  command = (
    "import resource, sys; from seer_jax import commands;"
    "resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000));"
    "sys.exit(commands.main(sys.argv[1:]))"
  )
  arguments = "pack", str(photos), str(tmp_path / "out"), "--workers=1"
  for shard in ("--shard=5",):
    result = subprocess.run(
      [sys.executable, "-c", command, *arguments, shard],
      capture_output=True,
      text=True,
      check=False,
    )
    assert result.returncode == 70, result.stderr
    assert "make room, and the command resumes" in result.stderr
    assert "Traceback" not in result.stderr
    assert run(photos, tmp_path / "out", shard) == 0


def test_a_pipe_is_no_image_and_keeps_nobody_waiting(photos, tmp_path, capsys):
  os.mkfifo(photos / "a" / "pipe.jpg")
  assert run(photos, command="inspect") == 0
  assert "a/pipe.jpg: not a regular file" in capsys.readouterr().out


def test_one_line_of_a_list_is_one_image(photos, tmp_path, capsys):
  lines = [*sorted(map(str, (photos / "b").iterdir())), "xyz://a.jpg"]
  (tmp_path / "list.txt").write_text("\n".join(lines) + "\n")
  assert run(tmp_path / "list.txt", tmp_path / "out") == 0
  bad = (tmp_path / "out" / "bad_images.txt").read_text()
  assert bad == "xyz://a.jpg\tno such kind of URL\n"
