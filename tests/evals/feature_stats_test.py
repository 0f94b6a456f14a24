import numpy as np
import pytest

from seer_jax.evals import feature_stats


def test_isotropic_features_have_full_rank_and_standard_deviation_one():
  features = np.random.default_rng(0).normal(size=(5000, 16))
  spread = feature_stats.spread(features)
  assert spread["features/rank"] == pytest.approx(16, rel=0.01)
  assert spread["features/std"] == pytest.approx(1, rel=0.01)


def test_features_on_a_line_have_rank_one_and_equal_ones_no_spread():
  line = np.outer(np.linspace(-1, 1, 50), np.ones(4))
  assert feature_stats.spread(line)["features/rank"] == pytest.approx(1)
  assert feature_stats.spread(np.ones((9, 4)))["features/std"] == pytest.approx(
    0
  )
