"""`python docs/include.py`: shows the recipes in docs/recipes.md, each below a comment that names its file."""

import re
from pathlib import Path

PAGE = Path(__file__).with_name("recipes.md")
SHOWN = re.compile(r"<!-- (recipes/\w+\.py) -->\n```python\n.*?```\n", re.DOTALL)


def included(page: str) -> str:
    """The page with every file as it is now."""
    return SHOWN.sub(lambda found: _block(found[1]), page)


def _block(name: str) -> str:
    return f"<!-- {name} -->\n```python\n{(PAGE.parent / name).read_text()}```\n"


if __name__ == "__main__":
    PAGE.write_text(included(PAGE.read_text()))
