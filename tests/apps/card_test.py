"""The model card of a tiny run."""

import re
import shutil

import pytest

from seer_jax.data import sources


@pytest.fixture
def workdir(tiny, tmp_path):
  path = tmp_path / "photos"
  shutil.copytree(tiny, path)
  return path


def test_a_card_says_what_was_measured_and_what_was_not(workdir, seer):
  status, out, err = seer("report", workdir, "--card")
  assert status == 0, err
  page, text = (workdir / name for name in ("card.html", "card.md"))
  assert out.split() == [str(page), str(text)]
  words = text.read_text()
  titles = re.findall("^## (.*)$", words, re.MULTILINE)
  assert titles == [
    "Intended use",
    "Training data",
    "Training, and what it took",
    "What was not measured",
  ]
  assert "whether it associates people with harmful labels" in words
  assert "| Excluded images | no list was given |" in words
  assert "Energy, estimated" in words and "Device hours" in words
  # Nothing is fetched, nothing runs.
  html = page.read_text()
  assert "<script" not in html and "http" not in re.sub("http-equiv", "", html)


def test_figures_by_group_are_in_words_with_their_numbers(
  workdir, seer, tmp_path
):
  table = tmp_path / "digits.csv"
  source = sources.open_source({"kind": "digits", "split": "test"})
  ids = [source.id_of(i) for i in range(len(source))]
  labels = [source.label_of(i) for i in range(len(source))]
  rows = [f"{one},{'even' if n % 2 == 0 else 'odd'}" for one, n in
          zip(ids, labels, strict=True)]  # fmt: skip
  table.write_text("path,parity\n" + "\n".join(rows) + "\n")
  status, _, err = seer(
    *("eval", workdir, "pixels", "--evals", "knn,corruptions"),
    *("--config.data.train.kind=digits", "--config.data.train.split=train"),
    *("--config.data.test.kind=digits", "--config.data.test.split=test"),
    *("--attributes", table, "--by", "parity", "--out", workdir / "evals"),
    *("--config.eval.knn_k=(5,)", "--config.eval.corruptions=('fog','snow')"),
    *("--config.eval.severities=(3,)", "--config.eval.max_images=200"),
  )
  assert status == 0, err
  assert seer("report", workdir, "--card", "--out", tmp_path / "c.html")[0] == 0
  words = (tmp_path / "c.md").read_text()
  assert re.search(r"\| Group \(number\) \| photos \| pixels \|", words)
  assert re.search(r"\| even \(\d+\) \| \d+\.\d % \(\d", words)
  assert "Measured on 200 images of digits (test), against 200" in words
  assert "kNN accuracy (k = 20): the share of test images" in words
  assert re.search(
    r"\| kNN accuracy \(k = 5\), by parity \| (even|odd): ", words
  )
  assert "No group of people was measured" in words
  assert "| fog | " in words and "## Robustness" in words
  assert "how it copes with noise" not in words  # It was measured.


def test_excluded_images_are_counted(workdir, seer, tmp_path):
  listed = tmp_path / "out.txt"
  listed.write_text("a.png\nb.png\n")
  config = workdir / "config.json"
  text = config.read_text()
  key = '"data.train.exclude": '
  assert f'{key}""' in text
  config.write_text(text.replace(f'{key}""', f'{key}"{listed}"'))
  assert seer("report", workdir, "--card")[0] == 0
  words = (workdir / "card.md").read_text()
  assert "2 entries of" in words and "never used, neither in training" in words
  listed.unlink()
  assert seer("report", workdir, "--card")[0] == 0
  assert (
    "a list that is not there any more" in (workdir / "card.md").read_text()
  )


def test_a_card_is_of_one_run(workdir, seer, tmp_path):
  status, _, err = seer("report", workdir, workdir, "--card")
  assert status == 2 and "--card is of one run" in err
  status, _, err = seer("report", tmp_path, "--card")
  assert status == 2 and "has no config.json" in err
