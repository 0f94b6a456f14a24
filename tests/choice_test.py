import hashlib
import itertools
import pickle

import numpy as np
import pytest

from seer_jax import errors, sources
from seer_jax.sources import choice


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


@pytest.mark.parametrize(("take", "skip"), [(0, 0), (-1, 0), (1, -2)])
def test_less_than_nothing(photos, take, skip):
  with pytest.raises(errors.UserError, match="must be above 0"):
    opened(photos, take=take, skip=skip)


def test_more_than_there_are(photos):
  with pytest.raises(errors.UserError, match="number 35 of 31"):
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


def test_excluded_images_are_never_handed_out(photos, tmp_path):
  path = tmp_path / "optout.txt"
  by_hash = hashlib.sha256(b"image 5").hexdigest()
  path.write_text(f"a/0.jpg\n{photos}/b/1.jpg\n{by_hash}\n")
  source = pickle.loads(pickle.dumps(opened(photos, exclude=str(path))))
  assert len(source) == 31, "numbers stay as they are"
  refused = set()
  for i in range(len(source)):
    try:
      source[i]
    except errors.Excluded:
      refused.add(source.id_of(i))
  assert refused == {"a/0.jpg", "b/1.jpg", "c/5.jpg"}
  assert source.fingerprint != opened(photos).fingerprint


def test_a_part_cannot_get_around_an_exclusion(photos, tmp_path):
  path = tmp_path / "optout.txt"
  path.write_text("a/0.jpg\n")
  source = opened(photos, exclude=str(path), only=str(path))
  with pytest.raises(errors.Excluded):
    source[0]


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


def test_an_exclusion_holds_for_all_of_a_mixture(photos, tmp_path):
  path = tmp_path / "optout.txt"
  path.write_text("a/0.jpg\n")
  source = mixed(photos, exclude=str(path))
  with pytest.raises(errors.Excluded):
    source[0]
  assert source.weights == (3, 1)


def test_mixtures_of_nothing_or_of_mistakes(photos):
  with pytest.raises(errors.UserError, match="nothing to mix"):
    sources.open_source({"kind": "mix"})
  with pytest.raises(errors.UserError, match=r"parts\[0\]: weight is -1"):
    sources.open_source({"kind": "mix", "parts": ({"weight": -1},)})
  with pytest.raises(errors.UserError, match=r"parts\[0\]: no folder given"):
    sources.open_source({"kind": "mix", "parts": ({},)})
  with pytest.raises(errors.UserError, match="take is of single sources"):
    mixed(photos, take=0.5)


def test_hashes_are_told_from_names():
  table = choice._table([hashlib.sha256(b"a").digest()])
  assert choice._in(hashlib.sha256(b"a").digest(), table)
  assert not choice._in(hashlib.sha256(b"b").digest(), table)
