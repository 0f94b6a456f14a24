"""Made-up machines: what is said of them, and that nothing else is."""

import dataclasses
import os
import pathlib
import subprocess
import sys

import jax
import pytest

from seer_jax.commands import process
from seer_jax.planning import doctor, installation
from seer_jax.planning.installation import Device, Facts, Gpu
from seer_jax.runtime import errors, files

GIB = 2**30
JAX = {"jax": "0.10.2", "jaxlib": "0.10.2"}
CUDA12 = JAX | {
  "jax-cuda12-plugin": "0.10.2",
  "jax-cuda12-pjrt": "0.10.2",
  "nvidia-cuda-runtime-cu12": "12.9.79",
  "nvidia-cudnn-cu12": "9.28.0.42",
}
CUDA13 = JAX | {
  "jax-cuda13-plugin": "0.10.2",
  "jax-cuda13-pjrt": "0.10.2",
  "nvidia-cuda-runtime": "13.5.37",
  "nvidia-cudnn-cu13": "9.28.1.4",
}
CPU = Device("cpu", "cpu")

LAPTOP = Facts(
  versions=JAX,
  devices=(CPU,),
  precision=("fp32", "nothing shorter is native on this hardware"),
  cores=8,
  memory=16 * GIB,
  shm=8 * GIB,
  cache="/home/a/.cache/seer_jax/xla",
  cache_free=100 * GIB,
)
A100 = dataclasses.replace(
  LAPTOP,
  versions=CUDA12,
  devices=(Device("gpu", "NVIDIA A100", "8.0", 30 * GIB),) * 8,
  precision=("bf16", "native at compute capability 8.0"),
  gpus=(Gpu("NVIDIA A100", "8.0", 40 * GIB, 0, "550.54.15"),) * 8,
  nvidia=True,
)
V100 = dataclasses.replace(
  A100,
  versions=CUDA12 | {"nvidia-cudnn-cu12": "9.10.2.21"},
  devices=(Device("gpu", "Tesla V100", "7.0", 24 * GIB),) * 8,
  precision=("fp16", "compute capability 7.0 has no native bf16"),
  gpus=(Gpu("Tesla V100", "7.0", 32 * GIB, 0, "580.126.9"),) * 8,
)
TPU = dataclasses.replace(
  LAPTOP,
  versions=JAX | {"libtpu": "0.0.42.1"},
  devices=(Device("tpu", "TPU v4", "", 32 * GIB),) * 4,
  tpu_chips=4,
)


def with_(facts: Facts, **changes) -> Facts:
  return dataclasses.replace(facts, **changes)


@pytest.mark.parametrize("facts", [LAPTOP, A100, V100, TPU])
def test_of_a_sound_machine_nothing_is_said(facts):
  assert list(doctor.examine(facts)) == []
  lines, status = doctor.report(facts)
  assert status == 0
  assert lines[-1] == "no faults"


def test_a_compiler_without_a_gpu_is_no_fault():
  versions = JAX | {"jax-cuda12-plugin": "0.10.2", "libtpu": "0.0.42.1"}
  assert not list(doctor.examine(with_(LAPTOP, versions=versions)))


