"""The command line: help, examples, mistakes, and what it imports for them."""

import inspect
import os
import shlex
import subprocess
import sys

import pytest
import runs

from seer_jax import commands, main
from seer_jax.commands import data
from seer_jax.data import sources
from seer_jax.weights import convert

HEAVY = {"jax", "numpy", "absl", "ml_collections", "cv2", "grain"}


@pytest.mark.parametrize("name", commands.COMMANDS)
def test_help_has_a_sentence_arguments_and_two_examples(name, capsys):
  command = commands.COMMANDS[name]
  with pytest.raises(SystemExit) as ended:
    commands.main([name, "--help"])
  assert ended.value.code == 0
  shown = capsys.readouterr().out
  assert command.sentence in " ".join(shown.split())
  assert "examples:" in shown
  for example in command.examples:
    assert example in shown
    assert f"seer-jax {name}" in example
  assert all(len(line) <= 100 for line in shown.splitlines())


@pytest.mark.parametrize("name", commands.COMMANDS)
def test_examples_are_command_lines_of_it(name):
  command = commands.COMMANDS[name]
  for example in command.examples:
    _, _, arguments = example.partition(f"seer-jax {name}")
    command.parse(name, shlex.split(arguments))


def test_help_imports_nothing_that_takes_long():
  program = (
    "import sys\nfrom seer_jax import commands\n"
    "for name in commands.COMMANDS:\n"
    "  try:\n    commands.main([name, '--help'])\n"
    "  except SystemExit:\n    pass\n"
    "commands.main(['--help'])\n"
    f"found = {HEAVY!r} & set(sys.modules)\n"
    "sys.exit(str(found) if found else 0)"
  )
  ended = subprocess.run(
    [sys.executable, "-c", program], cwd=runs.ROOT, capture_output=True
  )
  assert ended.returncode == 0, ended.stderr


def test_all_commands_are_listed(capsys):
  assert commands.main(["--help"]) == 0
  shown = capsys.readouterr().out
  for name, command in commands.COMMANDS.items():
    assert f"  {name} " in shown and command.sentence in shown
  assert commands.main(["--version"]) == 0
  assert capsys.readouterr().out.startswith("seer_jax 0.")


@pytest.mark.parametrize(
  ("arguments", "words"),
  [
    (["trian"], "there is no command 'trian'; did you mean train?"),
    (["xyzzy"], "Commands: train, eval, labels, report,"),
    ([], "no command is given"),
    (["train", "--workdirr=x"], "did you mean --workdir?"),
    (["train", "--workdir"], "expected one argument"),
    (["train", "here"], "the argument 'here' is unexpected"),
    (["train"], "no --config is given"),
    (["train", "--config=configs/nowhere.py"], "configs/nowhere.py"),
    (
      ["train", "--config=configs/digits.py", "--config.batch_sise=3"],
      "did you mean config.batch_size?",
    ),
    (["plan", "--config=configs/digits.py"], "no --topology is given"),
    (["plan", "--config=configs/digits.py:v9"], "takes no argument"),
    (["pack", "a"], "required: DST"),
    (["pack", "a", "gs://b/c"], "gs://b/c"),
    (["pack", "a", "b", "--kind=mix"], "--kind=mix"),
    (["inspect", "nowhere/at/all"], "nowhere/at/all"),
    (["convert"], "required: IN"),
    (["convert", "seer_32", "out"], "give both OUT and --to"),
    (["doctor", "--fix"], "there is no option --fix"),
  ],
)
def test_mistakes_are_one_line_and_status_2(
  arguments, words, capsys, monkeypatch
):
  def fail(status, words):
    print(words, file=sys.stderr)
    raise SystemExit(status)

  # The real one ends the process.
  monkeypatch.setattr("seer_jax.runtime.abort.fail", fail)
  try:
    status = commands.main(arguments)
  except SystemExit as ended:
    status = ended.code
  assert status == 2
  out, err = capsys.readouterr()
  assert out == ""
  assert words in err
  assert len(err.strip().splitlines()) == 1


def test_values_of_keys_may_be_arguments_of_their_own():
  command = commands.COMMANDS["train"]
  given = ["--config.batch_size", "8", "--workdir=w", "--config.steps=2"]
  options = command.parse("train", ["--config", "configs/digits.py", *given])
  assert options.overrides == given[:2] + given[3:]
  assert options.workdir == "w"


def test_the_module_main_is_the_command_train():
  arguments = ["--config=c.py", "--workdir=w", "--config.steps=2"]
  assert main.command_line(arguments) == ["train", *arguments]
  assert main.command_line(["--mode=plan", "--topology=v5e:2x2"]) == [
    "plan",
    "--topology=v5e:2x2",
  ]


def test_options_and_formats_are_those_of_what_is_run():
  known = set(sources.DEFAULTS) - {"kind", "path", "take_seed", "parts"}
  assert set(data._KEYS) == known
  text = inspect.getsource(commands.weights)
  assert all(form in text for form in convert.FORMATS)


def test_output_that_nobody_reads_to_its_end_is_no_crash():
  read, write = os.pipe()
  os.close(read)
  ended = subprocess.run(
    [sys.executable, "-m", "seer_jax", "--help"],
    cwd=runs.ROOT,
    stdout=write,
    stderr=subprocess.PIPE,
  )
  os.close(write)
  assert ended.returncode == 141 and ended.stderr == b""
