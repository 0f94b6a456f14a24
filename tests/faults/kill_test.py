"""A short campaign; the long one is a command (campaign.py)."""

import dataclasses

import campaign
import pytest


@pytest.mark.parametrize(
  "name",
  ["2 data workers", pytest.param("2 processes", marks=pytest.mark.slow)],
)
def test_killed_at_random_moments_a_run_ends_as_the_undisturbed_one(name):
  case = next(each for each in campaign.CASES if each.name == name)
  short = ["--config.steps=100", "--config.eval.every=25"]
  if case.options:
    short.append("--config.data.workers=1")
  case = dataclasses.replace(case, options=(*case.options, *short))
  report = campaign.Report()
  campaign.attack(case, 2, 0, report)
  assert not report.complaints, report
  assert report.identical == report.ended
  assert report.orphans == 0
  assert report.segments == 0
  # A save that was being written when the kill came is one interval more.
  assert max(report.lost, default=0) <= 2 * campaign.EVERY
