"""docs/architecture.md against the code: its names, its rooms, their size."""

import ast
import importlib
import pathlib
import re

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "seer_jax"
TEXT = (ROOT / "docs" / "architecture.md").read_text()
ROOMS = sorted(path.parent for path in PACKAGE.rglob("__init__.py"))
MODULES = {
  ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(
    ".__init__"
  )
  for path in PACKAGE.rglob("*.py")
  if path.name != "__main__.py"
}


# Classes that the page names without their file, which stands before.
CLASSES = {
  "Checkpoints": "seer_jax.weights.checkpoint",
  "Loop": "seer_jax.training.loop",
  "SwAV": "seer_jax.tasks.swav",
}


def found(name: str) -> bool:
  """Whether a name of the page, such as `loop.Loop`, is one of the code."""
  first, *rest = name.split(".")
  starts = [each for each in MODULES if each.split(".")[-1] == first]
  if first in CLASSES:
    starts, rest = [CLASSES[first]], [first, *rest]
  return any(holds(start, rest) for start in starts)


def holds(module: str, names: list[str]) -> bool:
  thing = importlib.import_module(module)
  for i, name in enumerate(names):
    path = ".".join([module, *names[: i + 1]])
    if path in MODULES:
      thing = importlib.import_module(path)
    elif hasattr(thing, name):
      thing = getattr(thing, name)
    else:
      return False
  return True


def test_every_name_on_the_page_is_in_the_code():
  dotted = set(
    re.findall(r"`((?:[A-Za-z_]+\.)+[A-Za-z_]+)(?:\([^)]*\))?`", TEXT)
  )
  kinds = (".py", ".json", ".txt", ".html")
  files = {each for each in dotted if each.endswith(kinds)}
  others = {"jax.make_mesh", "metrics.jsonl", "pyproject.toml", "input.md"}
  others |= {"tool.importlinter", "evals.jsonl", "labels.csv"}
  assert len(dotted) > 40
  missing = {
    name
    for name in dotted - files - others
    if not found(name.removeprefix("seer_jax."))
  }
  assert not missing


def test_every_room_is_on_the_page_and_holds_at_most_twelve_files():
  for room in ROOMS:
    if room != PACKAGE:
      name = room.relative_to(PACKAGE).as_posix()
      assert f"| `{name}/` |" in TEXT
    assert len(list(room.glob("*.py"))) <= 12, room


def test_every_file_named_in_the_table_of_rooms_is_there():
  for name, names in re.findall(
    r"^\| `(\S+)/` \|[^|]*\|([^|]*)\|$", TEXT, re.MULTILINE
  ):
    for each in re.findall(r"`(\w+)`", names):
      assert (PACKAGE / name / f"{each}.py").exists(), (name, each)


def test_only_the_factory_names_swav():
  """Step, loop, plan and replay know `tasks.base.Task`."""
  users = [
    path.relative_to(PACKAGE).as_posix()
    for path in PACKAGE.rglob("*.py")
    if "swav.SwAV" in path.read_text()
  ]
  assert users == ["tasks/__init__.py"]


def test_files_classes_and_functions_fit_in_one_sitting():
  limits = {ast.ClassDef: 200, ast.FunctionDef: 60}
  for path in sorted(PACKAGE.glob("**/*.py")):
    text = path.read_text()
    assert text.count("\n") <= 400, path
    for node in ast.walk(ast.parse(text)):
      lines = getattr(node, "end_lineno", 0) - getattr(node, "lineno", 0) + 1
      assert lines <= limits.get(type(node), 400), f"{path}: {node.name}"
