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


def test_rankme_of_equal_and_of_falling_singular_values():
  rng = np.random.default_rng(0)
  basis = np.linalg.qr(rng.normal(size=(500, 8)))[0]
  flat = feature_stats.spectrum(basis)
  assert flat["features/rankme"] == pytest.approx(8, rel=1e-3)
  weight = np.exp(-np.arange(8.0))
  share = weight / weight.sum()
  falling = feature_stats.spectrum(basis * weight)
  wanted = np.exp(-np.sum(share * np.log(share)))
  assert falling["features/rankme"] == pytest.approx(wanted, rel=1e-3)


def test_alpha_is_the_exponent_of_the_eigenvalues():
  rng = np.random.default_rng(0)
  basis = np.linalg.qr(rng.normal(size=(4000, 40)))[0]
  basis -= basis.mean(0)
  scale = np.arange(1, 41) ** -0.75  # Eigenvalues fall as i^-1.5.
  found = feature_stats.spectrum(basis * scale)["features/alpha"]
  assert found == pytest.approx(1.5, abs=0.05)


def test_one_row_has_no_spectrum():
  assert feature_stats.spectrum(np.ones((1, 4))) == {
    "features/rankme": 0.0,
    "features/alpha": 0.0,
  }


def test_prototypes_that_coincide_are_not_unique():
  kernel = np.eye(6, 5)
  kernel[:, 1] = kernel[:, 0] * 3 + 0.01 * kernel[:, 2]
  assert feature_stats.unique_prototypes(kernel) == pytest.approx(3 / 5)
