import numpy as np
import pytest

from seer_jax.apps import label_curve, tables

SHARES = (0.01, 0.1, 1.0)


def curve(name, *rows):
  return label_curve.Curve(name, np.array(rows, float).T.reshape(3, -1))


def test_how_many_times_fewer_labels():
  scratch = curve("from scratch", (0.2, 0.4, 0.6))
  # With 1 % what scratch has with 10 %; with 10 % what it has half way, in the
  # logarithm, from 10 to 100 %; with all no less than scratch.
  ours = curve("probe", (0.4, 0.5, 0.6))
  found = label_curve.saving(ours, scratch, SHARES)
  assert found.times == pytest.approx(10)
  assert (found.is_bound, found.share) == (False, 0.01)
  said = label_curve.sentence("probe", found)
  assert said == (
    "probe: matches supervised with 10.0 times fewer labels, at 1 % of them;"
    " 3.2 times in the median over shares"
  )


def test_what_scratch_never_reaches_is_a_bound():
  scratch = curve("from scratch", (0.2, 0.4, 0.6))
  found = label_curve.saving(curve("probe", (0.7, 0.8, 0.9)), scratch, SHARES)
  assert found.is_bound and found.times == pytest.approx(100)
  assert "at least 100.0 times" in label_curve.sentence("probe", found)


def test_a_worse_representation_saves_nothing():
  scratch = curve("from scratch", (0.2, 0.4, 0.6))
  found = label_curve.saving(curve("probe", (0.1, 0.1, 0.1)), scratch, SHARES)
  assert "as many labels as training from scratch, or more" in (
    label_curve.sentence("probe", found)
  )


def test_the_interval_is_over_seeds():
  scratch = curve("from scratch", (0.2, 0.4, 0.6), (0.2, 0.4, 0.6))
  ours = curve("probe", (0.4, 0.4, 0.6), (0.3, 0.4, 0.6))
  found = label_curve.saving(ours, scratch, SHARES)
  assert found.low == pytest.approx(10**0.5) and found.high == pytest.approx(10)
  assert found.low < found.times < found.high
  assert "(3.2 to 10.0 over seeds)" in label_curve.sentence("probe", found)


def test_a_dip_of_the_supervised_curve_is_noise():
  scratch = curve("from scratch", (0.3, 0.2, 0.6))
  ours = curve("probe", (0.3, 0.3, 0.3))
  assert label_curve.saving(ours, scratch, SHARES).times <= 1


def test_table_and_plot(tmp_path):
  curves = [
    curve("from scratch", (0.2, 0.4, 0.6), (0.21, 0.4, 0.6)),
    curve("probe", (0.4, 0.5, 0.6)),
  ]
  table = label_curve.rows(curves, SHARES, 50_000)
  assert table[1] == ["1 % (500)", "20.5 ± 0.7", "40.0"]
  assert "| 1 % (500) | 20.5 ± 0.7 | 40.0 |" in tables.markdown(table)
  for ending, start in (("png", b"\x89PNG"), ("svg", b"<?xml")):
    path = tmp_path / f"labels.{ending}"
    with path.open("wb") as file:
      label_curve.plot(curves, SHARES, 50_000, "digits", file, ending)
    assert path.read_bytes().startswith(start)
