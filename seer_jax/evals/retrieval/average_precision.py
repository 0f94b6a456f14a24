"""Average precision of rankings that are never written down.

The rank of each right image is the number of images before it, counted chunk by
chunk, so that memory does not grow with the database.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np


class Answers(NamedTuple):
  """What is right for a query: rows of the database."""

  right: np.ndarray
  junk: np.ndarray  # Removed from the ranking.


def average_precision(rank_P: np.ndarray, count: int) -> float:
  """The area under the precision-recall curve, by trapezoids.

  As the revisited protocol and Holidays define it (Radenović et al. 2018;
  Jégou et al. 2008): the right image at rank r, from 0, with j before it adds
  the mean of the precisions before it, j / r (1 at rank 0), and with it,
  (j + 1) / (r + 1), divided by the number of right images.

  Args:
    rank_P: ranks of the right images, rising.
    count: number of right images.
  """
  rank_P = np.asarray(rank_P, float)
  j_P = np.arange(len(rank_P))
  before_P = np.where(rank_P == 0, 1.0, j_P / np.maximum(rank_P, 1))
  return float(np.sum((before_P + (j_P + 1) / (rank_P + 1)) / 2) / count)


def precision_at(rank_P: np.ndarray, k: int) -> float:
  """Share of right images among the first k.

  As the revisited protocol has it, k is at most the rank of the last right one.
  """
  rank_P = np.asarray(rank_P)
  if not len(rank_P):  # None of the right images could be read.
    return 0.0
  k = min(k, int(rank_P.max()) + 1)
  return float(np.sum(rank_P < k) / k)


def ranks(
  similarity_of: Callable[[np.ndarray], np.ndarray],
  chunks: Callable[[], Iterable[tuple[np.ndarray, np.ndarray]]],
  answers: Sequence[Answers],
) -> list[np.ndarray]:
  """Ranks of each query's right images, rising, without junk.

  Of equal similarities the smaller row comes first. Rows of `answers` that no
  chunk has are left out.

  Args:
    similarity_of: vectors_RxD -> similarity_QxR; equal for equal chunks.
    chunks: yields (rows_R of the database, vectors_RxD), twice the same.
    answers: of each query.
  """
  own = [[] for _ in answers]
  for row_R, vectors_RxD in chunks():
    similarity_QxR = similarity_of(vectors_RxD)
    for q, answer in enumerate(answers):
      is_right_R = np.isin(row_R, answer.right)
      own[q].append((similarity_QxR[q, is_right_R], row_R[is_right_R]))
  wanted = [
    tuple(np.concatenate(column) for column in zip(*parts, strict=True))
    for parts in own
  ]
  counts = [np.zeros(len(similarity_P), int) for similarity_P, _ in wanted]
  for row_R, vectors_RxD in chunks():
    similarity_QxR = similarity_of(vectors_RxD)
    for q, answer in enumerate(answers):
      keep_R = ~np.isin(row_R, answer.junk)
      counts[q] += _before(similarity_QxR[q, keep_R], row_R[keep_R], *wanted[q])
  return [np.sort(count_P) for count_P in counts]


def _before(similarity_R, row_R, own_P, own_row_P):
  """How many of some images come before each of the right ones."""
  order_P = np.argsort(own_P, kind="stable")
  rising_P = own_P[order_P]
  # Images that are more similar than the right image at each place.
  at_R = np.searchsorted(rising_P, similarity_R, "left")
  more_P = np.bincount(at_R, minlength=len(own_P) + 1)[::-1].cumsum()[::-1][1:]
  found_P = np.empty(len(own_P), int)
  found_P[order_P] = more_P
  # Equals, which are few: copies.
  equal_R = np.searchsorted(rising_P, similarity_R, "right") > at_R
  for similarity, row in zip(
    similarity_R[equal_R], row_R[equal_R], strict=True
  ):
    found_P += (own_P == similarity) & (row < own_row_P)
  return found_P
