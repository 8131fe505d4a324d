"""What a release says of itself: one version, types of every public name, a workflow and a citation that are whole."""

import inspect
import re

import pytest
import yaml

import cgc_kernels
from tests.support import ROOT
from tests.tools import installed

WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())


def signatures():
    """Of every public function, class and method, by name."""
    for name in cgc_kernels.__all__:
        thing = getattr(cgc_kernels, name)
        if inspect.isfunction(thing):
            yield name, thing
        elif inspect.isclass(thing):
            for method, function in vars(thing).items():
                function = getattr(function, "__func__", function)
                if inspect.isfunction(function) and (not method.startswith("_") or method in ("__init__", "__call__")):
                    yield f"{name}.{method}", function


@pytest.mark.parametrize(("name", "function"), [pytest.param(*one, id=one[0]) for one in signatures()])
def test_every_argument_has_a_type(name, function):
    signature = inspect.signature(function)
    missing = [key for key, one in signature.parameters.items() if one.annotation is one.empty and key != "self"]
    assert [key for key in missing if key != "cls"] == []
    assert signature.return_annotation is not signature.empty or name.endswith("__init__")
    assert (ROOT / "cgc_kernels" / "py.typed").exists()


def test_a_users_script_names_all_that_is_public():
    """Which mypy reads, by make lint."""
    text = (ROOT / "tests" / "typing" / "consumer.py").read_text()
    assert [name for name in cgc_kernels.__all__ if not re.search(rf"\b{name}\b", text)] == []


def test_the_version_is_in_one_place():
    """The changelog and the citation name the same; the wheel takes it from there."""
    version = cgc_kernels.__version__
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["version"], citation["license"]) == (version, "MIT")
    assert citation["preferred-citation"]["title"] == "Consistent Explanations by Contrastive Learning"
    assert 'dynamic = ["version"]' in (ROOT / "pyproject.toml").read_text()


def test_the_workflow_has_all_jobs():
    jobs = WORKFLOW["jobs"]
    assert jobs.keys() == {"test", "wheel", "cuda-wheel", "installed", "publish"}
    for job in jobs.values():
        needed = job.get("needs", [])
        assert set([needed] if isinstance(needed, str) else needed) <= jobs.keys()
        assert all(("run" in step) != ("uses" in step) for step in job["steps"])
    assert jobs["publish"]["permissions"] == {"id-token": "write"}
    assert jobs["publish"]["if"] == "startsWith(github.ref, 'refs/tags/v')"


def test_the_workflow_builds_for_the_architectures_of_the_library():
    (architectures,) = re.findall(r'^CUDA_ARCH = "(.*)"$', (ROOT / "setup.py").read_text(), re.MULTILINE)
    (build,) = [step for step in WORKFLOW["jobs"]["cuda-wheel"]["steps"] if "env" in step]
    assert build["env"]["CGC_CUDA_ARCH"] == architectures
    assert architectures in (ROOT / "docs" / "install.md").read_text()


def test_targets_that_the_workflow_makes_exist():
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    made = re.findall(r"make ([a-z-]+)", (ROOT / ".github" / "workflows" / "ci.yml").read_text())
    assert made
    assert set(made) <= set(targets)


def test_what_runs_against_a_wheel_is_there():
    for path in (*installed.SUITES, *installed.OTHERS, *installed.PARTS):
        assert (ROOT / path).exists(), path
