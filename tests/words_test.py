"""Words that code and documentation do not use: see HOUSE's two last parts."""

import ast
import pathlib
import re

ROOT = pathlib.Path(__file__).parents[1]
CODE = [
  *sorted(ROOT.glob("seer_jax/**/*.py")),
  *sorted(ROOT.glob("configs/**/*.py")),
]
PROSE = [
  *sorted(ROOT.glob("docs/*.md")),
  *(ROOT / "launch").glob("*"),
  *(ROOT / each for each in ("README.md", "CONTRIBUTING.md")),
  ROOT / "benchmarks" / "README.md",
]
# Former names, which stay readable in old workdirs.
FORMER = {
  "config/resolved.py": {"model.numbers"},
  "weights/checkpoint.py": {"streak", "stand_ins"},
  "training/metrics.py": {"stand_ins"},
}

# What is defined under such a name has a better one.
IDENTIFIERS = {
  *("Votes", "is_lead", "notices", "Signals", "dog", "bark", "testify"),
  *("Sentinel", "Supply", "Situation", "last_words", "stand_ins", "streak"),
  *("remember", "claim", "tidy", "thin_out", "natural", "born", "told", "mend"),
  *("now", "place", "places", "messages"),
}
WORDS = re.compile(
  r"\b(stand_ins|streak|last_words|is_lead|model\.numbers|told|stands|mend"
  r"|mends|mended|somebody\w*|nobody\w*|natural|born|stand-ins?)\b"
  r"|\b(?:is|are) none of\b|\bgoes on\b|\bgo on\b",
  re.IGNORECASE,
)


def defined(tree: ast.Module):
  for node in ast.walk(tree):
    match node:
      case ast.FunctionDef() | ast.ClassDef():
        yield node.name
      case ast.arg():
        yield node.arg
      case ast.Name(ctx=ast.Store()):
        yield node.id
      case ast.Attribute(ctx=ast.Store()):
        yield node.attr


def test_names_of_the_left_column_are_gone():
  found = [
    f"{path.relative_to(ROOT)}: {name}"
    for path in CODE
    for name in defined(ast.parse(path.read_text()))
    if name.strip("_") in IDENTIFIERS
  ]
  assert not found


def test_words_of_the_left_column_are_gone():
  found = []
  for path in (*CODE, *PROSE):
    name = path.relative_to(ROOT).as_posix().removeprefix("seer_jax/")
    former = FORMER.get(name, set())
    for number, line in enumerate(path.read_text().splitlines(), 1):
      for match in WORDS.finditer(line):
        if match[0] not in former:
          found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
  assert not found, "\n".join(found)


def test_devices_exchange_no_messages():
  for path in (*ROOT.glob("seer_jax/planning/*.py"), ROOT / "docs/scale.md"):
    assert not re.search(r"\bmessages\b", path.read_text()), path
