"""SEER's fairness indicators (Goyal et al. 2022)."""
