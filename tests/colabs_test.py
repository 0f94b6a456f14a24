"""The notebooks run, cell by cell, with small settings.

A cell tagged "parameters" holds what a user sets; what is given here replaces
it. Lines of the shell that call `seer-jax` are run in this process, as IPython
would with names in braces; the others install, and are left out.
"""

import importlib.util
import json
import pathlib
import re
import shlex
import shutil

import photos
import pytest
import runs

from configs import digits
from seer_jax import commands
from seer_jax.commands import logs, process

COLABS = sorted((runs.ROOT / "colabs").glob("*.ipynb"))
NAMES = [path.stem for path in COLABS]
SMALL = [each for each in runs.TINY if not each.startswith("--config=")]
SHORT = (
  "--config.steps=2 --config.eval.max_images=60 --config.batch_size=16"
  " --config.probe.rates=(1.0,) --config.eval.knn_k=(5,)"
)


def cells_of(name):
  path = runs.ROOT / "colabs" / f"{name}.ipynb"
  return json.loads(path.read_text())["cells"]


def as_python(source):
  """A cell without IPython's syntax."""

  def shell(match):
    indent, line = match.groups()
    if not line.startswith("seer-jax "):
      return f"{indent}pass"
    return f"{indent}seer_jax_command(f{line!r})"

  return re.sub(r"^( *)!(.*)$", shell, source, flags=re.MULTILINE)


def seer_jax_command(line):
  status = commands.main(shlex.split(line)[1:])
  assert status == 0, line


@pytest.fixture
def settings(tmp_path, tiny):
  """Parameters of each notebook."""
  workdir = str(shutil.copytree(tiny, tmp_path / "tiny"))
  photos.plant(tmp_path / "photos", 40)
  photos.plant(tmp_path / "examples", 12)
  return {
    "pretrain_on_your_folder": {"steps": 2, "images": 60},
    "use_released_weights": {"weights": workdir},
    "probe_and_finetune": {
      "workdir": workdir,
      "shares": "100",
      "options": SHORT,
    },
    "plan_before_you_rent": {
      "gpus": "v100:1x2",
      "gpu_recipe": "configs/digits.py",
      "tpus": "",
      "options": shlex.join(SMALL),
    },
    "inside_your_flax_code": {"weights": workdir, "side": 16},
  }


@pytest.fixture
def here(tmp_path, monkeypatch):
  """A folder that looks like the root of a checkout."""
  for name in ("configs", "launch"):
    (tmp_path / name).symlink_to(runs.ROOT / name)
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  monkeypatch.setattr(process, "keep_compiled", lambda: None)
  monkeypatch.setattr(logs, "show", lambda: None)
  get_config = digits.get_config

  def small():
    config = get_config()
    config.model.regnet, config.model.strides = (1, 16, 16.0, 2.0, 8), (2,)
    config.model.head.hidden, config.batch_size = (16,), 16
    config.eval.max_images = 60
    return config

  monkeypatch.setattr(digits, "get_config", small)


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_stripped_and_opens_with_what_one_will_have(name):
  cells = cells_of(name)
  code = [cell for cell in cells if cell["cell_type"] == "code"]
  assert not any(cell["outputs"] or cell["execution_count"] for cell in code)
  first = "".join(cells[0]["source"])
  assert first.startswith("# ")
  assert re.search(r"\*\*At the end you (have|know)\*\*", first)
  tags = [cell["metadata"].get("tags") for cell in code]
  assert tags.count(["parameters"]) == 1


@pytest.mark.parametrize(
  "name",
  [
    pytest.param(name, marks=pytest.mark.extras)
    if name.startswith("plan")
    else name
    for name in NAMES
  ],
)
def test_a_notebook_runs_to_its_end(name, here, settings, capsys):
  pytest.importorskip("IPython", reason="notebooks show things by it")
  compiler = importlib.util.find_spec("jax_cuda12_plugin")
  if name.startswith("plan") and compiler is None:
    pytest.skip("GPUs are planned with .[plan-gpu]")
  names = {"seer_jax_command": seer_jax_command}
  for number, cell in enumerate(cells_of(name)):
    if cell["cell_type"] != "code":
      continue
    source = as_python("".join(cell["source"]))
    exec(compile(source, f"{name}, cell {number}", "exec"), names)
    if cell["metadata"].get("tags") == ["parameters"]:
      unknown = settings[name].keys() - names.keys()
      assert not unknown
      names |= settings[name]
  assert "error" not in capsys.readouterr().err


def test_every_notebook_has_settings_and_is_linked(settings):
  assert sorted(settings) == NAMES
  readme = (runs.ROOT / "README.md").read_text()
  docs = "".join(path.read_text() for path in (runs.ROOT / "docs").glob("*.md"))
  for name in NAMES:
    assert f"{name}.ipynb" in readme + docs
  for name in NAMES:
    for cell in cells_of(name):
      for link in re.findall(r"\]\((\w+\.ipynb)\)", "".join(cell["source"])):
        assert (pathlib.Path(runs.ROOT) / "colabs" / link).exists()
