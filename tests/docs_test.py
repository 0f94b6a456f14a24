"""Every command of README and docs runs here, or is marked with what it needs.

Commands stand in blocks of code, or between backticks. `<!-- needs: ... -->`
directly before a block or a table marks its commands, and those of its own
line; these are parsed and not run. A line with a placeholder (... or WEIGHTS)
is a form, not a command. docs/tour.md has a test of its own for the lines that
it shows with output.
"""

import functools
import os
import re
import shlex
import shutil
import tomllib
from typing import NamedTuple

import photos
import pytest
import runs

from seer_jax import commands
from seer_jax.apps.view import server
from seer_jax.commands import logs, process
from seer_jax.config import from_flags
from seer_jax.runtime import abort
from seer_jax.weights import load, model_zoo

PAGES = sorted(
  path
  for pattern in ("*.md", "docs/*.md", "launch/*.md", "benchmarks/*.md")
  for path in runs.ROOT.glob(pattern)
)
PROGRAMS = ("seer-jax", "python", "pip", "pytest")
PLACEHOLDER = re.compile(r"…|\.\.\.|(?<![\w=.$-])[A-Z]{3,}\b(?!=)|\bW\b")
# Strides of published networks, which other projects can express.
PUBLISHED = [
  "--config.model.stem_stride=2",
  "--config.model.strides=(2,2)",
  "--config.model.regnet=()",
  "--config.model.depths=(1,1)",
  "--config.model.widths=(16,16)",
  "--config.model.group_widths=(8,8)",
]
# What makes a command quick, by the command.
TRUNK = ("--config=", "--config.model.regnet", "--config.model.strides")
TINY = [each for each in runs.TINY if not each.startswith(TRUNK)]
# Eight devices that share two cores make collectives slow.
SHORT = [
  "--config.mesh.data=1",
  "--config.steps=2",
  "--config.batch_size=8",
  "--config.eval.size=16",
  "--config.eval.resize=16",
  "--config.eval.max_images=24",
  "--config.eval.knn_k=(3,)",
  "--config.report.images=0",
]
CROPS = ["--config.crops.sizes=(16,)"]
PROBES = ["--config.probe.rates=(1.0,)", "--config.eval.shots=(1,)"]
EVAL = [*SHORT, *CROPS, *PROBES]
MORE = {"eval": EVAL, "labels": [*EVAL, "--seeds=1", "--shares=100"]}


class Shown(NamedTuple):
  """A command as a page has it.

  Attributes:
    line: without prompt, comment and line breaks.
    needs: what its mark says; "" without one.
    block: whether it stands in a block of code.
  """

  line: str
  needs: str
  block: bool


@functools.cache
def shown(path):
  """All commands of a page, in order."""
  text = re.sub(r"\\\n\s*", "", path.read_text())
  found, needs, kind = [], "", None
  for line in text.splitlines():
    mark = re.search(r"<!-- needs: (.*) -->", line)
    if mark and mark.start() == 0:
      needs, kind = mark[1], None
      continue
    if needs and line.strip():
      kind = kind or line[:1]
      if line[:1] != kind:
        needs = ""
    start = rf"(?:\$ )?((?:{'|'.join(PROGRAMS)})3?\b.*)"
    if block := re.match(rf"(?:    )?{start}$", line):
      bare = re.split(r" #|\s{3,}", block[1])[0].strip()
      if path.name != "tour.md" or not line.strip().startswith("$"):
        found.append(Shown(bare, needs, True))
      continue
    for code in re.findall(r"`([^`]+)`", line):
      if re.match(start, code) and " " in code:
        found.append(Shown(code, mark[1] if mark else needs, False))
  return found


def ours(path):
  """Complete commands of the package on a page: (arguments, what they need)."""
  for each in shown(path):
    line = each.line.replace("python -m seer_jax.main", "seer-jax train")
    line = line.replace("python -m seer_jax ", "seer-jax ")
    line = line.rpartition(" && ")[2]  # Setting up comes before it.
    line = line.replace("$IN", "--train ~/imagenet/train --test ~/imagenet/val")
    if not line.startswith("seer-jax ") or PLACEHOLDER.search(line):
      continue
    arguments = [os.path.expanduser(each) for each in shlex.split(line)[1:]]
    bare = len(arguments) == 1 and arguments[0] not in ("doctor", "--help")
    if not bare:
      yield arguments, each.needs


@pytest.fixture(scope="module")
def small_weights(once):
  """A run whose images are folders, as those of the docs' examples."""
  home = once("docs", plant)
  return home / "runs" / "photos"


def plant(home):
  for name in ("photos", "a/train", "a/test", "examples", "market"):
    photos.plant(home / name, 40, 20)
  for part in ("train", "test"):
    photos.plant(home / "cifar10" / part, 40, 32)
  shutil.copy(home / "photos" / "cats" / "001.jpg", home / "wanted.jpg")
  source = ["--config.data.train.kind=folder", "--config.data.test.kind=folder"]
  code, _, err = runs.run(
    "--config=configs/digits.py",
    *TINY,
    *source,
    *PUBLISHED,
    "--config.data.train.split=",
    "--config.data.test.split=",
    f"--config.data.train.path={home / 'a' / 'train'}",
    f"--config.data.test.path={home / 'a' / 'test'}",
    f"--workdir={home / 'runs' / 'photos'}",
  )
  assert code == 0, err


