"""Figures split by groups of images."""
