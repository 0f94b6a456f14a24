"""The keys of `config.eval`: what is measured, on which images, and how."""

from collections.abc import Mapping

from seer_jax.config import checks
from seer_jax.config.key import Key, Open
from seer_jax.models import heads

EVAL: Mapping[str, Key] = {
  # Steps between evaluations; 0 evaluates only before the first and after the
  # last step.
  "eval.every": Key(0, checks.AT_LEAST_0),
  # What is measured: names of `suite.EVALUATORS`.
  "eval.evals": Key(("stats", "knn"), checks.or_empty(checks.NAMES)),
  # Most images that an evaluation reads, of the bank and of the queries alike.
  "eval.max_images": Key(50_000, checks.POSITIVE),
  "eval.batch_size": Key(256, checks.POSITIVE),
  # Clean views: the shorter side is resized, then the center cropped; chosen
  # from the crops if None.
  "eval.resize": Open(int, checks.POSITIVE),
  "eval.size": Open(int, checks.POSITIVE),
  # "bilinear" and "bicubic" equal PIL's, bit for bit; "area" averages.
  "eval.interpolation": Key(
    "bilinear", checks.one_of("bilinear", "bicubic", "area")
  ),
  # Outputs of the network that classifiers of frozen features are fitted to.
  "eval.taps": Key(("avgpool",), checks.TAPS),
  # A grid: kNN for each number of neighbours, temperature and metric.
  "eval.knn_k": Key((20, 200), checks.COUNTS),
  "eval.knn_temperature": Key((0.1,), checks.POSITIVES),
  "eval.knn_metric": Key(("cosine",), checks.METRICS),
  # Labels that logistic regression and SVMs are fitted to: shares of all, and
  # numbers per class, each drawn with several seeds.
  "eval.shares": Key((1.0,), checks.SHARES),
  "eval.shots": Key((), checks.or_empty(checks.COUNTS)),
  "eval.seeds": Key(3, checks.POSITIVE),
  # Columns by which figures are split, from a table with a row per test image:
  # `attributes`, or the list of test images itself. "gender*age" crosses two.
  "eval.by": Key((), checks.or_empty(checks.NAMES)),
  "eval.attributes": Key("", checks.TEXT),
  # The column of what is sampled, such as households or people, whose images
  # are averaged first; "" for images.
  "eval.unit": Key("", checks.TEXT),
  # Groups with fewer units have no rate, only a count.
  "eval.smallest_group": Key(30, checks.POSITIVE),
  # Of the bootstrap behind the 95 % intervals.
  "eval.resamples": Key(1000, checks.POSITIVE),
  # A file with the names of a classifier's classes, one per line; "" for those
  # of the data it was trained on or, of 1,000, of ImageNet.
  "eval.class_names": Key("", checks.TEXT),
  # Whether a classifier may only predict classes that the test images have.
  "eval.mask_classes": Key(False, checks.FLAG),
  # Files with the labels that must not be associated with people ("" for the
  # published ones, evals/fairness/buckets.toml), and neighbours of precision@k.
  "eval.buckets": Key("", checks.TEXT),
  "eval.neighbours": Key((1, 5, 10, 50), checks.COUNTS),
  # Kinds of `corruptions.KINDS`, () for all 15, and strengths from 1 to 5.
  "eval.corruptions": Key((), checks.or_empty(checks.NAMES)),
  "eval.severities": Key((1, 2, 3, 4, 5), checks.SEVERITIES),
  # Shifted test sets: "NAME=FOLDER" with a name of `shifts.SHIFTS`.
  "eval.shifts": Key((), checks.or_empty(checks.NAMES)),
  # Other models' accuracies, a CSV of shift, clean, shifted, that effective
  # robustness is relative to; "" for the published ones.
  "eval.baseline": Key("", checks.TEXT),
  # Uses VISSL's views of the shifted sets instead of those of the weights.
  "eval.published_views": Key(False, checks.FLAG),
  # A CSV of the cells that a geolocation model's classes are.
  "eval.cells": Key("", checks.TEXT),
  # Retrieval: the tap and how its map becomes a vector ("rmac", "gem", "mean"),
  # the levels of R-MAC and the power of GeM, the longest side of the images in
  # pixels, and what sides are rounded to (1 for none; each shape compiles).
  "eval.retrieval.tap": Key("res5", checks.one_of(*heads.TAPS)),
  "eval.retrieval.pooling": Key("rmac", checks.one_of("rmac", "gem", "mean")),
  "eval.retrieval.levels": Key(3, checks.between(1, 6)),
  "eval.retrieval.power": Key(3.0, checks.POSITIVE),
  "eval.retrieval.longest": Key(1024, checks.POSITIVE),
  "eval.retrieval.round_to": Key(32, checks.POSITIVE),
  # Images to fit the whitening to, a folder or list of others than those that
  # are searched ("" for no whitening), and the components that are kept.
  "eval.retrieval.whiten": Key("", checks.TEXT),
  "eval.retrieval.components": Key(2048, checks.POSITIVE),
  # A file with the right answers of each query (`prepare roxford5k`); "" for
  # all images with the query's label.
  "eval.retrieval.ground_truth": Key("", checks.TEXT),
  # Share of the training images held out as queries if there is no test set.
  "eval.held_out": Key(0.2, checks.WITHIN_1),
}
