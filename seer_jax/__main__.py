"""python -m seer_jax COMMAND; see `seer_jax.commands`."""

from seer_jax import commands

if __name__ == "__main__":
  commands.cli()
