"""Whatever is fed in: it works, or it is told in one line; never a traceback.

    SEER_FUZZ=2500 pytest tests/faults/fuzz_test.py

runs so many inputs of each kind; by default fewer.
"""

import contextlib
import copy
import datetime
import io
import json
import os
import shutil
import zlib

import jax
import numpy as np
import pytest
import shards
import ten_steps
import tfds_sets
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from photos import encode, plant, scene, tiny

from seer_jax import commands, main, tasks
from seer_jax.config import from_flags, keys, resolved
from seer_jax.data import crops, pipeline, sources, strip_metadata
from seer_jax.data.storage import tf_example
from seer_jax.runtime import errors
from seer_jax.runtime import mesh as mesh_lib
from seer_jax.training import metrics, run, step
from seer_jax.weights import checkpoint

COUNT = int(os.environ.get("SEER_FUZZ", 25))


def fuzzed(share=1.0):
  """So many examples, none of which may hang."""
  return settings(
    max_examples=max(1, int(COUNT * share)),
    deadline=datetime.timedelta(seconds=30),
    suppress_health_check=list(HealthCheck),
    database=None,
    derandomize=COUNT < 1000,
  )


@st.composite
def damaged(draw, data):
  """Bytes cut, flipped, doubled or overwritten at random places."""
  data = bytearray(data)
  for _ in range(draw(st.integers(1, 4))):
    if not data:
      break
    at = draw(st.integers(0, len(data) - 1))
    match draw(st.sampled_from(("cut", "flip", "noise", "double", "drop"))):
      case "cut":
        data = data[:at]
      case "flip":
        data[at] ^= 1 << draw(st.integers(0, 7))
      case "noise":
        noise = draw(st.binary(min_size=1, max_size=16))
        data[at : at + len(noise)] = noise
      case "double":
        data = data[:at] + data[at // 2 : at] + data[at:]
      case "drop":
        del data[at : at + draw(st.integers(1, 64))]
  return Damaged(data)


class Damaged(bytes):
  """Bytes that are not shown in full: a shard is padded to 128 KiB."""

  def __repr__(self):
    return f"{len(self)} bytes"


PICTURES = [
  encode(extension, scene())
  for extension in (".jpg", ".png", ".webp", ".bmp", ".tiff", ".ppm", ".jp2")
]


@fuzzed(4)
@given(st.one_of(st.binary(max_size=200), *map(damaged, PICTURES)))
def test_images(data):
  with contextlib.suppress(errors.BadImage):
    image = crops.decode(data, 1 << 20)
    rng = np.random.default_rng(0)
    groups = (crops.CropGroup(2, 16, (0.1, 1.0)),)
    (views,) = crops.multi_crop_bytes(
      data, rng, groups, (3 / 4, 4 / 3), 1 << 20
    )
    assert views.shape == (2, 16, 16, 3)
    for filtered in ("area", "bilinear", "bicubic"):
      small = crops.center_crop(image, 20, 16, filtered)
      assert small.shape == (16, 16, 3)
    # What pack would write can be read, and is the same picture.
    again = crops.decode(strip_metadata.strip(data, 1 << 20), 1 << 20)
    assert again.shape == image.shape


def shard_bytes(kind, folder):
  """A tar or ArrayRecord shard, or a list, of a few images."""
  if kind == "tar":
    shards.write_tar(folder / "x.tar", shards.SAMPLES)
    return "x.tar", (folder / "x.tar").read_bytes()
  if kind == "array_record":
    records = [tf_example.write(shards.image(i, 0, "a")) for i in range(3)]
    shards.write_shard(folder / "x.array_record", [*records, b"raw"])
    return "x.array_record", (folder / "x.array_record").read_bytes()
  if kind == "npy":
    np.save(folder / "x.npy", np.array(["a.jpg", "b/c.jpg", "ü"]))
    return "x.npy", (folder / "x.npy").read_bytes()
  return "x.txt", "a.jpg\tcat\nb/ü.jpg\tdog\n\nc\t1\n".encode()


@pytest.mark.parametrize("kind", ["tar", "array_record", "npy", "txt"])
def test_shards_and_lists(kind, tmp_path_factory, monkeypatch):
  folder = tmp_path_factory.mktemp("shards")
  monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
  name, whole = shard_bytes(kind, folder)
  kinds = {"npy": "list", "txt": "list"}

  @fuzzed(0.6)
  @given(data=damaged(whole))
  def harm(data):
    here = folder / f"{zlib.crc32(data):08x}"
    here.mkdir(exist_ok=True)
    (here / name).write_bytes(data)
    try:
      options = {"kind": kinds.get(kind, kind), "path": str(here / name)}
      source = sources.open_source(options)
    except errors.UserError as error:
      assert "\n" not in str(error)
      return
    for i in range(min(len(source), 20)):
      with contextlib.suppress(OSError):
        assert isinstance(source[i]["image"], bytes)
        assert source.label_of(i) < max(1, len(source.label_names))
      assert isinstance(source.id_of(i), str)

  harm()


KEYS = [key for key, _ in keys.flatten(keys.base())]
NUMBERS = st.one_of(
  st.integers(-2, 40),
  st.sampled_from((10**9, 2**63, -(2**40))),
  st.floats(allow_nan=True, allow_infinity=True),
)
VALUES = st.one_of(
  NUMBERS,
  st.booleans(),
  st.text(max_size=8),
  st.lists(NUMBERS, max_size=5).map(tuple),
  st.lists(st.tuples(NUMBERS, NUMBERS), max_size=3).map(tuple),
)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
  return plant(tmp_path_factory.mktemp("photos"), 40)


@fuzzed(1)
@given(changes=st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=3))
def test_values_of_configs(photos, tmp_path_factory, changes):
  some = tiny(photos)
  workdir = tmp_path_factory.getbasetemp() / "nowhere"
  try:
    for key, value in changes.items():
      # What main turns into a user's mistake when it reads the flags.
      with contextlib.suppress(TypeError, ValueError, OverflowError):
        keys.put(some, key, value)
    source, mesh, *_ = run.begin(some, workdir)
  except errors.UserError as error:
    assert "\n" not in str(error)
    return
  with jax.set_mesh(mesh):
    trace(some, mesh)
  assert len(source)


