"""Rates by group against sums on paper; tables matched by name."""

import math

import numpy as np
import pytest

from seer_jax.data import sources
from seer_jax.evals.groups import attributes, rates
from seer_jax.runtime import errors


class Named:
  """A source of images that only have names."""

  def __init__(self, *names):
    self.names = names
    self.label_names, self.fingerprint = (), "names"

  def __len__(self):
    return len(self.names)

  def id_of(self, i):
    return self.names[i]


def table(folder, text, source, name="table.csv"):
  path = folder / name
  path.write_text(text)
  return attributes.Attributes(str(path), source)


def test_rates_and_gap_equal_sums_on_paper():
  """Women 3 of 4, men 1 of 2: the gap is 1/4. The unknown is no group."""
  right = np.array([1, 1, 0, 1, 0, 1, 0])
  groups = ["f", "f", "f", "f", "m", "m", ""]
  found = rates.rates(right, groups)
  assert found["f"].value == 3 / 4 and found["f"].count == 4
  assert found["m"].value == 1 / 2 and found["m"].count == 2
  assert found[rates.UNKNOWN].value == 0
  gap = rates.widest(right, groups)
  assert (gap.highest, gap.lowest, gap.value) == ("f", "m", 1 / 4)
  assert gap.low <= gap.value <= gap.high


def test_units_are_averaged_before_groups():
  """Household a has 1, 1, 1, 0; b has 0: (3/4 + 0) / 2, not 3/5."""
  right = np.array([1, 1, 1, 0, 0])
  found = rates.rates(right, ["Asia"] * 5, ["a", "a", "a", "a", "b"])
  assert found["Asia"].value == 3 / 8 and found["Asia"].count == 2
  # An image without a household counts by itself.
  found = rates.rates(right, ["Asia"] * 5, ["a", "a", "a", "a", ""])
  assert found["Asia"].count == 2


def test_intervals_are_those_of_the_bootstrap():
  """Resampled means of n draws of 0 and 1 are binomial: known quantiles."""
  n, p = 400, 0.25
  right = np.arange(n) < n * p
  found = rates.rates(right, ["g"] * n, resamples=20_000)["g"]
  wide = 1.96 * math.sqrt(p * (1 - p) / n)
  assert found.low == pytest.approx(p - wide, abs=0.005)
  assert found.high == pytest.approx(p + wide, abs=0.005)
  # Of values that all differ too.
  values = np.random.default_rng(0).normal(size=300)
  found = rates.rates(values, ["g"] * 300, resamples=5000)["g"]
  error = values.std() / math.sqrt(300)
  assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.05)


def test_a_rate_of_zero_is_not_certain():
  """Of 100 images without a hit up to 1 - 0.025^(1/100) = 3.6 % may have it."""
  values = np.zeros(100)
  found = rates.rates(values, ["g"] * 100, resamples=20_000)["g"]
  assert found.value == found.low == 0
  assert found.high == pytest.approx(1 - 0.025 ** (1 / 100), rel=0.05)
  found = rates.rates(1 - values, ["g"] * 100, resamples=20_000)["g"]
  assert found.high == 1 and found.low == pytest.approx(0.964, abs=0.002)
  gap = rates.widest(np.zeros(200), ["a", "b"] * 100)
  assert gap.low < -0.02 and gap.high > 0.02


def test_groups_that_are_too_small_have_a_count_and_no_rate(tmp_path, caplog):
  source = Named("a", "b", "c", "d", "e")
  text = "path,sex\na,f\nb,f\nc,f\nd,m\ne,\n"
  split = rates.Groups(table(tmp_path, text, source), ("sex",), "", 3, 100)
  found = dict(split("knn", np.arange(5), np.array([1, 1, 0, 1, 1])))
  assert found["knn/sex=f"] == pytest.approx(2 / 3)
  assert found["knn/sex=m/n"] == 1 and "knn/sex=m" not in found
  assert "knn/sex/gap" not in found
  assert "no rate for m, with fewer than 3 units" in caplog.text
  with pytest.raises(errors.UserError, match="largest group has 3 of the 4"):
    split = rates.Groups(table(tmp_path, text, source), ("sex",), "", 4, 100)
    list(split("knn", np.arange(5), np.ones(5)))


def test_the_worst_group_has_the_lowest_accuracy_or_the_highest_harm(tmp_path):
  source = Named("a", "b", "c", "d")
  text = "path,sex\na,f\nb,f\nc,m\nd,m\n"
  split = rates.Groups(table(tmp_path, text, source), ("sex",), "", 2, 100)
  values = np.array([1, 1, 0, 1])
  assert dict(split("x", np.arange(4), values))["x/sex/worst"] == 1 / 2
  harm = dict(split("x", np.arange(4), values, lower_is_better=True))
  assert harm["x/sex/worst"] == 1 and harm["x/sex/gap"] == 1 / 2


def test_rows_match_images_by_name_and_never_by_position(tmp_path):
  """VISSL pairs the n-th prediction with the n-th row of the metadata."""
  text = "path,region\nb.jpg,Asia\na.jpg,Africa\n"
  found = table(tmp_path, text, Named("a.jpg", "b.jpg"))
  assert found.of("region", [0, 1]) == ["Africa", "Asia"]
  with pytest.raises(errors.UserError, match=r"no row for the image c\.jpg"):
    table(tmp_path, text, Named("c.jpg")).of("region", [0])
  twice = text + "a.jpg,Europe\n"
  with pytest.raises(errors.UserError, match=r"several rows for .* a\.jpg"):
    table(tmp_path, twice, Named("a.jpg")).of("region", [0])


def test_rows_of_the_list_itself_may_repeat_an_image(tmp_path):
  """Two people in one photograph, in a subset of the list too."""
  path = tmp_path / "people.csv"
  path.write_text("path,sex\na.jpg,f\na.jpg,m\nb.jpg,f\n")
  source = sources.open_source({"kind": "list", "path": str(path)})
  found = attributes.Attributes(str(path), source)
  assert found.of("sex", [0, 1, 2]) == ["f", "m", "f"]
  some = sources.Subset(source, [1, 2], "some")
  assert attributes.Attributes(str(path), some).of("sex", [0, 1]) == ["m", "f"]


def test_columns_cross_and_numbers_are_read(tmp_path):
  source = Named("a", "b")
  text = "path,sex,skin,latitude\na,f,dark,1.5\nb,m,,-2\n"
  found = table(tmp_path, text, source)
  assert found.of("sex*skin", [0, 1]) == ["f, dark", ""]
  assert found.numbers("latitude", [0, 1]) == [1.5, -2.0]
  with pytest.raises(errors.UserError, match="column sex has 'f', which is"):
    found.numbers("sex", [0])


def test_wrong_columns_are_one_line(tmp_path):
  source = Named(*(f"{i}.jpg" for i in range(300)))
  lines = (f"{i}.jpg,f,{i},\n" for i in range(300))
  text = "path,gender,id,none\n" + "".join(lines)
  found = table(tmp_path, text, source)
  with pytest.raises(errors.UserError, match="did you mean gender"):
    found.of("gendre", [0])
  for column, words in (("id", "300 different values"), ("none", "is empty")):
    with pytest.raises(errors.UserError, match=words):
      list(
        rates.Groups(found, (column,), "", 30, 100)(
          "knn", np.arange(300), np.ones(300)
        )
      )
