"""Configuration of the documentation: `make docs`."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from smmil import __version__  # noqa: E402

project = "smmil"
version = release = __version__
copyright = "the authors of smmil"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "generated"]
html_theme = "furo"
html_title = "smmil"
html_copy_source = html_show_sourcelink = False

myst_heading_anchors = 4
# shown as written: commands and their output, not Python
highlight_language = "text"

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
nitpicky = True
# classes of other packages, whose documentation cannot be read offline, and attributes of annotations
nitpick_ignore_regex = [("py:.*", r"(torch|numpy|np|nn|pathlib|collections|typing|pydantic)\b.*"), ("py:class", r".*")]
