"""The site, made of these pages and of the docstrings: `sphinx-build -W docs build/site`."""

from importlib import metadata

project = "sbi_dgm"
release = metadata.version(project)
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = f"{project} {release}"
html_show_copyright = False
exclude_patterns = ["README.md"]  # the same index for readers of the repository

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

default_role = "code"
smartquotes = False
autodoc_default_options = {"exclude-members": "model_config"}
autodoc_member_order = "bysource"
autodoc_typehints = "none"
napoleon_attr_annotations = False
napoleon_use_ivar = True
