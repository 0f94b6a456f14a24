"""`convert`: weights in and out."""

import argparse
import os

from seer_jax.commands.parser import Command, option
from seer_jax.runtime import errors, files


def _add_arguments(parser):
  parser.add_argument(
    "source", metavar="IN", help="file, folder or name; a run's workdir"
  )
  parser.add_argument("target", metavar="OUT", nargs="?", help="what to write")
  option(
    parser,
    "--to",
    "FORMAT",
    "of OUT: vissl, timm, torchvision, huggingface, orbax, stablehlo or onnx",
  )
  parser.add_argument(
    "--no-check",
    dest="check",
    action="store_false",
    help="do not read OUT back and compare it with IN",
  )


def _convert(options: argparse.Namespace) -> None:
  if (options.target is None) != (options.to is None):
    raise errors.UserError(
      "give both OUT and --to; or neither, to see what is in IN"
    )
  # Arrays are read and written once, which needs no accelerator.
  os.environ.setdefault("JAX_PLATFORMS", "cpu")
  import jax

  from seer_jax.weights import convert, load

  jax.config.update("jax_platforms", os.environ["JAX_PLATFORMS"])
  opened = load.open_weights(options.source)
  if options.to is None:
    lines = convert.table(opened)
  else:
    target = files.user_path(options.target)
    lines = convert.convert(opened, target, options.to, options.check)
  for line in lines:
    print(line)


CONVERT = Command(
  "Shows what is in weights, or writes them in another project's format.",
  (
    "seer-jax convert seer_32.torch",
    "seer-jax convert runs/photos photos.onnx --to onnx",
  ),
  _add_arguments,
  _convert,
)
