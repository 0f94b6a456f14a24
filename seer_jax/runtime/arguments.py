"""Command lines of the smaller programs; mistakes in them are one line."""

import argparse
from typing import NoReturn

from seer_jax.runtime import errors


class Parser(argparse.ArgumentParser):
  """argparse's, but for its usage in front of every complaint."""

  def error(self, message: str) -> NoReturn:
    raise errors.UserError(f"{self.prog}: {message}; --help tells more")
