"""Files of PyTorch, without it: what is read, and what is refused."""

import io
import os
import pickle
import struct
import time
import tracemalloc
import zipfile

import ml_dtypes
import numpy as np
import pytest

from seer_jax import commands
from seer_jax.runtime import errors
from seer_jax.weights.formats import (
  lazy_tensors,
  pickle_machine,
  safetensors_file,
  torch_file,
)

_TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n"


def written(path, saved, arrays):
  torch_file.write(path, saved, arrays.__getitem__)
  return torch_file.read(path)


def zipped(path, pickled, storages=(), compression=zipfile.ZIP_STORED):
  """A file as PyTorch lays it out, around any pickle."""
  with zipfile.ZipFile(path, "w", compression) as archive:
    archive.writestr("archive/data.pkl", pickled)
    for key, data in enumerate(storages):
      archive.writestr(f"archive/data/{key}", data)
  return path


def tensor(count, shape, strides, start=0, kind=b"FloatStorage"):
  """The pickle of a tensor, whatever it claims."""
  of = torch_file._Pickler()._of
  storage = b"(" + of("storage") + b"ctorch\n" + kind + b"\n"
  storage += of("0") + of("cpu") + of(count) + b"tQ"
  rest = of(start) + of(shape) + of(strides) + b"\x89N"
  return _TENSOR + b"(" + storage + rest + b"tR"


def refused(path):
  """The one line that a user sees."""
  with pytest.raises(errors.UserError) as caught:
    torch_file.read(path)
  line = str(caught.value)
  assert "\n" not in line
  assert str(path) in line
  return line


def test_what_is_written_is_read(tmp_path):
  kinds = [np.float32, np.float16, np.int64, ml_dtypes.bfloat16, np.bool_]
  arrays = {
    str(kind): np.arange(6).reshape(2, 3).astype(kind) for kind in kinds
  }
  entries = {
    name: torch_file.Entry(name, array.shape, array.dtype)
    for name, array in arrays.items()
  }
  saved = {
    "tensors": entries,
    "list": [1, -(2**40), None, True],
    "text": "é",
  }
  found = written(tmp_path / "a.pth", saved, arrays)
  assert found["list"] == saved["list"]
  assert found["text"] == "é"
  for name, array in arrays.items():
    read = found["tensors"][name].read()
    assert read.dtype == array.dtype
    np.testing.assert_array_equal(read, array)


@pytest.mark.parametrize("zip_format", [True, False])
def test_pytorch_s_own_files_are_read(torch, tmp_path, zip_format):
  base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
  saved = {
    "view": base.t()[1:3],
    "again": base,
    "half": torch.ones(3, dtype=torch.bfloat16),
    "nothing": torch.zeros(0, 3),
    "one": torch.tensor(7),
    "parameter": torch.nn.Parameter(torch.full((2, 2), 3.0)),
    "inner": torch.nn.Linear(2, 3).state_dict(),
    "size": base.shape,
    "number": np.float64(3),
  }
  path = tmp_path / "a.pt"
  torch.save(saved, path, _use_new_zipfile_serialization=zip_format)
  found = torch_file.read(path)
  for name in ("view", "again", "half", "nothing", "one", "parameter"):
    np.testing.assert_array_equal(
      np.float32(found[name].read()), saved[name].detach().float().numpy()
    )
  assert found["size"] == (4, 6)
  assert found["inner"]["weight"].shape == (3, 2)


def test_pytorch_reads_ours(torch, tmp_path):
  array = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
  entry = torch_file.Entry("a", array.shape, array.dtype)
  written(tmp_path / "a.pth", {"x": {"a": entry}}, {"a": array})
  for mmap in (False, True):
    found = torch.load(tmp_path / "a.pth", weights_only=True, mmap=mmap)
    np.testing.assert_array_equal(found["x"]["a"].numpy(), array)


class Evil:
  def __init__(self, *call):
    self._call = call

  def __reduce__(self):
    return self._call


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("form", ["zip", "stream"])
def test_a_pickle_that_calls_something_calls_nothing(
  tmp_path, form, protocol, capsys
):
  victim = tmp_path / "written"
  evil = Evil(os.system, (f"touch {victim}",))
  pickled = pickle.dumps({"state_dict": evil}, protocol)
  path = tmp_path / "a.pth"
  if form == "zip":
    zipped(path, pickled)
  else:
    magic = pickle.dumps(torch_file._LEGACY_MAGIC, 2)
    path.write_bytes(
      magic + pickle.dumps(1001, 2) + pickle.dumps({}, 2) + pickled
    )
  assert "posix.system" in refused(path) or "nt.system" in refused(path)
  assert commands.main(["convert", str(path)]) == 2
  told = capsys.readouterr().err
  assert told.count("\n") == 1
  assert "posix.system" in told
  assert not victim.exists()


