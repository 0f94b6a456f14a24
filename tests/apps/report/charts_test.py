"""Curves of runs that never were."""

from seer_jax.apps.report import charts


def lines(*values, every=10, **more):
  return [
    {"step": 0, "knn/k=20": 0.5, "knn/k=200": 0.4, "eval_seconds": 1.0},
    *(
      {"step": every * (at + 1), "loss": value, "loss_over_lnk": value} | more
      for at, value in enumerate(values)
    ),
    {
      "step": every * len(values),
      "knn/k=20": 0.8,
      "knn/k=200": 0.7,
      "eval_seconds": 1.0,
    },
  ]


def by_title(found):
  return {chart.title: chart for chart in found}


def test_a_run_alone_has_all_its_accuracies_and_several_one_each(made):
  one, other = made(lines(0.9, 0.5), name="a"), made(lines(0.9, 0.7), name="b")
  alone = by_title(charts.of([one]))["Accuracy on labelled images"]
  assert [each.name for each in alone.series] == [
    "kNN accuracy (k = 20)",
    "kNN accuracy (k = 200)",
  ]
  both = by_title(charts.of([one, other]))
  accuracy = both["Accuracy on labelled images"]
  assert [each.name for each in accuracy.series] == ["a", "b"]
  assert [each.points[-1] for each in both["Loss over ln K"].series] == [
    (20, 0.5),
    (20, 0.7),
  ]


def test_what_was_not_logged_has_no_chart_and_the_loss_comes_first(made):
  found = charts.of([made(lines(0.9, 0.5))])
  assert [chart.title for chart in found] == [
    "Loss over ln K",
    "Accuracy on labelled images",
  ]
  assert not charts.of([made([])])


def test_values_that_are_not_finite_are_left_out(made):
  found = charts.of([made(lines(0.9, float("nan"), 0.5))])
  assert found[0].series[0].points == [(10, 0.9), (30, 0.5)]


def test_a_long_run_is_thinned_and_keeps_its_ends(made):
  chart = charts.of([made(lines(*[0.9] * 5000, 0.5))])[0]
  points = chart.series[0].points
  assert len(points) == 400
  assert points[0] == (10, 0.9) and points[-1] == (50010, 0.5)
  rows = list(chart.rows)
  assert len(rows) == 12 and rows[-1] == (50010, [0.5])


def test_a_line_is_told_in_words(made):
  words = charts.of([made(lines(0.9, 0.2, 0.5))])[0].series[0].words
  assert words == ("0.9 at step 10, 0.5 at step 30; lowest 0.2, highest 0.9.")


def test_fine_tuning_shows_its_loss(made):
  some = made(
    [
      {"step": 5, "loss": 2.0},
      {"step": 5, "accuracy": 0.5, "accuracy/nll": 2.0, "eval_seconds": 1.0},
    ],
    {"task": "finetune"},
  )
  loss, accuracy = charts.of([some])
  assert loss.title == "Loss"
  assert [each.points for each in accuracy.series] == [[(5, 0.5)]]