def trace(some, mesh):
  """Shapes of a step: what a run does first, and costs most of a second."""
  if some.batch_size > 64 or max(some.crops.sizes) > 64:
    return
  task = tasks.create(some)
  tx, schedule = run.loop.optim.make(some.optim, some.steps, some.batch_size)
  assert np.isfinite(float(schedule(0)))
  programs = step.build(task, tx, some, mesh)
  batch = pipeline.abstract_batch(some, mesh)
  jax.eval_shape(programs.step, programs.abstract, batch)


FLAGS = st.one_of(
  st.tuples(
    st.sampled_from([f"config.{key}" for key in KEYS]),
    st.one_of(VALUES.map(str), st.text(max_size=8)),
  ).map(lambda each: f"--{each[0]}={each[1]}"),
  st.text(st.characters(codec="ascii"), max_size=12).map(lambda t: f"--{t}"),
  st.text(max_size=12),
  st.sampled_from(("--mode=what", "--config=", "--processes=x", "--", "-c")),
)


@fuzzed(1)
@given(st.lists(FLAGS, max_size=4))
def test_command_lines(given_flags):
  argv = main.command_line(["--config=configs/digits.py", *given_flags])
  shown = io.StringIO()
  try:
    with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(shown):
      name, *arguments = argv
      command = commands.COMMANDS.get(name, commands.COMMANDS["train"])
      options = command.parse(name, arguments)
      from_flags.read(options.config, options.overrides)
  except errors.UserError as error:
    assert "\n" not in str(error)
  except SystemExit:
    assert any("help" in each for each in given_flags)


