"""The documentation: `sphinx-build -c docs . OUT`.

Its sources are the Markdown files and the notebooks of the whole repository, so
that the links of each of them are checked wherever they are read.
"""

import re
import sys

from docutils import nodes
from docutils.parsers import rst

sys.path.insert(0, "")  # The repository: autodoc imports the package.

import seer_jax
from seer_jax import commands

project = "seer_jax"
author = "the authors of seer_jax"
copyright = f"2026, {author}"
version = release = seer_jax.__version__
root_doc = "docs/index"
include_patterns = [
  "docs/**",
  "colabs/*",
  "launch/README.md",
  "benchmarks/README.md",
  "CHANGELOG.md",
  "CONTRIBUTING.md",
]
extensions = [
  "myst_nb",
  "sphinx.ext.autodoc",
  "sphinx.ext.napoleon",
  "sphinx_copybutton",
]
html_theme = "sphinx_book_theme"
html_title = "seer_jax"
html_theme_options = {"home_page_in_toc": True, "show_navbar_depth": 1}
html_static_path: list[str] = []
copybutton_prompt_text = "$ "

# Notebooks are run by tests/colabs_test.py, and shown without outputs.
nb_execution_mode = "off"
myst_heading_anchors = 3
# Single backticks of docstrings are code, as in Markdown.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
napoleon_use_rtype = False
# Code without a language is what a terminal shows.
highlight_language = "none"


class CommandHelp(rst.Directive):
  """What `seer-jax COMMAND --help` prints, for every command."""

  def run(self):
    sections = []
    for name, command in commands.COMMANDS.items():
      section = nodes.section(ids=[f"seer-jax-{name}"])
      section += nodes.title(text=f"seer-jax {name}")
      text = command.parser(name).format_help()
      section += nodes.literal_block(text, text, language="none")
      sections.append(section)
    return sections


def _from_markdown(app, what, name, obj, options, lines):
  """Indented blocks of docstrings are code, and bars are bars."""
  del app, what, name, obj, options
  found, in_code = [], False
  for at, line in enumerate(lines):
    after_text = at > 1 and not lines[at - 1] and re.match(r"\S", lines[at - 2])
    if line[:1].strip():
      in_code = False
    elif line and after_text and not in_code:
      in_code = True
      found += ["::", ""]
    is_plain = not in_code and "`" not in line
    found.append(line.replace("|", r"\|") if is_plain else line)
  lines[:] = found


def _undocumented(app, what, name, obj, skip, options):
  """Leaves out what NamedTuple makes of its fields: the docstring has them."""
  del app, what, name, options
  return True if type(obj).__name__ == "_tuplegetter" else skip


def setup(app):
  app.add_directive("command-help", CommandHelp)
  # Before napoleon, whose priority is 500.
  app.connect("autodoc-process-docstring", _from_markdown, priority=400)
  app.connect("autodoc-skip-member", _undocumented)
