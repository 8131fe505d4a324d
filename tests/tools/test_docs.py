"""What the documents name is there: files, links, headings; every public name has its place, and the site builds."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT
from tests.support.public import exported, public_names

PAGES = ("README.md", "CONTRIBUTING.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))))
PATH = re.compile(r"(?<![\w/.])(?:[\w.-]+/)+(?:[\w.-]*\w)?")  # what has a slash in it
PLACEHOLDER = re.compile(r"NAME|STAGE")


def text(page: str) -> str:
    return (ROOT / page).read_text()


def anchors(page: Path) -> set[str]:
    """Of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def paths(page: str) -> set[str]:
    """Files and folders that the page names with a slash."""
    return {path for path in PATH.findall(text(page)) if not PLACEHOLDER.search(path)}


def test_design_names_what_exists():
    named = paths("docs/design.md")
    assert len(named) > 40
    # As the repository has it, or as the package or the line's own folder does.
    places = [ROOT / folder for folder in ("", "cgc_kernels", "cgc_kernels/backends", "csrc/common", "python")]
    assert [path for path in sorted(named) if not any((place / path).exists() for place in places)] == []


def test_design_names_files_that_exist():
    """Those that it names without a folder."""
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    names = {Path(path).name for path in tracked.stdout.splitlines()}
    named = set(re.findall(r"`(\w+\.(?:py|h|cpp|cu|cuh|md))`", text("docs/design.md")))
    assert named - names == set()


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", text(page)):
        if re.match(r"\w+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (ROOT / page).parent / name if name else ROOT / page
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), target


def documented() -> set[str]:
    """What docs/api.md has Sphinx document."""
    named = set(re.findall(r"^\.\. auto(?:function|class|data):: (\S+)", text("docs/api.md"), re.MULTILINE))
    modules = re.findall(r"^\.\. automodule:: (\S+)\n +:members:$", text("docs/api.md"), re.MULTILINE)
    return named.union(modules, *map(exported, modules))


def test_every_public_name_is_in_the_api():
    missing = sorted(set(public_names()) - documented())
    assert missing == [], "docs/api.md must have a directive for each, or `automodule` with `:members:` for a module"


def test_the_site_builds(tmp_path):
    """With every page in its contents, every link and every role resolved, and the mathematics set."""
    pytest.importorskip("myst_parser", reason="the site needs the extra docs")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-c", "docs", ".", str(tmp_path)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    run = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    page = (tmp_path / "docs/api.html").read_text()
    assert 'id="cgc_kernels.cgc_loss"' in page
    assert "mathjax" in page
    assert r"\operatorname{ReLU}" in page