@fuzzed(0.5)
@given(
  st.dictionaries(
    st.sampled_from(("seed", "steps", "log.every", "swav.freeze_steps")),
    st.integers(0, 10**6),
  )
)
def test_values_on_a_command_line_reach_the_config(values):
  """Or the fuzz above is one of nothing."""
  overrides = [f"--config.{key}={value}" for key, value in values.items()]
  config = from_flags.read("configs/digits.py", overrides)
  assert {key: keys.get(config, key) for key in values} == values


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
  return tfds_sets.prepare(tmp_path_factory.mktemp("tfds"))


@fuzzed(1)
@given(data=st.data())
def test_shards_and_their_descriptions(pets, tmp_path_factory, data):
  here = tmp_path_factory.mktemp("pets")
  shutil.copytree(pets, here, dirs_exist_ok=True)
  files = sorted(path for path in here.rglob("*") if path.is_file())
  victim = data.draw(st.sampled_from(files))
  victim.write_bytes(data.draw(damaged(victim.read_bytes())))
  try:
    source = sources.Tfds("pets", str(here), "train")
    for i in range(len(source)):
      with contextlib.suppress(errors.BadImage, OSError):
        crops.decode(source[i]["image"], 1 << 20)
        source.label_of(i)
  except errors.UserError as error:
    assert "\n" not in str(error)
  finally:
    shutil.rmtree(here)


@pytest.fixture(scope="module")
def programs():
  mesh = mesh_lib.make(1)
  with jax.set_mesh(mesh):
    config = ten_steps.make_config("one-head", **ten_steps.SMALL)
    yield ten_steps.build(config, mesh)[1]


@pytest.fixture(scope="module")
def saved(programs, tmp_path_factory):
  folder = tmp_path_factory.mktemp("saved")
  kept = checkpoint.Checkpoints(folder)
  for number in (1, 2):
    now = programs.init()
    kept.save(
      number, now.replace(step=now.step + number), programs.unpadded, {}
    )
  kept.close()
  return folder


@fuzzed(0.5)
@given(data=st.data())
def test_checkpoints(saved, programs, tmp_path_factory, data):
  here = tmp_path_factory.mktemp("here")
  shutil.copytree(saved, here, dirs_exist_ok=True)
  files = sorted(path for path in here.rglob("*") if path.is_file())
  before = None
  for victim in data.draw(st.lists(st.sampled_from(files), max_size=3)):
    before = victim.read_bytes()
    victim.write_bytes(data.draw(damaged(before)))
  kept = checkpoint.Checkpoints(here)
  try:
    now, _ = kept.restore(programs.abstract, programs.unpadded)
    assert int(now.step) in (1, 2)
    expected = programs.init()
    jax.tree.map(np.testing.assert_array_equal, now.params, expected.params)
  except errors.UserError as error:
    assert "\n" not in str(error)
  finally:
    kept.close()
    shutil.rmtree(here)


LINES = "".join(
  json.dumps({"step": i, "loss": i / 3, "features/rank": 2.0}) + "\n"
  for i in range(20)
).encode()


@fuzzed(2)
@given(data=damaged(LINES), resumed_at=st.none() | st.integers(0, 20))
def test_metrics(tmp_path_factory, data, resumed_at):
  workdir = tmp_path_factory.getbasetemp() / "metrics"
  workdir.mkdir(exist_ok=True)
  (workdir / "metrics.jsonl").write_bytes(data)
  writer = metrics.Writer(workdir, resumed_at)
  writer.write(21, {"loss": 1.0})
  writer.close()
  assert metrics.read_lines(workdir / "metrics.jsonl")[-1]["step"] == 21
  list(run.closing_lines(workdir))
  shutil.rmtree(workdir)


@fuzzed(2)
@given(data=st.data())
def test_written_configs(photos, tmp_path_factory, data):
  workdir = tmp_path_factory.getbasetemp() / "configs"
  (workdir / "checkpoints" / "3").mkdir(parents=True, exist_ok=True)
  some = tiny(photos)
  text = json.dumps(dict(keys.flatten(some)), indent=2).encode()
  (workdir / "config.json").write_bytes(data.draw(damaged(text)))
  try:
    resolved.load(workdir, copy.deepcopy(some))
    resolved.write(workdir, some)
  except errors.UserError as error:
    assert "\n" not in str(error)
