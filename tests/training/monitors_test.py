from seer_jax import config as config_lib
from seer_jax.training import monitors

GOOD = {"loss_over_lnk": 0.5, "prototypes/max_share": 0.02}


def sentinel():
  config = config_lib.base()
  config.steps, config.batch_size, config.optim.lr = 1000, 64, 0.6
  config.swav.freeze_steps, config.model.prototypes = 313, (3000,)
  return monitors.CollapseMonitor(config)


def test_a_loss_that_stays_at_ln_k_is_told_once_and_not_too_early():
  stuck = GOOD | {"loss_over_lnk": 0.998}
  watch = sentinel()
  assert watch.advice(299, stuck) is None
  words = watch.advice(300, stuck)
  assert "0.998 of ln K" in words
  first, second = words.split("at a time: ")[1].split("; ")[:2]
  assert first.endswith("--config.swav.epsilon=0.03")
  assert "(now 0.6), --config.optim.lr=1.2" in second
  assert watch.advice(301, stuck) is None


def test_one_prototype_taking_all_is_told():
  words = sentinel().advice(400, GOOD | {"prototypes/max_share": 0.9})
  assert "one prototype takes 90%" in words
  assert "lower the learning rate (now 0.6), --config.optim.lr=0.2" in words


def test_settings_that_nobody_published_are_put_back_first():
  watch = sentinel()
  watch._options.swav.epsilon, watch._options.swav.iterations = 1.0, 0
  words = watch.advice(400, GOOD | {"loss_over_lnk": 1.0})
  assert words.index("swav.iterations=3") < words.index("swav.epsilon=0.03")
  assert words.index("swav.epsilon=0.03") < words.index("optim.lr=1.2")


def test_a_healthy_run_hears_nothing():
  assert sentinel().advice(10_000, GOOD) is None


def fed(supply, waits, every=20):
  found = [
    supply.advice((number + 1) * every, wait)
    for number, wait in enumerate(waits)
  ]
  return [words for words in found if words]


def test_steps_that_wait_for_images_are_told_once_what_to_change():
  words = fed(monitors.InputStallMonitor(0, 8), [0.9] + [0.3] * 30)
  assert words == [
    "steps wait for images 30% of the time. 8 cores could decode:"
    " --config.data.workers=7"
  ]
  (words,) = fed(monitors.InputStallMonitor(7, 8), [0.2] * 30)
  assert "seer-jax pack SRC DST --side=512" in words


def test_a_wait_at_the_start_or_a_short_one_is_not_told():
  assert not fed(monitors.InputStallMonitor(0, 8), [1.0] + [0.05] * 100)
  assert not fed(monitors.InputStallMonitor(0, 8), [0.5] * 10)
