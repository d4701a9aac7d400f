"""The documentation site: `make docs` writes it to build/docs, without a network."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "site"))

import halfmap  # noqa: E402

project = "halfmap"
author = copyright = "the halfmap developers"
release = version = halfmap.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.apidoc",
    "sphinx.ext.napoleon",
    "sphinx_gallery.gen_gallery",
    # in docs/site
    "formulas",
    "jobs",
    "docstrings",
    "seconds",
    "outside_links",
]
html_theme = "furo"
html_title = "halfmap"
html_static_path = ["_static"]
html_css_files = ["halfmap.css"]
html_math_renderer = "mathml"  # browsers know it; nothing is fetched
html_copy_source = html_show_sourcelink = False
exclude_patterns = [
    "_built/gallery/*/*.ipynb",
    "examples",
    "gallery",
    "tutorial",
    "job_notes",
    "_built/api/modules.rst",
    "_built/uses",
]
smartquotes = False  # two dashes are two dashes

myst_enable_extensions = ["dollarmath", "amsmath", "deflist", "colon_fence"]
myst_heading_anchors = 4

apidoc_modules = [
    {
        "path": "../src/halfmap",
        "destination": "_built/api",
        "exclude_patterns": ["../src/halfmap/cli", "../src/halfmap/web"],
        "module_first": True,
        "separate_modules": True,
    }
]
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
default_role = "code"
napoleon_numpy_docstring = False

sphinx_gallery_conf = {
    "examples_dirs": ["gallery", "tutorial"],
    "gallery_dirs": ["_built/gallery", "_built/tutorial"],
    "filename_pattern": r"\.py$",
    "within_subsection_order": "FileNameSortKey",
    "download_all_examples": False,
    "show_signature": False,
    "remove_config_comments": True,
    "abort_on_example_error": True,
    "show_memory": False,
    "write_computation_times": True,
    "matplotlib_animations": False,
    "image_srcset": ["2x"],
    "doc_module": ("halfmap",),
    "backreferences_dir": "_built/uses",
    "reset_modules": ("matplotlib", "seconds.note"),
    "reset_modules_order": "both",
}
# halfmap.InputError is halfmap.errors.InputError: either page will do
suppress_warnings = ["config.cache", "ref.python"]