@pytest.fixture
def home(small_weights, tmp_path, monkeypatch):
  """A home folder in which everything is that the docs name."""
  home = tmp_path / "home"
  shutil.copytree(small_weights.parents[1], home)
  for name in ("cifar10", "digits", "longer", "a", "b", "c"):
    shutil.copytree(home / "runs" / "photos", home / "runs" / name)
  for name in ("configs", "launch", "benchmarks"):
    (home / name).symlink_to(runs.ROOT / name)
  monkeypatch.setenv("HOME", str(home))
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  monkeypatch.chdir(home)
  monkeypatch.setattr(process, "keep_compiled", lambda: None)
  monkeypatch.setattr(logs, "show", lambda: None)

  def end(self):
    raise KeyboardInterrupt

  monkeypatch.setattr(server.Server, "serve_forever", end)
  # A run that fails ends its process.
  monkeypatch.setattr(abort, "fail", lambda status, words: pytest.fail(words))
  opened = load.open_weights

  def released(name):
    """Released weights are far away; any will do."""
    found = str(name).removesuffix(".torch") in model_zoo.SEER
    return opened(home / "runs" / "photos" if found else name)

  monkeypatch.setattr(load, "open_weights", released)
  return home


def prepared(home, arguments):
  """What a command of a page expects of those before it, in other sections."""
  name = arguments[0]
  targets = {"train": "--workdir", "embed": "--out"}
  if name in targets and targets[name] in arguments:
    at = home / arguments[arguments.index(targets[name]) + 1]
    shutil.rmtree(at, ignore_errors=True)
  if name == "label" and "filter.seer" in arguments:
    shutil.copytree(home / "market.seer", home / "filter.seer")
    shutil.move(home / "examples" / "cats", home / "examples" / "harmful")
  more = MORE.get(name, [])
  if name == "train":
    fine = any("finetune" in each for each in arguments)
    more = SHORT + CROPS if fine else TINY + SHORT + PUBLISHED
  if name == "label" and not os.path.isdir(home / arguments[2]):
    embedded = ["embed", "photos", "--weights=runs/photos", "--out=photos.seer"]
    assert commands.main(embedded) == 0
    labels = "id,label\ncats/001.jpg,cat\ncats/003.jpg,cat\n"
    labels += "dogs/000.jpg,dog\ndogs/002.jpg,dog\n"
    (home / "photos.seer" / "labels.csv").write_text(labels)
  return [*arguments, *more]


def first_pages():
  """{page: commands that no page before it has}."""
  found, seen = {}, []
  for path in PAGES:
    for arguments, needs in ours(path):
      if not needs and arguments not in seen:
        seen.append(arguments)
        found.setdefault(path, []).append(arguments)
  return found


@pytest.mark.parametrize("path", first_pages(), ids=lambda path: path.stem)
def test_every_command_of_a_page_runs(path, home, shared_steps, capsys):
  for arguments in first_pages()[path]:
    given = prepared(home, arguments)
    status = commands.main(given)
    said = capsys.readouterr().err
    # The machine that runs the tests may have faults of its own.
    assert status == 0 or arguments == ["doctor"], (given, said)


def test_what_needs_more_than_there_is_parses_all_the_same(home):
  marked = [
    arguments for path in PAGES for arguments, needs in ours(path) if needs
  ]
  assert len(marked) > 5
  for name, *rest in marked:
    options = commands.COMMANDS[name].parse(name, rest)
    if path := getattr(options, "config", None):
      from_flags.read(path, options.overrides)
    for recipe in ("linear", "finetune"):
      if path := getattr(options, recipe, None):
        from_flags.read(path, [])


def test_other_commands_name_what_there_is():
  project = tomllib.loads((runs.ROOT / "pyproject.toml").read_text())
  extras = project["project"]["optional-dependencies"].keys()
  seen = 0
  for path in PAGES:
    for each in shown(path):
      if PLACEHOLDER.search(each.line):
        continue
      for names in re.findall(r"(?:\.|seer_jax)\[([\w,-]+)\]", each.line):
        assert set(names.split(",")) <= extras, each
        seen += 1
      for name in re.findall(r"(?:tests|benchmarks)/\w[\w/.]*", each.line):
        assert (runs.ROOT / name).exists(), each
        seen += 1
  assert seen > 20


def test_links_of_the_readme_lead_somewhere():
  """The site checks the links of the other pages."""
  links = re.findall(
    r"\]\(([^):#]+)[^)]*\)", (runs.ROOT / "README.md").read_text()
  )
  assert len(links) > 15
  for link in links:
    assert (runs.ROOT / link).exists(), link
