"""Costs read off programs, and plans for hardware that is not there."""

import copy
import importlib.util
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import ten_steps
from jax.experimental.compilation_cache import compilation_cache

from configs import digits
from seer_jax.config import keys
from seer_jax.data import pipeline
from seer_jax.models import grouped_conv
from seer_jax.planning import (
  accelerators,
  chips,
  collectives,
  compiled_step,
  operations,
  plan,
  plan_report,
)
from seer_jax.runtime import errors
from seer_jax.runtime import mesh as mesh_lib


def needs_gpu_compiler(test):
  missing = pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda12_plugin") is None,
    reason="needs the compiler for GPUs: pip install -e '.[plan-gpu]'",
  )
  return pytest.mark.extras(missing(test))


def test_operations_of_loops_branches_and_shards_are_counted_as_they_run():
  a, b = jnp.ones((8, 4)), jnp.ones((4, 4))
  once = 2 * 8 * 4 * 4

  def loop(a):
    return jax.lax.scan(lambda x, _: (x @ b, None), a, None, length=5)[0]

  def branch(a):
    return jax.lax.platform_dependent(
      a, cpu=lambda x: x @ b @ b, default=lambda x: x @ b
    )

  mesh = mesh_lib.make(8)

  def shards(a):
    return jax.shard_map(
      lambda x: x @ b,
      mesh=mesh,
      in_specs=jax.P(mesh_lib.AXES),
      out_specs=jax.P(mesh_lib.AXES),
    )(a)

  for fn, times in ((loop, 5), (branch, 1), (shards, 1)):
    assert operations.flops(jax.make_jaxpr(fn)(a)) == times * once
  recomputed = jax.grad(lambda x: jnp.sum(jnp.sin(jax.checkpoint(loop)(x))))
  plain = jax.grad(lambda x: jnp.sum(jnp.sin(loop(x))))
  # Forward and backward; and forward again where it is not kept.
  assert operations.flops(jax.make_jaxpr(plain)(a)) == 10 * once
  assert operations.flops(jax.make_jaxpr(recomputed)(a)) >= 10 * once


