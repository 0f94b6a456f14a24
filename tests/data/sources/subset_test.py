import itertools
import pickle

import numpy as np
import pytest

from seer_jax.data import sources
from seer_jax.data.sources import subset
from seer_jax.runtime import errors


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def photos(tmp_path):
  for number in range(30):
    path = tmp_path / "photos" / "abc"[number % 3] / f"{number}.jpg"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"image %d" % number)
  (tmp_path / "photos" / "loose.jpg").write_bytes(b"loose")
  return tmp_path / "photos"


def opened(photos, **options):
  return sources.open_source({"kind": "folder", "path": str(photos)} | options)


def ids(source):
  return [source.id_of(i) for i in range(len(source))]


def test_parts_of_one_permutation_are_disjoint_and_together_all(photos):
  parts = [
    ids(opened(photos, take=take, skip=skip))
    for take, skip in ((0.5, 0), (10, 16), (5, 26))
  ]
  assert sorted(itertools.chain(*parts)) == ids(opened(photos))
  assert list(map(len, parts)) == [16, 10, 5]


def test_another_seed_is_another_part(photos):
  one, other = (opened(photos, take=10, take_seed=seed) for seed in (0, 1))
  assert ids(one) != ids(other) and one.fingerprint != other.fingerprint


@pytest.mark.parametrize("take", [6, 7, 8, 12])
def test_balanced_parts_have_as_many_of_each_class(photos, take):
  part = opened(photos, take=take, balanced=True)
  counts = np.bincount([part.label_of(i) for i in range(len(part))])
  assert counts.sum() == take and np.ptp(counts) <= 1
  rest = opened(photos, take=9, skip=take, balanced=True)
  assert not set(ids(part)) & set(ids(rest))


@pytest.mark.parametrize(
  ("take", "skip", "told"),
  [
    (0, 0, "must be above 0"),
    (-1, 0, "take is -1"),
    (1, -2, "skip is -2"),
    (float("inf"), 0, "take is inf"),
    (float("nan"), 0, "take is nan"),
    (1.5, 0, "take is 1.5; above 1"),
    (5, 2.5, "skip is 2.5; above 1"),
    (1, 1, "none is left"),
    (0.001, 0, "no image is left"),
  ],
)
def test_parts_that_are_none(photos, take, skip, told):
  with pytest.raises(errors.UserError, match=told):
    opened(photos, take=take, skip=skip)


def test_the_rest_is_what_a_share_or_a_number_leaves(photos):
  for skip in (0.1, 3):
    first = ids(opened(photos, take=skip))
    rest = ids(opened(photos, skip=skip))
    assert sorted(first + rest) == ids(opened(photos))


