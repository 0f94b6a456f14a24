"""Files that are not what they should be, and places to write to that are not.

Each ends in one line and status 2. Pickles are in `formats/torch_file_test.py`.
"""

import json

import numpy as np
import pytest
from weights_test import network_of, opened_of, same, vissl_file

import seer_jax
from seer_jax import commands
from seer_jax.runtime import checksums
from seer_jax.weights import convert
from seer_jax.weights.exports import orbax
from seer_jax.weights.formats import safetensors_file, torch_file

ESCAPE = "\x1b[2J"  # Clears a terminal.
STEM = "_feature_blocks.conv1.stem.0.weight"


@pytest.fixture
def refused(capsys):
  """`refused(*arguments of convert)`: the line that a user sees."""

  def run(*arguments):
    assert commands.main(["convert", *map(str, arguments)]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert line.strip().isprintable()
    return line

  return run


@pytest.mark.parametrize(
  "network",
  [
    {"trunk": "abc"},
    {"trunk": [["a"], ["b"]]},
    {"trunk": 3},
    {"trunk": {}, "heads": 3},
    {"trunk": {3: 4}},
    {"trunk": {STEM: f"a{ESCAPE}"}},
    {"trunk": {STEM: "a" * 5000}},
  ],
)
def test_parts_of_a_checkpoint_that_are_no_arrays(tmp_path, refused, network):
  path = tmp_path / "a.torch"
  saved = {"classy_state_dict": {"base_model": {"model": network}}}
  torch_file.write(path, saved, {}.__getitem__)
  assert "a.torch" in refused(path) or "a_layers" in refused(path)


@pytest.mark.parametrize(
  "index, words",
  [
    (
      {"weight_map": {"a": "model.safetensors.index.json"}},
      "not a file of arr",
    ),
    ({"weight_map": {"a": ["b"]}}, "names a list"),
    ({"weight_map": {"a": f"{ESCAPE}.safetensors"}}, "x1b"),
    ({"weight_map": {"a": "b" * 5000}}, "is missing"),
    ({"weight_map": ["a"]}, "no weight_map"),
    ([], "no weight_map"),
  ],
)
def test_an_index_that_is_none(tmp_path, refused, index, words):
  path = tmp_path / "model.safetensors.index.json"
  path.write_text(json.dumps(index))
  assert words in refused(tmp_path)


def test_deeply_nested_json(tmp_path, refused):
  (tmp_path / "model.safetensors.index.json").write_text("[" * 100_000)
  assert "is not JSON" in refused(tmp_path)


def test_names_of_arrays_are_escaped_cut_and_counted(tmp_path, refused):
  names = [f"{STEM}{ESCAPE}{i}" + "x" * 1000 for i in range(100)]
  entries = [(STEM, (4, 3, 3, 3), np.dtype("f4"))]
  entries += [(name, (1,), np.dtype("f4")) for name in names]
  path = tmp_path / "a.safetensors"
  safetensors_file.write(
    path,
    entries,
    lambda name: np.zeros((4, 3, 3, 3) if name == STEM else 1, np.float32),
    {},
  )
  assert len(refused(path)) < 1000
  kept = vissl_file(
    tmp_path / "b.torch",
    more={
      name: torch_file.Entry(name, (2, 3), np.dtype("f4")) for name in names
    },
  )
  line = refused(kept)
  assert "and 80 more" in line
  assert len(line) < 3000


def test_a_head_whose_number_has_many_digits(tmp_path):
  path = tmp_path / "a.torch"
  names = [f"projection_head.{'9' * 5000}.weight", "projection_head.01.weight"]
  more = {
    name: torch_file.Entry(name, (2, 3), np.dtype("f4")) for name in names
  }
  vissl_file(path, more=more, hidden=(8,), out=4, prototype_counts=(5,))
  assert commands.main(["convert", str(path)]) == 2


@pytest.mark.parametrize(
  "text", ["[" * 100_000, "[]", "{}", '{"architecture": 3}']
)
def test_an_export_whose_description_is_none(tmp_path, refused, text):
  list(convert.convert(opened_of(), tmp_path / "a", "orbax"))
  (tmp_path / "a" / orbax.DESCRIPTION).write_text(text)
  (tmp_path / "a" / "SHA256SUMS").unlink()
  checksums.seal(tmp_path / "a")
  assert orbax.DESCRIPTION in refused(tmp_path / "a")


@pytest.mark.parametrize(
  "to, name, renamed",
  [
    ("timm", "a.safetensors", "a.pth"),
    ("timm", "a.safetensors", "a"),
    ("vissl", "a.torch", "a.safetensors"),
    ("torchvision", "a.pth", "a.bin"),
  ],
)
def test_files_are_known_by_their_content(tmp_path, to, name, renamed):
  list(convert.convert(opened_of(), tmp_path / name, to))
  (tmp_path / name).rename(tmp_path / renamed)
  assert same(network_of()[1], seer_jax.load(tmp_path / renamed)[1])


def test_a_relative_path_is_one_for_orbax_too(tmp_path, monkeypatch):
  path = vissl_file(tmp_path / "a.torch")
  monkeypatch.chdir(tmp_path)
  left = tmp_path / ".out.0123.part" / "left"  # By one that was killed.
  left.mkdir(parents=True)
  assert commands.main(["convert", str(path), "out", "--to=orbax"]) == 0
  assert same(network_of()[1], seer_jax.load("out")[1])
  assert sorted(each.name for each in tmp_path.iterdir()) == ["a.torch", "out"]


def test_a_conversion_that_fails_leaves_nothing(tmp_path, monkeypatch):
  def fails(*_):
    raise ValueError("no such disk")

  monkeypatch.setattr(orbax.ocp, "save_checkpointables", fails)
  with pytest.raises(ValueError, match="no such disk"):
    list(convert.convert(opened_of(), tmp_path / "a", "orbax"))
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  "to, source, target",
  [
    ("torchvision", "x.pth", "x.pth"),
    ("torchvision", "x.pth", "link.pth"),
    ("timm", "x.safetensors", "x.safetensors"),
    ("huggingface", "hf", "hf"),
    ("huggingface", "hf/model.safetensors", "hf"),
    ("timm", "hf", "hf/model.safetensors"),
  ],
)
def test_what_is_read_is_not_overwritten(
  tmp_path, monkeypatch, refused, to, source, target
):
  monkeypatch.chdir(tmp_path)
  first = "huggingface" if source.startswith("hf") else to
  list(convert.convert(opened_of(), tmp_path / source.split("/")[0], first))
  if target.startswith("link"):
    (tmp_path / target).symlink_to(source)
  files = [path for path in tmp_path.rglob("*") if path.is_file()]
  before = {path: path.read_bytes() for path in files}
  assert "would overwrite" in refused(source, target, f"--to={to}")
  assert {path: path.read_bytes() for path in files} == before
