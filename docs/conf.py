"""Sphinx: the README and the other pages as one site, the API from its docstrings; `make docs` builds it."""

from cgc_kernels import __version__

project, release = "cgc_kernels", __version__
html_title, html_theme = f"cgc_kernels {release}", "furo"

# From the repository's root, so that links between pages are the same here and on a forge.
root_doc = "README"
include_patterns = ["*.md", "docs/*.md", "tests/**/*.md"]
exclude_patterns = [".*", "build", "runs"]
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax"]

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "none"
nitpicky = True

CONTENTS = """
```{toctree}
:hidden:
:caption: Using
docs/usage
docs/api
docs/recipes
docs/families
docs/install
```
```{toctree}
:hidden:
:caption: Training
docs/training
docs/data
docs/results
docs/photographs
docs/search
```
```{toctree}
:hidden:
:caption: Inside
docs/mathematics
docs/design
docs/performance
docs/gpu
docs/codegen
docs/reliability
docs/mutants
tests/tools/mutants/survivors
tests/cuda/simt/README
CONTRIBUTING
CHANGELOG
```
"""


def setup(app) -> None:
    """The table of contents is put below the README, which has none on a forge."""
    app.connect("source-read", lambda app, page, text: text.append(text.pop() + CONTENTS * (page == root_doc)))