@pytest.mark.parametrize(
  ("facts", "fault", "fix"),
  [
    (with_(LAPTOP, devices=(), complaint="No"), "not start: No", "--upgrade j"),
    (with_(V100, devices=(), complaint="No"), "not start: No", "[v100]"),
    (
      with_(LAPTOP, versions=JAX | {"jaxlib": "0.10.1"}),
      "different versions: jax 0.10.2, jaxlib 0.10.1",
      "pip install --upgrade jax jaxlib",
    ),
    (
      with_(A100, versions=CUDA12 | {"jax-cuda12-plugin": "0.9.0"}),
      "jax-cuda12-plugin 0.9.0",
      "'jax[cuda12]'",
    ),
    (with_(A100, versions=CUDA12 | CUDA13), "both", "uninstall jax-cuda13-pl"),
    (
      with_(V100, versions=CUDA12),
      "cuDNN 9.28.0.42 does not support Tesla V100 (compute capability 7.0)",
      "pip install 'seer_jax[v100]'",
    ),
    (
      with_(V100, versions=CUDA12 | {"nvidia-cudnn-cu12": "9.11.0.98"}),
      "cuDNN 9.11.0.98",
      "[v100]",
    ),
    # JAX sees no GPU then; nvidia-smi still knows it.
    (
      with_(V100, versions=CUDA13, devices=(CPU,)),
      "CUDA 13 does not support Tesla V100",
      "pip uninstall jax-cuda13-plugin jax-cuda13-pjrt; pip install",
    ),
    (
      with_(A100, versions=CUDA13),
      "driver is 550.54.15, but CUDA 13 needs 580.65",
      "or pip install 'seer_jax[cuda12]'",
    ),
    (
      with_(A100, versions=JAX, devices=(CPU,)),
      "JAX sees only the CPU: its plugin is missing",
      "pip install 'seer_jax[cuda12]'",
    ),
    (
      with_(V100, versions=JAX, devices=(CPU,)),
      "JAX sees only the CPU: its plugin is missing",
      "pip install 'seer_jax[v100]'",
    ),
    (
      with_(
        A100,
        versions=JAX | {"jax-cuda12-plugin": "0.10.2"},
        devices=(CPU,),
      ),
      "CUDA's own libraries are missing",
      "[cuda12]",
    ),
    (
      with_(A100, devices=(CPU,), complaint="cuInit failed"),
      "sees only the CPU; its message: cuInit failed",
      "docker run --gpus all",
    ),
    # A container that has the device files and no driver tools.
    (
      with_(LAPTOP, nvidia=True),
      "JAX sees only the CPU: its plugin is missing",
      "[cuda12]",
    ),
    (
      with_(TPU, versions=JAX, devices=(CPU,)),
      "4 TPU chips, but JAX sees only the CPU: libtpu is missing",
      "pip install 'seer_jax[tpu]'",
    ),
    (
      with_(TPU, devices=(CPU,), complaint="The TPU is already in use"),
      "its message: The TPU is already in use",
      "end the other process",
    ),
    (
      with_(A100, foreign_cuda=("/usr/local/cuda/lib64",)),
      "LD_LIBRARY_PATH has another CUDA, in /usr/local/cuda/lib64",
      "unset LD_LIBRARY_PATH",
    ),
    (with_(LAPTOP, shm=2**26), "/dev/shm has 0.06 GiB", "--shm-size"),
    (with_(LAPTOP, shm=-1), "/dev/shm has 0.00 GiB", "workers=0"),
    (with_(LAPTOP, cache_free=2**29), "only 0.50 GiB free", "XDG_CACHE_HOME"),
    (with_(LAPTOP, cache_writable=False), "cannot be written", "XDG_CACHE"),
  ],
)
def test_faults_come_with_their_fix(facts, fault, fix):
  lines, status = doctor.report(facts)
  assert status == 2
  wrong = [i for i, line in enumerate(lines) if line.startswith("fault: ")]
  hits = [i for i in wrong if fault in lines[i]]
  assert len(hits) == 1
  assert lines[hits[0] + 1].startswith("  fix: ")
  assert fix in lines[hits[0] + 1]


@pytest.mark.parametrize(
  ("facts", "note"),
  [
    (
      with_(A100, devices=(CPU,), environment={"JAX_PLATFORMS": "cpu"}),
      "because JAX_PLATFORMS=cpu",
    ),
    (
      with_(A100, devices=(CPU,), environment={"CUDA_VISIBLE_DEVICES": "-1"}),
      "CUDA_VISIBLE_DEVICES=-1 hides it",
    ),
    (
      with_(A100, versions=CUDA12 | {"torch": "2.13.0"}),
      "torch can take GPU memory",
    ),
    (
      with_(A100, gpus=(Gpu("H", "9.0", 80 * GIB, 20 * GIB, "600.1"),)),
      "20.0 of the 80.0 GiB of a H are in use",
    ),
  ],
)
def test_what_somebody_wanted_is_only_noted(facts, note):
  lines, status = doctor.report(facts)
  assert status == 0
  assert any(line.startswith("note: ") and note in line for line in lines)


