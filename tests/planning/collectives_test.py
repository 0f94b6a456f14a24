"""Collectives, as each compiler writes them down."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seer_jax.planning import collectives, operations
from seer_jax.runtime import mesh as mesh_lib

# What differs between compilers, cut down to it. 16 devices on 2 hosts.
HOSTS = [0] * 8 + [1] * 8
GPU = """
HloModule jit_step, is_scheduled=true, num_partitions=16

%body (p: (s32[], f32[64,256])) -> (s32[], f32[64,256]) {
  %all-gather-start = (f32[256,64]{0,1}, f32[256,256]{0,1}) \
    all-gather-start(%b), channel_id=1, \
    replica_groups=mesh['axis_0'=1,'axis_1'=4,'axis_2'=4], \
    device_ids=([4,4]T(1,0)) {'axis_1'}, dimensions={1}, \
    use_global_device_ids=true, metadata={op_name="jit(step)/while/body/dot"}
  %all-gather-done = f32[256,256]{0,1} all-gather-done(%all-gather-start)
  %reduce-scatter-start = ((f32[256,1024]{1,0}), f32[64,1024]{1,0}) \
    reduce-scatter-start(%c), channel_id=2, \
    replica_groups={{0,1,2,3},{4,5,6,7},{8,9,10,11},{12,13,14,15}}, \
    dimensions={0}, to_apply=%add
  %reduce-scatter-done = f32[64,1024]{1,0} \
    reduce-scatter-done(%reduce-scatter-start)
}

%cond (p: (s32[], f32[64,256])) -> pred[] {
  ROOT %lt = pred[] fusion(%i), kind=kLoop, calls=%compare
}

%unused (p: f32[8]) -> f32[8] {
  ROOT %all-reduce = f32[8]{0} all-reduce(%p), replica_groups={}, to_apply=%add
}

ENTRY %main (p: f32[64,256]) -> f32[64,256] {
  %while = (s32[], f32[64,256]{1,0}, /*index=5*/f32[6,256,64]{2,1,0}) \
    while(%tuple), condition=%cond, body=%body, \
    backend_config={"known_trip_count":{"n":"6"},"known_init_step":{"init":"0","step":"1"}}
  %all-reduce-start = (f16[128]{0}, f32[2,64]{1,0}) all-reduce-start(%d, %e), \
    channel_id=3, replica_groups=mesh['axis_0'=16,'axis_1'=1] {'axis_0'}, \
    use_global_device_ids=true, to_apply=%add, \
    metadata={op_name="jit(step)/transpose(jvp(Model))/head"}
  %all-reduce-done = (f16[128]{0}, f32[2,64]{1,0}) \
    all-reduce-done(%all-reduce-start)
  %all-to-all-start = ((f32[64,1024]{1,0}), f32[64,1024]{1,0}) \
    all-to-all-start(%f), channel_id=4, replica_groups=[4,4]<=[16], \
    dimensions={0}
  %collective-permute-start = (f32[64]{0}, f32[64]{0}) \
    collective-permute-start(%g), channel_id=5, \
    source_target_pairs={{0,4},{4,8},{8,12},{12,0}}
}
"""
SLICES = """
HloModule jit_sum, num_partitions=32

ENTRY %main (p: f32[2,1024]) -> f32[1,8,128] {
  %after-all = token[] after-all()
  %all-reduce.1 = f32[1,8,128]{2,1,0:T(8,128)} all-reduce(%b), channel_id=1, \
    replica_groups={{0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15}}, to_apply=%add
  %send = (f32[1,8,128]{2,1,0:T(8,128)}, u32[]{:S(2)}, token[]) \
    send(%all-reduce.1, %after-all), channel_id=2, is_host_transfer=true, \
    frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime"}
  %send-done = token[] send-done(%send), channel_id=2, is_host_transfer=true, \
    frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime"}
}
"""
TPU = """
HloModule jit_step, num_partitions=16

%wide.cond (wide.p: (s32[], bf16[64,256])) -> pred[] {
  %constant.54 = s32[]{:T(128)} constant(5)
  %get-tuple-element.1 = s32[]{:T(128)} get-tuple-element(%wide.p), index=0
  ROOT %lt.10 = pred[]{:T(512)} compare(%get-tuple-element.1, %constant.54), \
    direction=LT
}

