"""The page: what is on it, made by the command, at the end of a run."""

import json
import re
import shutil

import pytest

from seer_jax.apps.report import report, verdict


def text_of(page):
  """What a reader sees, without tags, styles and scripts."""
  page = re.sub(r"<(style|script)[^>]*>.*?</\1>", "", page, flags=re.DOTALL)
  return " ".join(re.sub(r"<[^>]+>", " ", page).split())


@pytest.fixture
def of_tiny(tiny, tmp_path):
  """The page of the tiny run, with pictures of some of its images."""
  out = tmp_path / "report.html"
  report.write([tiny], out, images=200)
  return out.read_text()


def test_the_page_has_all_that_there_is_to_see(of_tiny):
  assert len(of_tiny) < report.LARGEST
  for title in (
    "What to do next",
    "Signs behind the verdict",
    "Curves",
    "What the features are worth",
    "Nearest neighbours",
    "Map of the features",
    "Prototypes",
    "Most used",
    "Closest to each other",
    "What the network was shown",
    "Time, hardware and energy",
    "Files that could not be used",
    "Settings",
    "Chosen automatically, and why",
  ):
    assert f">{title}<" in of_tiny, title
  text = text_of(of_tiny)
  assert "no accelerator" in text or "threads are enough" in text  # A reason.
  assert "Wh." in text and "Images per second" in text
  assert "Raw pixels" in text
  images = re.findall(r"<img[^>]*>", of_tiny)
  assert len(images) > 60
  assert all(re.search(r'alt="[^"]+"', each) for each in images)


def test_the_page_asks_for_nothing_from_the_network(of_tiny):
  outside = re.findall(r'(?:src|href)="(?!data:|#)([^"]*)"', of_tiny)
  assert not outside
  assert "default-src 'none'" in of_tiny


def test_several_runs_stand_side_by_side(tiny, collapsed, tmp_path):
  out = tmp_path / "both.html"
  found = report.write([tiny, collapsed], out, images=100)
  assert [each.title for each in found] == [
    "Too short to tell",
    "It did not learn",
  ]
  page = out.read_text()
  text = text_of(page)
  assert "Side by side" in text and "What was set differently" in text
  assert re.search(r"swav.iterations 3 0\b", text)
  data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])
  loss = next(each for each in data["charts"] if each["key"] == "loss_over_lnk")
  assert [each["name"] for each in loss["series"]] == ["tiny", "collapsed"]


def test_a_page_stays_small_whatever_it_is_about(tiny, tmp_path, monkeypatch):
  monkeypatch.setattr(report, "LARGEST", 1_050_000)
  workdirs = [tiny, shutil.copytree(tiny, tmp_path / "again")]
  report.write(workdirs, tmp_path / "out.html", images=60)
  text = text_of((tmp_path / "out.html").read_text())
  assert text.count("Left out to keep the page small") == 1


def test_names_of_files_and_runs_are_text_and_no_markup(tiny, tmp_path):
  workdir = shutil.copytree(tiny, tmp_path / "<b>&")
  (workdir / "bad_images.txt").write_text("</script><img src=x>.jpg\n")
  report.write([workdir], tmp_path / "out.html", images=0)
  page = (tmp_path / "out.html").read_text()
  assert "<img src=x>" not in page and "<b>&:" not in page
  assert "&lt;img src=x&gt;.jpg" in page


def test_without_its_images_a_run_is_still_told_of(tiny, tmp_path):
  workdir = shutil.copytree(tiny, tmp_path / "moved")
  config = json.loads((workdir / "config.json").read_text())
  config["data.train.kind"], config["data.train.path"] = "folder", "/nowhere"
  (workdir / "config.json").write_text(json.dumps(config))
  report.write([workdir], tmp_path / "out.html", images=10)
  text = text_of((tmp_path / "out.html").read_text())
  assert "No pictures of the features: config.data.train" in text
  assert "/nowhere" in text


def test_the_command_writes_into_the_workdir_and_says_the_verdict(
  seer, tiny, tmp_path
):
  workdir = shutil.copytree(tiny, tmp_path / "run")
  (workdir / report.NAME).unlink()
  status, out, _ = seer("report", workdir, "--images=0")
  assert status == 0
  assert "Too short to tell" in out and str(workdir / "report.html") in out
  assert (workdir / report.NAME).is_file()


def test_figures_of_eval_are_on_the_page(seer, tiny, tmp_path):
  line = {
    "what": str(tiny),
    "eval": "svm",
    "key": "k",
    "figures": {"svm/1": 0.5},
  }
  (tmp_path / "evals").mkdir()
  (tmp_path / "evals" / "evals.jsonl").write_text(json.dumps(line) + "\n{torn")
  status, _, err = seer(
    *("report", tiny, "--images=0", "--evals=evals", "--out=page.html")
  )
  assert status == 0, err
  assert "svm/1 0.5" in text_of((tmp_path / "page.html").read_text())


@pytest.mark.parametrize(
  ("arguments", "words"),
  [
    (["nowhere"], "nowhere has no config.json"),
    (["{tiny}", "{tiny}"], "given twice"),
    (["{tiny}", "--images=-1"], "--images is -1"),
    (
      ["{tiny}", "--evals=nowhere"],
      "--evals is nowhere, which has no evals.jsonl",
    ),
  ],
)
def test_mistakes_are_told_in_a_line(seer, tiny, arguments, words):
  given = [each.format(tiny=tiny) for each in arguments]
  status, _, err = seer("report", *given)
  assert status == 2
  assert words in err and err.count("\n") == 1


def test_every_run_ends_with_its_page(tiny):
  assert (tiny / report.NAME).is_file()
  said = tiny.with_suffix(".out").read_text()
  assert "Too short to tell: see report.html in the workdir" in said


def test_a_page_that_cannot_be_made_costs_no_run(monkeypatch, tmp_path, caplog):
  from seer_jax.commands import training

  def fail(*_):
    raise OSError("no room")

  monkeypatch.setattr(report, "write", fail)
  training._report(tmp_path, 0)
  assert "report could not be written: no room" in caplog.text


def test_verdicts_are_what_the_page_begins_with(of_tiny, tiny):
  found = verdict.judge(report.history.read([tiny])[0])
  text = text_of(of_tiny)
  assert text.index(found.title) < text.index("What to do next")
  assert found.sentence in text
