"""What a command is, and how its arguments are read."""

import argparse
import dataclasses
import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

from seer_jax.runtime import errors

# "--config.swav.epsilon=0.04", or its value in the next argument.
_OVERRIDE = re.compile(r"--(no)?config\.")


@dataclasses.dataclass(frozen=True)
class Command:
  """A command of the command line.

  Attributes:
    sentence: what it does.
    examples: two command lines.
    add_arguments: of a parser.
    run: what it does with the options; returns the exit status, None for 0.
    has_config: whether it takes `--config`, and `--config.KEY=VALUE`; these
      are then in `options.overrides`, as they were given.
  """

  sentence: str
  examples: tuple[str, str]
  add_arguments: Callable[[argparse.ArgumentParser], None]
  run: Callable[[argparse.Namespace], Any]
  has_config: bool = False

  def __call__(self, name: str, arguments: Sequence[str]) -> Any:
    """Reads the arguments, and runs."""
    return self.run(self.parse(name, arguments))

  def parser(self, name: str) -> argparse.ArgumentParser:
    """Reads the options, and has the help, of the command of that name."""
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
    """The options.

    Raises:
      UserError: an argument is unknown, missing or wrong.
    """
    parser = self.parser(name)
    options, rest = parser.parse_known_args(arguments)
    if self.has_config:
      options.overrides, rest = _overrides(rest)
    if rest:
      raise errors.UserError(_complaint(parser, rest[0]))
    return options


class _Parser(argparse.ArgumentParser):
  """argparse's, but for its usage in front of every complaint."""

  def error(self, message: str) -> NoReturn:
    raise errors.UserError(f"{self.prog}: {message}; --help tells more")


def _complaint(parser, argument):
  """About an argument that no option takes."""
  what = f"what is {argument!r}?"
  if argument.startswith("-"):
    name = argument.split("=")[0]
    hint = nearest(name, parser._option_string_actions)
    what = f"there is no option {name}{hint}"
  return f"{parser.prog}: {what} --help tells more"


def _overrides(rest):
  """(what sets keys of the config, what does not)."""
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
  """Asks for the known name that is most like a wrong one, if any is."""
  close = difflib.get_close_matches(name, list(known), n=1)
  return f"; did you mean {close[0]}?" if close else ";"