def test_traffic_counts_what_a_device_cannot_keep():
  a, b = jnp.ones((64, 32)), jnp.ones((32, 16))

  def product(a):
    return jnp.sin(a) @ b

  jaxpr = jax.make_jaxpr(product)(a)
  sizes = {"a": 64 * 32 * 4, "b": 32 * 16 * 4, "ab": 64 * 16 * 4}
  assert operations.traffic(jaxpr, 1, 0) == sum(sizes.values())
  # What just fits is kept; element-wise work passes on the way.
  assert operations.traffic(jaxpr, 1, sizes["ab"]) == sizes["a"]
  assert operations.traffic(jaxpr, 1, sizes["a"]) == 0
  # Of a part of it on each of eight devices.
  assert operations.traffic(jaxpr, 8, sizes["a"] // 8 - 1) == sizes["a"] // 8
  mesh = mesh_lib.make(8)
  whole = sizes["a"] / 8 + sizes["b"] + sizes["ab"] / 8
  with jax.set_mesh(mesh):
    found = jax.make_jaxpr(
      lambda a: jax.shard_map(
        product,
        in_specs=jax.P(mesh_lib.AXES),
        out_specs=jax.P(mesh_lib.AXES),
      )(a)
    )(a)
  assert operations.traffic(found, 8, 0) == whole

  def loop(a):
    return jax.lax.scan(lambda x, _: (x, product(x)), a, None, length=5)[1]

  assert operations.traffic(jax.make_jaxpr(loop)(a), 1, 0) == (
    5 * sum(sizes.values())
  )


def test_collectives_are_read_with_their_size_group_and_repetitions():
  mesh = mesh_lib.make(8)
  rows = mesh_lib.rows(mesh)
  x = jax.device_put(np.zeros((16, 3), np.float32), rows)

  def step(x):
    def body(total, _):
      return total + jnp.sum(jnp.sin(x) * total), None

    return jax.lax.scan(body, jnp.float32(1), None, length=7)[0]

  gather = jax.jit(lambda x: x + 1, out_shardings=mesh_lib.replicated(mesh))
  (found,) = collectives.collectives(
    gather.lower(x).compile().as_text(), [0, 0, 0, 0, 1, 1, 1, 1]
  )
  assert (found.kind, found.bytes, found.group) == ("all-gather", 16 * 3 * 4, 8)
  assert (found.times, found.hosts) == (1, 2)
  text = jax.jit(step).lower(x).compile().as_text()
  found = collectives.collectives(text, [0] * 8)
  assert {each.kind for each in found} == {"all-reduce"}
  assert sum(each.times for each in found) in (1, 7)  # Hoisted, or not.


@pytest.fixture
def uncached():
  """Programs for absent hardware can be kept, but not be read back."""
  before = jax.config.jax_compilation_cache_dir
  jax.config.update("jax_compilation_cache_dir", None)
  compilation_cache.reset_cache()
  yield
  jax.config.update("jax_compilation_cache_dir", before)
  compilation_cache.reset_cache()


def too_large(mesh, monkeypatch):
  """Collectives of a step for 2 hosts of 8 GPUs, above all gradients.

  The compiler puts many small gradients into one array; so small a network's,
  all of them.
  """
  monkeypatch.setattr(mesh_lib, "SPLIT_FROM", 1024)
  config = ten_steps.make_config("no-queue")
  config.batch_size = 64 * mesh.size
  config.precision = "fp16"
  config.mesh.data, config.mesh.fsdp = mesh.shape["data"], mesh.shape["fsdp"]
  _, programs = ten_steps.build(config, mesh)
  rows = mesh_lib.rows(mesh)
  batch = {
    "crops": [
      jax.ShapeDtypeStruct(
        (config.batch_size, 2, size, size, 3), jnp.float32, sharding=rows
      )
      for size in (16, 8)
    ],
    "replacements": jax.ShapeDtypeStruct(
      (config.batch_size,), jnp.float32, sharding=rows
    ),
  }
  with jax.set_mesh(mesh):
    text = programs.step.lower(programs.abstract, batch).compile().as_text()
  found = collectives.collectives(
    text, [d.process_index for d in mesh.devices.flat]
  )
  assert found
  gradients = 4 * sum(
    leaf.size for leaf in jax.tree.leaves(programs.unpadded.params)
  )
  # One device's largest map of activations is several times that.
  assert 3 * gradients < 64 * 2 * 16 * 16 * 16 * 2
  return [each for each in found if each.largest > gradients]


@needs_gpu_compiler
@pytest.mark.parametrize("fsdp", [1, 8])
def test_a_step_for_gpus_moves_no_activations(uncached, monkeypatch, fsdp):
  devices = accelerators.devices(accelerators.parse("v100:2x8"))
  assert not too_large(mesh_lib.make(-1, fsdp, devices), monkeypatch)


@needs_gpu_compiler
def test_without_shard_map_it_would_and_is_caught(uncached, monkeypatch):
  monkeypatch.setattr(
    grouped_conv, "_on_each_shard", lambda fn, *arrays: fn(*arrays, axes=())
  )
  devices = accelerators.devices(accelerators.parse("v100:2x8"))
  jax.clear_caches()  # Blocks that were traced with it.
  try:
    assert too_large(mesh_lib.make(-1, 1, devices), monkeypatch)
  finally:
    jax.clear_caches()


def barriers(monkeypatch):
  """Where a step on split kernels may not gather before its input is there."""
  monkeypatch.setattr(mesh_lib, "SPLIT_FROM", 1024)
  config = ten_steps.make_config("one-head", **{"mesh.fsdp": 2})
  mesh = mesh_lib.make(1, 2)
  with jax.set_mesh(mesh):
    _, programs = ten_steps.build(config, mesh)
    batch = pipeline.abstract_batch(config, mesh)
    text = programs.step.trace(programs.abstract, batch).lower().as_text()
  return text.count("stablehlo.optimization_barrier")


def test_each_block_s_kernels_wait_for_its_input(monkeypatch):
  """`mesh.after`, in both passes of three blocks at two resolutions.

  RG-10B needs 25.7 GiB of an A100 with it and 38 without, where the compiler
  gathers for both resolutions at once and keeps it all. On networks that
  compile in a test it gathers alike with and without.
  """
  wait = barriers(monkeypatch)
  monkeypatch.setattr(mesh_lib, "after", lambda stored, x: stored)
  assert wait - barriers(monkeypatch) >= 3 * 2


@needs_gpu_compiler
def test_a_plan_has_memory_collectives_and_a_verdict(uncached, capsys):
  report = plan.plan(digits.get_config(), "a100:1x2")
  for line in plan_report.lines(report):
    print(line)
  out = capsys.readouterr().out
  for words in ("memory of a device", "fits", "all-reduce", "images/s"):
    assert words in out
  figures = json.loads(out.strip().splitlines()[-1])
  assert figures["fits"] is True
  assert figures["devices"] == 2
  assert figures["executed_flops"] >= figures["model_flops"] > 0
  assert plan_report.row(report).count("|") == plan_report.HEADER.count("|")


@pytest.mark.parametrize(
  ("name", "devices", "tpu"),
  [
    ("v100:64x8", 512, False),
    ("a100:62x8", 496, False),
    ("h200:2x8", 16, False),
    ("v5p:8x8x8", 512, True),
    ("v5e:16x16", 256, True),
    # Cloud counts the cores of v5p, two a chip, but the chips of v5e.
    ("v5p-1024", 512, True),
    ("v5e-256", 256, True),
  ],
)
def test_topologies_are_read_by_their_names(name, devices, tpu):
  topology = accelerators.parse(name)
  assert (topology.size, topology.is_tpu) == (devices, tpu)


@pytest.mark.parametrize("name", ["b900:1x8", "v100", "v100:0x8", "v5e:4x4x4"])
def test_topologies_that_are_not_are_user_errors(name):
  with pytest.raises(errors.UserError):
    accelerators.parse(name)


@pytest.mark.parametrize(
  ("message", "gib"),
  [
    (
      "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM,"
      " the total memory required for HLO temporaries (26.50G) exceeds"
      " available HBM (15.75G). HLO module: jit_step.",
      26.5,
    ),
    (
      "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 512.00M"
      " of 15.75G hbm.",
      0.5,
    ),
  ],
)
def test_a_compiler_that_refuses_says_how_much_it_would_take(message, gib):
  assert compiled_step._used(message) == gib * chips.GIB


def test_a_compiler_that_gives_up_otherwise_is_quoted_on_one_line():
  with pytest.raises(
    errors.UserError, match="compiler failed: INTERNAL: it is broken"
  ):
    compiled_step._used("INTERNAL: it is\n  broken")


def test_collectives_take_as_long_as_two_rings_do():
  """Of 16 GiB on 2 hosts of 8 V100: 7/8 over links, 1/2 of 1/8 over ports."""
  chip = chips.CHIPS["v100"]
  size, link, port = 16 * chips.GIB, 150e9, 6.25e9
  for kind, rounds in (("all-gather", 1), ("all-reduce", 2)):
    sent = [collectives.Collective(kind, size, size, 3, group=16, hosts=2)]
    assert collectives.seconds(sent, chip) == pytest.approx(
      (3 * rounds * size * 7 / 8 / link, 3 * rounds * size / 2 / 8 / port)
    )
  within = [
    collectives.Collective("all-gather", size, size, 1, group=8, hosts=1)
  ]
  assert collectives.seconds(within, chip) == pytest.approx(
    (size * 7 / 8 / link, 0)
  )
  one_a_host = [
    collectives.Collective("all-reduce", size, size, 1, group=2, hosts=2)
  ]
  assert collectives.seconds(one_a_host, chip) == pytest.approx(
    (0, size / port)
  )


@needs_gpu_compiler
def test_what_does_not_fit_comes_with_keys_to_try():
  config = digits.get_config()
  config.data.train.kind = "folder"  # That is not there.
  config.batch_size = 2**13
  config.crops.sizes = (64,)
  config.model.regnet = (1, 16, 16.0, 2.0, 8)
  config.model.strides = (2,)
  config.model.head.hidden = (16,)
  config.precision, config.model.remat = "fp32", "none"
  again = copy.deepcopy(config)
  report = plan.plan(config, "v100-16:1x2")
  assert not report.fits
  assert report.total > report.capacity
  for key in ("model.remat=block", "precision=fp16"):
    assert f"--config.{key}" in report.verdict
  advised = report.verdict.split(" (compiled: ")[0]
  for key, value in re.findall(r"--config\.(\S+)=(\w+)", advised):
    kind = type(keys.get(config, key))
    keys.put(again, key, kind(value))
  assert plan.plan(again, "v100-16:1x2").fits
