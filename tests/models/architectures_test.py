"""Every trunk by its name: parameters, operations, what others call it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seer_jax.models import architectures, encoder, regnet
from seer_jax.planning import operations
from seer_jax.runtime import mesh
from seer_jax.weights import infer_model, name_maps

pytestmark = pytest.mark.usefixtures("native_conv")

# Parameters of the trunk without classifier, as VISSL's and timm's code count;
# torchvision publishes them with one of 1,000 classes.
PARAMETERS = {
  "regnetx_200mf": 2_315_792,
  "regnetx_400mf": 4_772_512,
  "regnetx_600mf": 5_667_040,
  "regnetx_800mf": 6_586_656,
  "regnetx_1.6gf": 8_277_136,
  "regnetx_3.2gf": 14_287_552,
  "regnetx_4.0gf": 20_757_248,
  "regnetx_6.4gf": 24_584_256,
  "regnetx_8gf": 37_651_648,
  "regnetx_12gf": 43_865_056,
  "regnetx_16gf": 52_229_536,
  "regnetx_32gf": 105_290_560,
  "regnety_200mf": 2_793_996,
  "regnety_400mf": 3_903_144,
  "regnety_600mf": 5_446_160,
  "regnety_800mf": 5_494_168,
  "regnety_1.6gf": 10_313_430,
  "regnety_3.2gf": 17_923_338,
  "regnety_4.0gf": 19_557_656,
  "regnety_6.4gf": 29_286_252,
  "regnety_8gf": 37_163_068,
  "regnety_12gf": 49_581_544,
  "regnety_16gf": 80_565_140,
  "regnety_32gf": 141_333_770,
  "regnety_64gf": 276_457_786,
  "regnety_128gf": 637_419_894,
  "regnety_256gf": 821_051_008,
  "regnetz_500mf": 5_833_550,
  "regnetz_4gf": 26_587_800,
  "regnetx_400mf_tv": 5_495_976 - 401_000,
  "regnety_800mf_tv": 6_432_512 - 785_000,
  "regnety_8gf_tv": 39_381_472 - 2_017_000,
  "seer_256gf": 1_272_156_138,
  "seer_3b": 3_100_764_796,
  "seer_10b": 9_323_934_872,
}
# Multiply-adds at 224 pixels, in billions (Radosavovic et al. 2020; for SEER's
# own, computed from their published shapes).
GIGA = {
  "regnetx_200mf": 0.199,
  "regnetx_400mf": 0.397,
  "regnetx_1.6gf": 1.602,
  "regnetx_4.0gf": 3.963,
  "regnetx_32gf": 31.73,
  "regnety_200mf": 0.199,
  "regnety_800mf": 0.796,
  "regnety_4.0gf": 3.972,
  "regnety_8gf": 7.961,
  "regnety_16gf": 15.91,
  "regnety_32gf": 32.28,
  "regnety_64gf": 64.07,
  "regnety_128gf": 127.5,
  "seer_256gf": 254.4,
  "seer_10b": 1863,
}
IMAGE = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)


def shapes_of(name):
  trunk = regnet.RegNet(architectures.MODELS[name])
  variables = jax.eval_shape(
    lambda x: trunk.init(jax.random.key(0), x, train=False), IMAGE
  )
  return trunk, variables


def flops(trunk, variables):
  jaxpr = jax.make_jaxpr(lambda v, x: trunk.apply(v, x, train=False))(
    variables, IMAGE
  )
  return operations.flops(jaxpr)


def counted(arch, side=224):
  """Parameters and multiply-adds of a trunk, by hand."""
  before, side = arch.stem_width, side // arch.stem_stride
  parameters = 27 * before + 2 * before
  products = 27 * before * side**2
  stages = zip(
    arch.depths,
    arch.widths,
    arch.inner,
    arch.group_widths,
    arch.strides,
    strict=True,
  )
  for depth, width, inner, group_width, stride in stages:
    for step in (stride,) + (1,) * (depth - 1):
      after = -(-side // step)
      a, b, c = before * inner, 9 * group_width * inner, inner * width
      parameters += a + b + c + 2 * (2 * inner + width)
      products += a * side**2 + (b + c) * after**2
      if arch.se_ratio:
        squeezed = max(1, round(arch.se_ratio * before))
        parameters += squeezed * inner + squeezed + inner * squeezed + inner
        products += 2 * squeezed * inner
      if not arch.linear and (step, before) != (1, width):
        parameters += before * width + 2 * width
        products += before * width * after**2
      before, side = width, after
  return parameters, products


@pytest.mark.parametrize("name", architectures.MODELS)
def test_a_name_stands_for_the_published_parameters_and_operations(name):
  parameters, products = counted(architectures.MODELS[name])
  assert parameters == PARAMETERS[name]
  if name in GIGA:
    assert products == pytest.approx(1e9 * GIGA[name], rel=0.01)


# X, Y, Z; torchvision's rounding; SEER's widths; the deepest and the widest.
TRACED = (
  "regnetx_200mf",
  "regnety_800mf",
  "regnety_8gf_tv",
  "regnetz_500mf",
  "seer_256gf",
  "seer_10b",
)


@pytest.mark.parametrize(
  "name",
  [
    name if name in TRACED else pytest.param(name, marks=pytest.mark.slow)
    for name in architectures.MODELS
  ],
)
def test_a_trunk_has_these_parameters_and_operations_and_is_recognized(name):
  trunk, variables = shapes_of(name)
  parameters, products = counted(trunk.architecture)
  leaves = jax.tree.leaves(variables["params"])
  assert sum(leaf.size for leaf in leaves) == parameters
  assert flops(trunk, variables) == pytest.approx(2 * products, rel=1e-3)
  for to in ("vissl", "huggingface"):
    assert recognized(variables, trunk.architecture, to) == trunk.architecture
  assert architectures.name_of(trunk.architecture) == name


def recognized(variables, architecture, to):
  """The architecture that a file of another project's is seen to hold."""
  trunk = {kind: {"trunk": tree} for kind, tree in variables.items()}
  ours = {
    mesh.path_of(path): leaf.shape
    for path, leaf in jax.tree.leaves_with_path(trunk)
  }
  shapes = {
    pair.theirs: tuple(ours[pair.ours][axis] for axis in np.argsort(pair.axes))
    for pair in name_maps.pairs(
      name_maps.target(to, encoder.Encoder(architecture))
    )
  }
  return infer_model.contents(shapes).architecture


@pytest.mark.parametrize("name", ["regnetx_200mf", "regnety_800mf"])
def test_equal_blocks_as_a_loop_cost_what_they_cost_one_by_one(name):
  trunk, variables = shapes_of(name)
  looped = trunk.clone(execution=regnet.Execution(scan=True))
  assert flops(looped, variables) == flops(trunk, variables)
