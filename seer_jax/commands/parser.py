"""What a command is, and how its arguments are read."""

import argparse
import dataclasses
import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

from seer_jax.runtime import errors

# "--config.swav.epsilon=0.04", or the value as the next argument.
_OVERRIDE = re.compile(r"--(no)?config\.")


@dataclasses.dataclass(frozen=True)
class Command:
  """A command of the command line."""

  sentence: str
  examples: tuple[str, str]  # Two command lines.
  # Adds its arguments to a parser.
  add_arguments: Callable[[argparse.ArgumentParser], None]
  # Takes the options; returns the exit status, None for 0.
  run: Callable[[argparse.Namespace], Any]
  # Whether it takes `--config`, and `--config.KEY=VALUE`, which are then in
  # `options.overrides` as they were given.
  has_config: bool = False

  def __call__(self, name: str, arguments: Sequence[str]) -> Any:
    """Parses the arguments and runs the command."""
    return self.run(self.parse(name, arguments))

  def parser(self, name: str) -> argparse.ArgumentParser:
    """The parser of the command under a name, with its help."""
    parser = _Parser(
      prog=f"seer-jax {name}",
      description=self.sentence,
      epilog="examples:\n" + "\n".join(f"  {each}" for each in self.examples),
      formatter_class=argparse.RawDescriptionHelpFormatter,
      allow_abbrev=False,
    )
    if self.has_config:
      parser.add_argument(
        "--config", metavar="FILE", help="the experiment, a file of configs/"
      )
      parser.add_argument_group(
        "keys of the config",
        "--config.KEY=VALUE sets any of them: --config.swav.epsilon=0.04",
      )
    self.add_arguments(parser)
    return parser

  def parse(self, name: str, arguments: Sequence[str]) -> argparse.Namespace:
    """Parses the arguments.

    Raises UserError if one is unknown, missing or wrong.
    """
    parser = self.parser(name)
    options, rest = parser.parse_known_args(arguments)
    if self.has_config:
      options.overrides, rest = _overrides(rest)
    if rest:
      raise errors.UserError(_complaint(parser, rest[0]))
    return options


def option(
  parser: Any,
  name: str,
  metavar: str | None,
  help: str,  # noqa: A002
  default: Any = None,
  kind: Callable[[str], Any] | None = None,
  **more: Any,
) -> None:
  """Adds an option, whose default gives its type and is shown in the help."""
  if default not in (None, ""):
    help += " (%(default)s)"  # noqa: A001
  kind = kind or (str if default is None else type(default))
  parser.add_argument(
    name, metavar=metavar, help=help, default=default, type=kind, **more
  )


class _Parser(argparse.ArgumentParser):
  """An argument parser whose errors are one line."""

  def error(self, message: str) -> NoReturn:
    raise errors.UserError(f"{self.prog}: {message}; see --help")


def _complaint(parser, argument):
  """The message about an argument that no option takes."""
  what = f"the argument {argument!r} is unexpected;"
  if argument.startswith("-"):
    name = argument.split("=")[0]
    hint = nearest(name, parser._option_string_actions)
    what = f"there is no option {name}{hint}"
  return f"{parser.prog}: {what} see --help"


def _overrides(rest):
  """(arguments that set keys of the config, the others)."""
  ours, others = [], []
  value_follows = False
  for argument in rest:
    if _OVERRIDE.match(argument):
      ours.append(argument)
      value_follows = "=" not in argument
    elif value_follows and not argument.startswith("--"):
      ours.append(argument)
      value_follows = False
    else:
      others.append(argument)
  return ours, others


def nearest(name: str, known: Iterable[str]) -> str:
  """Suggests the known name that is closest to a wrong one, if any is."""
  close = difflib.get_close_matches(name, list(known), n=1)
  return f"; did you mean {close[0]}?" if close else ";"