@pytest.mark.parametrize(
  "call", [(eval, ("1",)), (getattr, ("", "join")), (type, ("A", (), {}))]
)
def test_builtins_are_no_exception(tmp_path, call):
  path = zipped(tmp_path / "a.pth", pickle.dumps(Evil(*call), 2))
  assert f"asks for {call[0].__module__.replace('builtins', '')}" in refused(
    path
  ).replace("builtins", "").replace("__builtin__", "")


@pytest.mark.parametrize(
  ("name", "pickled"),
  [
    ("more elements than bytes", tensor(1 << 40, (1 << 40,), (1,))),
    ("a shape beyond the storage", tensor(4, (2, 3), (3, 1))),
    ("strides beyond the storage", tensor(4, (2, 2), (1000, 1))),
    ("repeated elements", tensor(4, (1 << 40,), (0,))),
    ("a negative stride", tensor(4, (2,), (-1,), 1)),
    ("a negative start", tensor(4, (2,), (1,), -1)),
    ("a negative shape", tensor(4, (-2,), (1,))),
    ("a negative storage", tensor(-4, (2,), (1,))),
    ("a shape that is none", tensor(4, ("a",), (1,))),
  ],
)
def test_a_header_that_lies_is_refused(tmp_path, name, pickled):
  path = zipped(
    tmp_path / "a.pth", b"\x80\x02" + pickled + b".", [np.zeros(4, "f4")]
  )
  assert "damaged" in refused(path), name


def test_a_tensor_cannot_be_altered_after_it_was_checked(tmp_path):
  of = torch_file._Pickler()._of
  for state in ({"shape": (1 << 40,)}, (None, {"shape": (1 << 40,)})):
    altered = tensor(4, (4,), (1,)) + of(state) + b"b"
    path = zipped(
      tmp_path / "a.pth", b"\x80\x02" + altered + b".", [np.zeros(4, "f4")]
    )
    assert "damaged" in refused(path)


def test_what_a_pickle_may_call_it_cannot_alter(tmp_path):
  of = torch_file._Pickler()._of
  for state in ({"function": 1}, (None, {"function": 1})):
    pickled = b"\x80\x02" + _TENSOR + of(state) + b"b."
    refused(zipped(tmp_path / "a.pth", pickled))
  assert torch_file._ADMITTED["torch._utils", "_rebuild_tensor_v2"].function


def test_a_zip_bomb_is_not_unpacked(tmp_path):
  bomb = b"\x80\x02" + b"0" * (1 << 26) + b"."
  path = zipped(tmp_path / "a.pth", bomb, compression=zipfile.ZIP_DEFLATED)
  assert path.stat().st_size < 1 << 20
  assert "compressed" in refused(path)


def test_a_compressed_tensor_is_not_unpacked(tmp_path):
  path = tmp_path / "a.pth"
  pickled = b"\x80\x02" + tensor(1 << 24, (1 << 24,), (1,)) + b"."
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("archive/data.pkl", pickled)
    archive.writestr("archive/data/0", bytes(1 << 26), zipfile.ZIP_DEFLATED)
  assert "compressed" in refused(path)


def test_a_pickle_cannot_ask_for_memory(tmp_path):
  path = zipped(
    tmp_path / "a.pth", b"\x80\x02Nr" + struct.pack("<I", 0x7FFFFFFF) + b"."
  )
  assert "puts memo" in refused(path)


def test_a_nest_of_containers_is_refused_in_one_line(tmp_path):
  path = zipped(
    tmp_path / "a.pth", b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b"."
  )
  assert commands.main(["convert", str(path)]) == 2


def nest(levels=98):
  """A tuple of a tuple twice, of a tuple twice, and so on: 2**98 at the end."""
  steps = (
    b"h" + bytes([i]) + b"h" + bytes([i]) + b"\x86q" + bytes([i + 1]) + b"0"
    for i in range(levels)
  )
  return b")q\x000" + b"".join(steps) + b"h" + bytes([levels])


