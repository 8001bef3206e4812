"""How Sphinx makes a site of these pages: pip install -r requirements-docs.txt; python -m sphinx docs site"""

project = "jax-nas"
author = "The authors of jax-nas"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
html_theme = "furo"
html_title = "Neural architecture search in JAX and Flax"
exclude_patterns = ["README.md"]
myst_heading_anchors = 3
# Pages link to source files as they stand in the repository, which are no pages of the site.
suppress_warnings = ["myst.xref_missing"]
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": True}
default_role = "code"  # docstrings write `name` for code