@pytest.mark.parametrize(
  "facts",
  [
    with_(LAPTOP, versions=JAX | {"torch": "2.13.0", "tensorflow": "2.20"}),
    with_(A100, versions=CUDA12 | {"torch": "2.13.0+cpu"}),
    with_(LAPTOP, shm=0, cores=2),
  ],
)
def test_what_does_no_harm_is_not_mentioned(facts):
  assert not list(doctor.examine(facts))


def test_the_description_counts_devices_and_gives_the_reason():
  text = "\n".join(doctor.describe(V100))
  assert "8 x Tesla V100, compute capability 7.0, 24.0 GiB" in text
  assert "fp16: compute capability 7.0 has no native bf16" in text
  assert "nvidia-cudnn-cu12 9.10.2.21" in text


def test_nothing_at_all_is_described_too():
  lines, status = doctor.report(Facts(versions={}))
  assert status == 2
  assert "fault: JAX does not start: no message" in lines


def test_nvidia_smi_is_read():
  table = (
    "NVIDIA H100 80GB HBM3, 9.0, 81559, 512, 570.86.15\n"
    "Tesla K80, [N/A], [N/A], [N/A], 470.1\n"
  )
  assert installation.parse_gpus(table) == (
    Gpu("NVIDIA H100 80GB HBM3", "9.0", 81559 << 20, 512 << 20, "570.86.15"),
    Gpu("Tesla K80", "[N/A]", 0, 0, "470.1"),
  )


@pytest.mark.parametrize(
  ("stderr", "words"),
  [
    ("", ""),
    ("\n  note\n", "note"),
    (
      "E0000 00:00:1.7 1 a.cc:5] Error: no\n",
      "E0000 00:00:1.7 1 a.cc:5] Error: no",
    ),
    (
      "Traceback\n  line 3\nRuntimeError: Unable to load cuDNN.\n"
      "E0000 00:00:1.7 1 a.cc:5] Error: no\nA GPU may be present.\n",
      "RuntimeError: Unable to load cuDNN.",
    ),
  ],
)
def test_of_many_words_those_that_say_why_are_kept(stderr, words):
  assert errors.telling_line(stderr) == words


def test_folders_with_cuda_are_found(tmp_path):
  for name in ("driver/libcuda.so.1", "cuda/libcudnn_ops.so.9", "other/a.so"):
    (tmp_path / name).parent.mkdir()
    (tmp_path / name).touch()
  folders = [str(tmp_path / name) for name in ("driver", "cuda", "other")]
  path = ":".join(["", *folders, str(tmp_path / "nowhere")])
  assert installation.foreign_cuda(path) == (str(tmp_path / "cuda"),)


def test_the_cache_is_where_runs_keep_it(monkeypatch, tmp_path):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  before = jax.config.jax_compilation_cache_dir
  try:
    process.keep_compiled()
    kept = jax.config.jax_compilation_cache_dir
  finally:
    jax.config.update("jax_compilation_cache_dir", before)
  assert str(files.cache_folder()) == kept


def test_the_command_examines_this_machine():
  run = subprocess.run(
    [sys.executable, "-m", "seer_jax", "doctor"],
    cwd=pathlib.Path(__file__).parents[2],
    env=os.environ | {"JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
  )
  assert run.returncode in (0, 2), run.stderr
  assert "precision   fp32" in run.stdout
  assert "Traceback" not in run.stderr


def test_without_a_single_package_it_says_so(tmp_path):
  # -S leaves site-packages out.
  root = pathlib.Path(__file__).parents[2]
  program = (
    f"import sys; sys.path.insert(0, {str(root)!r});"
    " from seer_jax import commands; sys.exit(commands.main(['doctor']))"
  )
  broken = tmp_path / "python"
  broken.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
  broken.chmod(0o755)
  program = f"import sys; sys.executable = {str(broken)!r}; {program}"
  run = subprocess.run(
    [str(broken), "-c", program], capture_output=True, text=True
  )
  assert run.returncode == 2, run.stderr
  assert "JAX does not start: ModuleNotFoundError: No module" in run.stdout