def storage(key=b"X\1\0\0\0000", count=b"K\4", rest=b""):
  return (
    b"(X\7\0\0\0storagectorch\nFloatStorage\n"
    + key
    + b"X\3\0\0\0cpu"
    + count
    + rest
    + b"tQ"
  )


HOSTILE = {
  "a key that takes for ever to hash": b"}" + nest() + b"K\1s",
  "one of a set": b"c__builtin__\nset\n(" + nest() + b"lb\x85R",
  "one of a frozen set": b"(" + nest() + b"\x91",
  "one of an OrderedDict": b"ccollections\nOrderedDict\n]("
  + nest()
  + b"K\1\x86a\x85R",
  "a storage that is none": nest() + b"Q",
  "a storage of that name": storage(key=nest()),
  "a storage of that size": storage(count=nest()),
  "a storage of that kind of view": storage(rest=nest()),
  "a tensor of that shape": _TENSOR
  + b"("
  + storage()
  + b"K\0"
  + nest()
  + b")\x89NtR",
  "a tensor whose shape has it": _TENSOR
  + b"("
  + storage()
  + b"K\0("
  + nest()
  + b"tK\1\x85\x89NtR",
  "3 million nested tuples": b")" + b"\x85" * 3_000_000,
  "a million nested lists": b"]" * 1_000_000 + b"a" * 999_999,
  "steps without end": b"N0" * (1 << 16) + b"N",
  "nested sizes": b")" + b"q\0ctorch\nSize\n]h\0a\x85R" * 10_000,
  "4 MB of }": b"}" * 4_000_000,
  "4 MB of marks": b"(" * 4_000_000,
  "the same thing remembered 4 million times": b"N" + b"\x94" * 4_000_000,
  "a large list made a set 100,000 times": b"c__builtin__\nset\nq\0]("
  + b"N" * 300_000
  + b"eq\1"
  + b"h\0h\1\x85R0" * 100_000
  + b"N",
  "a huge integer": b"\x8b" + struct.pack("<i", 1 << 20) + b"\x7f" * (1 << 20),
  "a huge shape": tensor(4, (2**127,) * 32, (1,) * 32),
  "an opcode of objects": b"(c__main__\nA\no",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pickles_cost_neither_time_nor_memory(
  tmp_path, monkeypatch, name
):
  if name == "steps without end":
    monkeypatch.setattr(pickle_machine, "_MOST_STEPS", 1 << 16)
  pickled = b"\x80\2" + HOSTILE[name] + b"."
  path = zipped(tmp_path / "a.pth", pickled, [b"0" * 16])
  tracemalloc.start()
  began = time.process_time()
  line = refused(path)
  seconds = time.process_time() - began
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert len(line) < 400 + len(str(path))
  # The whole pickle, and as much as 16 times of the largest here.
  assert peak < 128 << 20, f"{peak >> 20} MiB"
  assert seconds < 60, seconds  # Tracing memory takes most of it.


def test_names_in_messages_are_escaped_and_cut(tmp_path):
  name = b"\x1b[31m" + b"A" * 100_000
  path = zipped(tmp_path / "a.pth", b"\x80\2c" + name + b"\nb\n.")
  line = refused(path)
  assert line.isprintable()
  assert "asks for \\x1b[31mAAA" in line
  assert len(line) < 400 + len(str(path))


@pytest.mark.parametrize(
  "it, words",
  [
    ("trunk.stem.weight", "trunk.stem.weight"),
    ("a\nb\x1b]", "a\\nb\\x1b]"),
    ("Größe", "Größe"),
    ("x" * 200, "x" * 77 + "..."),
    (((),) * 3, "a tuple"),
    (None, "None"),
    (b"a", "b'a'"),
  ],
)
def test_what_is_shown_of_foreign_names(it, words):
  assert errors.shown(it) == words


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_plain_containers_of_all_protocols_are_read(tmp_path, protocol):
  saved = {
    "numbers": [0, -1, 255, 256, 2**31, -(2**40), 0.5, True, False, None],
    "text": ("é", "", b"bytes" if protocol > 2 else ""),
    3: {"empty": ([], (), {}), "one": (1,), "two": (1, 2), "three": (1, 2, 3)},
    "set": {1, 2} if protocol > 3 else 1,
    "frozen": frozenset({"a"}) if protocol > 3 else 1,
    "many": list(range(3000)),
    "shared": [[1]] * 3,
  }
  path = zipped(tmp_path / "a.pth", pickle.dumps(saved, protocol))
  assert torch_file.read(path) == saved


@pytest.mark.parametrize("cut", [0, 1, 10, 100, 0.5, -1])
def test_a_file_cut_short_is_refused(tmp_path, cut):
  array = np.ones((8, 8), np.float32)
  path = tmp_path / "a.pth"
  written(path, {"a": torch_file.Entry("a", (8, 8), array.dtype)}, {"a": array})
  data = path.read_bytes()
  length = int(cut * len(data)) if isinstance(cut, float) else cut
  path.write_bytes(data[:length])
  refused(path)


@pytest.mark.parametrize("seed", range(200))
def test_any_damage_is_told_in_one_line_or_harmless(tmp_path, seed):
  rng = np.random.default_rng(seed)
  array = np.ones((4, 4), np.float32)
  path = tmp_path / "a.pth"
  entry = torch_file.Entry("a", (4, 4), array.dtype)
  written(path, {"state_dict": {"a": entry}}, {"a": array})
  data = bytearray(path.read_bytes())
  for _ in range(rng.integers(1, 4)):
    data[rng.integers(len(data))] = rng.integers(256)
  path.write_bytes(data)
  assert commands.main(["convert", str(path)]) == 2


@pytest.mark.extras
def test_safetensors_are_what_the_library_writes(tmp_path):
  library = pytest.importorskip("safetensors.numpy", reason="no safetensors")
  arrays = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.array(3, np.int64),
    "c": np.zeros((0, 4), np.float16),
  }
  library.save_file(arrays, tmp_path / "theirs", {"format": "pt"})
  safetensors_file.write(
    tmp_path / "ours",
    [(name, array.shape, array.dtype) for name, array in arrays.items()],
    arrays.__getitem__,
    {"format": "pt"},
  )
  again = library.load_file(tmp_path / "ours")
  for name, tensor_ in safetensors_file.read(tmp_path / "theirs").items():
    np.testing.assert_array_equal(tensor_.read(), arrays[name])
    np.testing.assert_array_equal(again[name], arrays[name])


