"""The site: ``python -m sphinx -W -b html docs docs/_build/html``. Nothing is fetched, neither
when it is built nor when it is read."""

import os
import pathlib
import sys

DOCS = pathlib.Path(__file__).parent
sys.path.insert(0, str(DOCS / "_ext"))
sys.path.append(str(DOCS.parent))  # after an installed cpfast: a checkout may have no ops

import cpfast  # noqa: E402

# The pages that are executed have the cpfast that is documented, in a folder of their own.
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, (str(pathlib.Path(cpfast.__file__).parents[1]), os.environ.get("PYTHONPATH")))
)
os.environ.setdefault("OMP_NUM_THREADS", "1")

project = "cpfast"
author = "The cpfast authors"
copyright = "2026, the cpfast authors; MIT licence"
release = version = "0.1" if cpfast.__version__.startswith("0+") else cpfast.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "repository",
    "methods",
    "measured",
]
exclude_patterns = ["_build", "_ext"]
default_role = "code"
nitpicky = True
# Of the names that are not cpfast's there is no inventory without the network.
nitpick_ignore_regex = [(r"py:.*", r"(?!cpfast\.).*")]
# What stands in annotations and has no entry of its own.
nitpick_ignore = [
    ("py:attr", "cpfast.detection.extra.Batches"),
    ("py:class", "cpfast.pruning.plan.Shuffled"),
    ("py:class", "cpfast.registry.Factory"),
    ("py:class", "cpfast.registry.T"),
    ("py:class", "cpfast.schedules.Rated"),
    ("py:class", "cpfast.train.inputs.Input"),
]

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_class_signature = "mixed"
autodoc_inherit_docstrings = False
autodoc_preserve_defaults = True
# Whether they are installed or not, so that the site is the same.
autodoc_mock_imports = ["accelerate", "lightning", "pytorch_lightning", "transformers"]
autosummary_generate = False
napoleon_numpy_docstring = False
napoleon_use_rtype = False
toc_object_entries_show_parents = "hide"
napoleon_custom_sections = ["Source"]
python_maximum_signature_line_length = 88

myst_heading_anchors = 4
nb_execution_mode = "force"
nb_execution_in_temp = True
nb_execution_timeout = 120
nb_execution_raise_on_error = True
nb_merge_streams = True

html_theme = "pydata_sphinx_theme"
html_title = "cpfast"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False
html_last_updated_fmt = None
html_theme_options = {
    "logo": {"text": "cpfast"},
    "navbar_align": "left",
    "navbar_end": ["theme-switcher"],
    "navbar_persistent": ["search-button"],
    "header_links_before_dropdown": 8,
    "show_nav_level": 1,
    "navigation_depth": 3,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
    "show_prev_next": True,
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
html_context = {"default_mode": "auto"}
