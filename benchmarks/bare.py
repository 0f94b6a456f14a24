"""Lets benchmarks run where ml_collections is missing, as on bare GPU machines.

Import it before `seer_jax`. Only what `config.base()` and the training step use
of a `ConfigDict` is here: attributes, and nothing that checks them.
"""

import sys
import types


class ConfigDict(dict):
  """A dictionary of attributes."""

  __getattr__ = dict.__getitem__
  __setattr__ = dict.__setitem__


try:
  import ml_collections  # noqa: F401
except ModuleNotFoundError:
  config_dict = types.ModuleType("ml_collections.config_dict")
  config_dict.ConfigDict = ConfigDict
  config_dict.placeholder = lambda kind: None
  package = types.ModuleType("ml_collections")
  package.ConfigDict, package.config_dict = ConfigDict, config_dict
  sys.modules["ml_collections"] = package
  sys.modules["ml_collections.config_dict"] = config_dict