class Counted:
  """Images without bytes; the first tenth is of one class."""

  label_names = ("few", "many")

  def __init__(self, size):
    self._size, self.fingerprint = size, f"counted {size}"

  def __len__(self):
    return self._size

  def id_of(self, i):
    return str(i)

  def label_of(self, i):
    return int(i >= self._size // 10)


def numbers(part):
  return set(map(int, ids(part)))


@pytest.mark.parametrize("size", range(5, 60))
def test_shares_that_follow_each_other_neither_overlap_nor_miss(size):
  bounds = 0, 0.1, 0.3, 0.35, 0.8, 1
  seen = []
  for skip, end in itertools.pairwise(bounds):
    take = 1 if end == 1 else round(end - skip, 2)
    if round(skip * size) < round(end * size):
      seen += numbers(subset.some(Counted(size), take, skip))
  assert sorted(seen) == list(range(size))


def test_a_part_of_a_long_list_costs_no_memory():
  part = subset.some(Counted(10**12), 0.5)
  assert len(part) == 5 * 10**11 and len(pickle.dumps(part)) < 1000
  assert 0 <= int(part.id_of(10**11)) < 10**12
  with pytest.raises(IndexError):
    part.id_of(len(part))


@pytest.mark.parametrize(("take", "each"), [(1, 10), (0.5, 5), (20, 10)])
def test_balanced_is_balanced_where_a_class_is_short(take, each):
  part = subset.some(Counted(100), take, balanced=True)
  counts = np.bincount([part.label_of(i) for i in range(len(part))])
  assert counts.tolist() == [each, each]
  assert len(pickle.dumps(part)) < 1000


def test_balanced_asks_no_class_for_more_than_it_has():
  with pytest.raises(errors.UserError, match="30 images .* 'few' has 10"):
    subset.some(Counted(100), 60, balanced=True)


def test_a_choice_whose_file_is_damaged_is_made_again(photos, tmp_path):
  once = ids(opened(photos, balanced=True))
  (path,) = (tmp_path / "cache").rglob("indices.npy")
  for damage in (lambda: path.write_bytes(b""), path.unlink):
    damage()
    assert ids(opened(photos, balanced=True)) == once


def test_more_than_there_are(photos):
  with pytest.raises(
    errors.UserError, match="ask for 35 images, but there are 31"
  ):
    opened(photos, take=15, skip=20)


@pytest.mark.parametrize("style", ["a/{}.jpg", "{}.jpg", "{}"])
def test_named_images_by_id_or_name(photos, tmp_path, style):
  path = tmp_path / "list.txt"
  path.write_text("\n".join(style.format(number) for number in (0, 6, 3)))
  assert ids(opened(photos, only=str(path))) == [
    "a/0.jpg",
    "a/3.jpg",
    "a/6.jpg",
  ]


def test_named_images_must_be_there(photos, tmp_path):
  path = tmp_path / "list.txt"
  path.write_text("0.jpg\nno.jpg\n")
  with pytest.raises(errors.UserError, match="1 of the 2 .* 'no.jpg'"):
    opened(photos, only=str(path))


@pytest.mark.parametrize("key", ["only", "exclude"])
def test_lists_that_are_missing_or_empty(photos, tmp_path, key):
  with pytest.raises(errors.UserError, match="cannot read the list"):
    opened(photos, **{key: str(tmp_path / "nowhere")})
  (tmp_path / "empty").write_text("\n")
  with pytest.raises(errors.UserError, match="is empty"):
    opened(photos, **{key: str(tmp_path / "empty")})


def mixed(photos, **options):
  parts = (
    {"kind": "folder", "path": str(photos), "weight": 3},
    {"kind": "digits", "split": "test"},
  )
  return sources.open_source({"kind": "mix", "parts": parts} | options)


def test_a_mixture_is_its_parts_one_after_the_other(photos):
  source = mixed(photos)
  assert source.sizes == (31, 500) and source.weights == (3, 1)
  assert len(source) == 531
  assert source.id_of(0) == "0/a/0.jpg" == source[0]["id"]
  assert source.id_of(31).startswith("1/digits/")
  digits = sources.Digits("test")
  for i in (31, 530):
    name = digits.label_names[digits.label_of(i - 31)]
    assert source.label_names[source.label_of(i)] == name
    assert source[i]["label"] == source.label_of(i)
  assert source.label_names[source.label_of(0)] == "a"
  assert source.label_of(30) == sources.UNLABELLED


def test_mixtures_of_nothing_or_of_mistakes(photos):
  with pytest.raises(errors.UserError, match="nothing to mix"):
    sources.open_source({"kind": "mix"})
  with pytest.raises(errors.UserError, match=r"parts\[0\]: weight is -1"):
    sources.open_source({"kind": "mix", "parts": ({"weight": -1},)})
  with pytest.raises(errors.UserError, match=r"parts\[0\]: no folder given"):
    sources.open_source({"kind": "mix", "parts": ({},)})
  folder = {"kind": "folder", "path": str(photos)}
  for parts, told in (
    ([folder | {"weight": "a"}], r"parts\[0\]: weight is 'a'"),
    (["photos"], "set it to dicts"),
    (folder, "set it to dicts"),
    (3, "set it to dicts"),
  ):
    with pytest.raises(errors.UserError, match=told):
      sources.open_source({"kind": "mix", "parts": parts})
  with pytest.raises(errors.UserError, match="set it in its parts"):
    mixed(photos, take=0.5)
