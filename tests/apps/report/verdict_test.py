"""Runs that never were, and what is said of them."""

import pytest

from seer_jax.apps.report import verdict, worth
from seer_jax.apps.report.checks import BAD, GOOD, UNSURE

EVALUATED = {"features/rank": 40.0, "eval_seconds": 1.0}


def lines(step=1000, before=0.5, after=0.7, **found):
  """The start and the end of a run that learned, but for what is given."""
  logged = {
    "loss": 2.0,
    "loss_over_lnk": 0.5,
    "prototypes/in_use": 64,
    "prototypes/max_share": 0.04,
    "skipped": 0.0,
    "data_wait": 0.01,
  }
  knn = [{} if before is None else {"knn/k=20": x} for x in (before, after)]
  return [
    {"step": 0} | EVALUATED | knn[0],
    {"step": step // 2} | logged | {"loss": 4.0, "loss_over_lnk": 0.95},
    {"step": step} | logged | found,
    {"step": step} | EVALUATED | knn[1],
  ]


def words(found):
  return " ".join([found.sentence, *(" ".join(each) for each in found.advice)])


def test_a_run_that_learned_is_told_with_its_figures_and_what_it_is_for(made):
  found = verdict.judge(made(lines()))
  assert (found.state, found.title) == (GOOD, "It learned")
  assert "kNN accuracy (k = 20) is 70.0 %; before training" in found.sentence
  assert "it was 50.0 %" in found.sentence
  assert "0.50 of ln K" in found.sentence
  assert any("seer-jax embed" in each.command for each in found.advice)
  assert all(check.state == GOOD for check in found.checks)


def test_without_labels_the_verdict_says_that_there_were_none(made):
  found = verdict.judge(made(lines(before=None)))
  assert found.state == GOOD
  assert "no labels" in found.sentence


@pytest.mark.parametrize(
  ("metrics", "keys", "sentence", "first"),
  [
    (
      {"prototypes/max_share": 0.97},
      {},
      "one prototype takes 97%",
      "--config.optim.lr=0.2",
    ),
    (
      {"loss_over_lnk": 0.999},
      {},
      "the loss is still 0.999 of ln K",
      "--config.swav.epsilon=0.03",
    ),
    (
      {"loss_over_lnk": 0.999},
      {"swav.iterations": 0},
      "the loss is still 0.999 of ln K",
      "--config.swav.iterations=3",
    ),
  ],
)
def test_a_collapse_is_named_and_what_to_change_comes_likeliest_first(
  made, metrics, keys, sentence, first
):
  found = verdict.judge(made(lines(**metrics), keys))
  assert (found.state, found.title) == (BAD, "It did not learn")
  assert sentence in found.sentence
  assert "in a new workdir" in found.advice[0].text
  assert found.advice[1].command == first


def test_ln_k_after_few_steps_says_nothing_yet(made):
  stuck = lines(step=100, loss_over_lnk=1.0)
  ended = verdict.judge(made(stuck, {"steps": 100}))
  assert (ended.state, ended.title) == (UNSURE, "Too short to tell")
  assert ended.advice[0].command == "--config.steps=1000"
  running = verdict.judge(made(stuck))
  assert running.title == "Too early to tell"


def test_a_run_on_its_way_is_not_judged_as_one_that_ended(made):
  found = verdict.judge(made(lines(step=600)))
  assert (found.state, found.title) == (UNSURE, "It is not finished")
  assert "Step 600 of 1000" in found.sentence
  assert "same command again" in words(found)


def test_a_run_that_gave_up_is_sent_to_replay(made):
  found = verdict.judge(made(lines(step=600), gave_up=True))
  assert (found.state, found.title) == (BAD, "It diverged")
  assert "seer-jax replay" in words(found)


def test_nothing_logged_is_no_verdict(made):
  found = verdict.judge(made([]))
  assert (found.state, found.title) == (UNSURE, "It has not begun")


@pytest.mark.parametrize(
  ("after", "state"), [(0.7, GOOD), (0.505, UNSURE), (0.3, BAD)]
)
def test_features_are_compared_with_the_untrained_network(made, after, state):
  found = verdict.judge(made(lines(after=after)))
  assert found.state == state
  if state != GOOD:
    assert "--config.steps=4000" in words(found)


def test_a_difference_within_the_noise_of_few_queries_is_no_success(made):
  """Of 50 queries, 6 points are two standard errors of nothing."""
  some = lines(before=0.5, after=0.56)
  assert verdict.judge(made(some, query=50)).state == UNSURE
  assert verdict.judge(made(some, query=10_000)).state == GOOD


def test_a_run_that_raw_pixels_beat_is_not_praised(made):
  def beside(ours, pixels):
    rows = [worth.Accuracy("kNN (k = 20)", ours, pixels)]
    return verdict.judge(made(lines()), worth.Worth(rows, 500))

  beaten = beside(0.7, 0.9)
  assert beaten.state == UNSURE
  assert beaten.title == "It learned, but raw pixels still do better"
  assert "70.0 %; raw pixels 90.0 %" in beaten.sentence
  assert beside(0.7, 0.71).title == "It learned"  # Within the noise.
  assert beside(0.7, 0.3).title == "It learned"


def test_what_costs_quality_is_told_beside_a_good_verdict(made):
  found = verdict.judge(
    made(lines(data_wait=0.4, skipped=3.0), bad_images=["a.jpg"])
  )
  assert found.state == GOOD
  doubts = [check.name for check in found.checks if check.state == UNSURE]
  assert doubts == [
    "Steps that were not finite",
    "Waiting for images",
    "Unusable files",
  ]
  assert "waited for images" in words(found)
  assert "1 file could not be used" in words(found)


def test_fine_tuning_is_judged_by_its_accuracy(made):
  some = [
    {"step": 0, "accuracy": 0.1, "eval_seconds": 1.0},
    {"step": 500, "loss": 2.0},
    {"step": 1000, "loss": 1.0},
    {"step": 1000, "accuracy": 0.8, "eval_seconds": 1.0},
  ]
  found = verdict.judge(made(some, {"task": "finetune"}))
  assert found.state == GOOD
  assert "Accuracy on the test images is 80.0 %" in found.sentence