%wide.body.sunk (wide.p: (s32[], bf16[64,256])) -> (s32[], bf16[64,256]) {
  %all-gather.7 = bf16[1,256,256]{1,0,2:T(2,128)(2,1)S(1)} all-gather(%copy), \
    channel_id=1, replica_groups=mesh['axis_0'=4,'axis_1'=4] {'axis_1'}, \
    dimensions={2}
  %fusion.1 = f32[64]{0:T(128)} fusion(%a), kind=kCustom, \
    calls=%all-reduce-fusion
}

%all-reduce-fusion (p: f32[64]) -> f32[64] {
  ROOT %all-reduce.1 = f32[64]{0:T(128)} all-reduce(%p), channel_id=2, \
    replica_groups=mesh['axis_0'=16] {'axis_0'}, to_apply=%add
}

ENTRY %main.5_spmd (p: f32[64,256]) -> f32[64,256] {
  %while.33 = (s32[]{:T(128)}, bf16[64,256]{1,0:T(8,128)(2,1)S(1)}) \
    while(%tuple.53), condition=%wide.cond, body=%wide.body.sunk
  %collective-permute-start = (f32[64,4]{1,0:T(8,128)}, \
    f32[64,4]{1,0:T(8,128)S(1)}, u32[]{:S(2)}, u32[]{:S(2)}) \
    collective-permute-start(%q), channel_id=3, \
    source_target_pairs={{0,1},{1,0}}
}
"""


def unwrapped(text):
  """With the spaces gone at which long lines were wrapped above."""
  return re.sub(r"(?<=\S) {2,}", " ", text)


def facts(text):
  return {
    (each.kind, each.bytes, each.times, each.group, each.hosts)
    for each in collectives.collectives(unwrapped(text), HOSTS)
  }


def test_programs_for_gpus_are_read():
  assert facts(GPU) == {
    ("all-gather", 256 * 256 * 4, 6, 4, 1),
    ("reduce-scatter", 256 * 1024 * 4, 6, 4, 1),
    ("all-reduce", 128 * 2 + 128 * 4, 1, 16, 2),
    ("all-to-all", 64 * 1024 * 4, 1, 4, 1),
    ("collective-permute", 64 * 4, 1, 2, 2),
  }
  found = collectives.collectives(unwrapped(GPU), HOSTS)
  (both,) = (each for each in found if each.kind == "all-reduce")
  assert both.where == "jit(step)/transpose(jvp(Model))/head"
  assert both.largest == 128 * 4


def test_programs_for_tpus_are_read():
  assert facts(TPU) == {
    ("all-gather", 256 * 256 * 2, 5, 4, 1),
    ("all-reduce", 64 * 4, 5, 16, 2),
    ("collective-permute", 64 * 4 * 4, 1, 2, 1),
  }


@pytest.mark.parametrize(
  ("written", "groups"),
  [
    ("{{0,1},{2,3}}", [[0, 1], [2, 3]]),
    ("{}", [[0, 1, 2, 3]]),
    ("[2,2]<=[4]", [[0, 1], [2, 3]]),
    ("[2,2]<=[2,2]T(1,0)", [[0, 2], [1, 3]]),
    ("mesh['a'=2,'b'=2] {'b'}", [[0, 1], [2, 3]]),
    ("mesh['a'=2,'b'=2] {'a'}", [[0, 2], [1, 3]]),
    ("mesh['a'=2,'b'=2] {'a','b'}", [[0, 1, 2, 3]]),
    ("mesh['a'=4] {'a':(1)2}", [[0, 2], [1, 3]]),
    ("mesh['a'=4] {'a':(2)2}", [[0, 1], [2, 3]]),
    ("mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}", [[0, 2], [1, 3]]),
    ("mesh['a'=2,'b'=2], device_ids=(0,3,1,2) {'b'}", [[0, 3], [1, 2]]),
  ],
)
def test_groups_are_read_in_each_of_their_forms(written, groups):
  assert collectives._groups(written, 4).tolist() == groups
  # And found among what else is written of an instruction.
  text = f"{written}, dimensions={{0}}, use_global_device_ids=true"
  assert collectives._first_value(text) == written


def over_fsdp(fn, out):
  """A program of fn over 4 of 2 x 4 devices, on rows of 64 floats."""
  mesh = mesh_lib.make(2, 4)
  x = jax.ShapeDtypeStruct((64, 64), jnp.float32, sharding=mesh_lib.rows(mesh))
  shard = jax.shard_map(
    fn, mesh=mesh, in_specs=jax.P(mesh_lib.AXES), out_specs=out, check_vma=False
  )
  return jax.jit(shard).lower(x).compile().as_text()


@pytest.mark.parametrize(
  ("kind", "fn", "out", "rows"),
  [
    ("all-reduce", lambda x: jax.lax.psum(x, "fsdp"), jax.P("data"), 8),
    (
      "all-gather",
      lambda x: jax.lax.all_gather(x, "fsdp", tiled=True),
      jax.P("data"),
      32,
    ),
    (
      "reduce-scatter",
      lambda x: jax.lax.psum_scatter(x, "fsdp", tiled=True),
      jax.P(mesh_lib.AXES),
      8,
    ),
    (
      "all-to-all",
      lambda x: jax.lax.all_to_all(x, "fsdp", 0, 1, tiled=True),
      jax.P(mesh_lib.AXES),
      8,
    ),
  ],
)
def test_each_kind_is_found_in_a_real_program(kind, fn, out, rows):
  (found,) = collectives.collectives(over_fsdp(fn, out), HOSTS[:8])
  assert (found.kind, found.bytes) == (kind, rows * 64 * 4)
  assert (found.group, found.hosts, found.times) == (4, 1, 1)


def test_a_message_in_a_loop_is_sent_each_time():
  def body(x, _):
    return jnp.sin(jax.lax.ppermute(x, "fsdp", [(0, 1), (1, 0)])), None

  text = over_fsdp(
    lambda x: jax.lax.scan(body, x, length=7)[0], jax.P(mesh_lib.AXES)
  )
  (found,) = collectives.collectives(text, HOSTS[:8])
  assert (found.kind, found.times, found.bytes) == (
    "collective-permute",
    7,
    8 * 64 * 4,
  )


def test_what_nothing_depends_on_costs_nothing():
  def of_two(x):
    return x @ x, jnp.linalg.norm(x)

  x = np.ones((4, 4), np.float32)
  assert operations.flops(jax.make_jaxpr(of_two)(x)) == 2 * 4**3
  assert operations.flops(jax.make_jaxpr(lambda x: of_two(x)[1])(x)) == 0
  nested = jax.jit(of_two)
  assert operations.flops(jax.make_jaxpr(lambda x: nested(x)[1])(x)) == 0


@pytest.mark.parametrize("stride", [1, 2])
def test_a_gradient_costs_what_the_convolution_does(stride):
  """Once for each operand; a stride's zeros are not multiplied."""
  x, kernel = jnp.ones((2, 16, 16, 8)), jnp.ones((3, 3, 4, 6))

  def conv(x, kernel):
    return jax.lax.conv_general_dilated(
      x,
      kernel,
      (stride, stride),
      ((1, 1), (1, 1)),
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
      feature_group_count=2,
    )

  once = operations.flops(jax.make_jaxpr(conv)(x, kernel))
  assert once == 2 * 2 * (16 // stride) ** 2 * 6 * 3 * 3 * 4
  pull = jax.make_jaxpr(lambda *a: jax.vjp(conv, *a)[1](conv(*a)))(x, kernel)
  assert operations.flops(pull) in (
    3 * once,
    4 * once,
  )  # Forward once, or twice.


def test_what_leaves_a_slice_of_tpus_is_a_message_between_hosts():
  """As libtpu 0.0.52 writes a sum over two slices of v5e:4x4."""
  within, between = collectives.collectives(SLICES, [0] * 16 + [1] * 16)
  assert (within.kind, within.hosts) == ("all-reduce", 1)
  assert (between.kind, between.hosts) == ("collective-permute", 2)
  assert between.bytes == between.largest == 8 * 128 * 4
