"""All TPUs: bf16, and equal blocks compiled as one loop."""


def adapt(config):
  config.precision = "bf16"
  config.model.scan = True
  if config.model.remat == "group":
    # A loop rematerializes its blocks one by one.
    config.model.remat, config.model.remat_groups = None, ()