@pytest.mark.parametrize(
  "header",
  [
    b'{"a": {"dtype": "F32", "shape": [8], "data_offsets": [0, 32]}}',
    b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 16]}}',
    b'{"a": {"dtype": "F32", "shape": [4], "data_offsets": [-16, 0]}}',
    b'{"a": {"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]}}',
    b'{"a": {"dtype": "F99", "shape": [4], "data_offsets": [0, 16]}}',
    b'{"a": {"dtype": "F32", "shape": 4, "data_offsets": [0, 16]}}',
    b'{"a": {"dtype": "F32", "shape": [4]}}',
    b'{"a": 1}',
    b"[]",
    b"[" * 100_000,
    b'{"a": {"dtype": "F32", "shape": ['
    + b"1," * 100_000
    + b'1], "data_offsets": [0, 4]}}',
    b"\xff",
  ],
)
def test_safetensors_that_lie_are_refused(tmp_path, header):
  path = tmp_path / "a.safetensors"
  path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(16))
  with pytest.raises(errors.UserError, match="not a complete") as caught:
    safetensors_file.read(path)
  assert "\n" not in str(caught.value)
  path.write_bytes(struct.pack("<Q", 1 << 62) + header)
  with pytest.raises(errors.UserError, match="not a complete"):
    safetensors_file.read(path)


@pytest.mark.parametrize("name", ["../a", "/etc/passwd", "..", "", "a\0", 3])
def test_a_name_that_leaves_its_folder_is_refused(tmp_path, name):
  with pytest.raises(errors.UserError):
    lazy_tensors.within(tmp_path, name)


def test_a_failed_write_leaves_nothing(tmp_path):
  def fails(name):
    raise errors.UserError("no such array")

  entry = torch_file.Entry("a", (2,), np.dtype("f4"))
  with pytest.raises(errors.UserError):
    torch_file.write(tmp_path / "a.pth", {"a": entry}, fails)
  assert not list(tmp_path.iterdir())


def test_a_pickle_of_python_alone_is_refused(tmp_path):
  path = tmp_path / "a.bin"
  path.write_bytes(pickle.dumps({"a": io}.keys().__class__.__name__))
  assert "neither of its formats" in refused(path)
