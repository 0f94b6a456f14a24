"""Changes of recipes for hardware, a small file each.

The name follows the recipe's: `--config=configs/seer_rg256.py:v5p`. Without a
name a recipe is as published. The changes affect results only by rounding.
"""

import importlib
import pathlib

from seer_jax.runtime import errors

NAMES = sorted(
  path.stem
  for path in pathlib.Path(__file__).parent.glob("*.py")
  if not path.stem.startswith("_")
)
# Parameters and momentum in float32 may take this share of a device's memory,
# and leave these GiB; activations, gradients and the compiler's room take the
# rest.
_SHARE = 0.4
_REST_GIB = 12


def apply(config, name, parameters):
  """Adapts a recipe.

  Args:
    config: modified.
    name: one of `NAMES`; "" for the recipe as published.
    parameters: of the whole network; decides how finely kernels are split.
  """
  if not name:
    return
  if name not in NAMES:
    raise errors.UserError(
      f"there is no hardware {name!r}; known are {', '.join(NAMES)}"
    )
  chip = importlib.import_module(f"configs.hardware.{name}")
  chip.adapt(config)
  room = min(chip.MEMORY_GIB * _SHARE, chip.MEMORY_GIB - _REST_GIB)
  while parameters * 8 / config.mesh.fsdp > room * 2**30:
    config.mesh.fsdp *= 2
