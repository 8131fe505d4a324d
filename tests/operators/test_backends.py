"""Which backend serves, what the installation says of itself, and the loss as other software treats it."""

import copy
import doctest
import importlib.util
import os
import pickle
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch

import cgc_kernels
from cgc_kernels import CGCLoss, backends, cgc_loss, gradcam, heatmap_loss, info, metrics
from cgc_kernels.__main__ import report
from cgc_kernels.backends import cuda, triton
from cgc_kernels.backends.backend import LARGEST_SIDE
from tests.support.cases import CPP, EVERY_BACKEND, VIEWS, evaluate, simple_case
from tests.support.compare import assert_same_bits

NAMES = ("cuda", "triton", "cpp", "torch", "reference")
GPU = next(name for name in ("cuda", "triton", "torch") if info()["backends"][name]["available"])  # of "auto"
CPU = torch.device("cpu")


def lacking(name, reason):
    """A backend as it is where it cannot serve for a reason."""
    return replace(backends.named(name), missing=lambda index: reason)


@pytest.fixture
def without_cpp():
    with backends.serving(lacking("cpp", "the C++ kernels were not built (a reason); install a C++17 compiler")):
        yield


def test_info():
    found = info()
    assert set(found) == {"versions", "auto", "backends", "cpp"}
    assert tuple(found["backends"]) == NAMES
    for name, backend in found["backends"].items():
        assert set(backend) == {"available", "reason"}
        assert backend["available"] == (backend["reason"] == ""), name
    assert found["versions"]["torch"] == torch.__version__
    assert found["versions"]["cgc_kernels"] == cgc_kernels.__version__
    assert found["backends"]["torch"]["available"]
    assert found["backends"]["reference"]["available"]


@pytest.mark.parametrize("backend", [CPP])
def test_info_with_the_binary(backend):
    found = info()
    assert found["auto"] == {"cpu": "cpp", "cuda": GPU}
    assert found["cpp"]["threads"] == torch.get_num_threads()
    assert found["cpp"]["instruction_set"] in ("baseline", "avx2", "avx512")
    assert f"cpp runs {found['cpp']['instruction_set']} code on" in report(found)


@pytest.mark.usefixtures("without_cpp")
def test_info_without_the_binary():
    found = info()
    assert found["auto"] == {"cpu": "torch", "cuda": GPU}
    assert found["cpp"] == {}
    assert found["backends"]["cpp"]["reason"].startswith("the C++ kernels were not built (a reason); install a C++17")
    text = report(found)
    assert "cpp        no   the C++ kernels were not built" in text
    assert "backend='auto' on cpu tensors: torch" in text


def test_the_module_prints_the_report():
    run = subprocess.run(
        [sys.executable, "-m", "cgc_kernels"], capture_output=True, text=True, check=True, env=environment()
    )
    assert run.stderr == ""
    for name in NAMES:
        assert any(line.startswith(name) for line in run.stdout.splitlines())


def environment():
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


def test_auto_takes_the_first_that_serves():
    device = torch.device("cuda")
    assert backends.choose("auto", device) is backends.choose(GPU, device)
    assert backends.choose("auto", torch.device("meta")) is backends.choose("torch", CPU)


@pytest.mark.usefixtures("without_cpp")
def test_auto_is_torch_where_cpp_is_missing():
    assert backends.choose("auto", CPU) is backends.choose("torch", CPU)
    case = simple_case()
    assert_same_bits(evaluate(case, "auto")[0], evaluate(case, "torch")[0])


@pytest.mark.parametrize("backend", [CPP])
def test_auto_is_cpp_on_the_cpu(backend):
    assert backends.choose("auto", CPU) is backends.choose("cpp", CPU)
    case = simple_case()
    for name in VIEWS:
        assert_same_bits(evaluate(case, "auto")[1][name], evaluate(case, "cpp")[1][name])


@pytest.mark.usefixtures("without_cpp")
def test_explicit_cpp_that_cannot_be_served_raises():
    with pytest.raises(
        RuntimeError, match=r"got 'cpp': the C\+\+ kernels were not built \(a reason\); install a C\+\+17"
    ):
        backends.choose("cpp", CPU)
    with pytest.raises(RuntimeError, match="got 'cpp'"):
        evaluate(simple_case(), "cpp")


@pytest.mark.parametrize("backend", [CPP])
def test_cpp_needs_cpu_tensors(backend):
    with pytest.raises(RuntimeError, match="it needs CPU tensors, got tensors on meta; use backend='auto'"):
        backends.choose("cpp", torch.device("meta"))


@pytest.fixture
def installation(monkeypatch):
    """The module that loads the compiled libraries, as under a CUDA build of torch."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    return import_module("cgc_kernels.ops.installation")


def test_triton_needs_a_compiler_and_headers_but_not_its_interpreter(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.delenv("CC", raising=False)
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr(triton, "python_headers", lambda: tmp_path)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert "triton needs a C compiler" in triton.requirement()
    assert "use backend='torch'" in triton.requirement()
    monkeypatch.setenv("CC", "cc")
    assert triton.requirement() is None
    (tmp_path / "Python.h").unlink()
    assert f"Python's headers, in {tmp_path}" in triton.requirement()
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert triton.requirement() is None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "triton is not installed" in triton.requirement()


def test_where_python_keeps_its_headers():
    assert triton.python_headers() == Path(sysconfig.get_path("include", "posix_prefix"))


@pytest.mark.parametrize(
    ("architectures", "capability", "fits"),
    [
        (["8.0", "9.0"], (8, 0), True),
        (["8.0", "9.0"], (8, 6), True),
        (["8.0", "9.0"], (9, 0), True),
        (["8.0", "9.0"], (7, 5), False),
        (["8.6", "9.0"], (8, 0), False),
        (["8.0", "9.0"], (12, 0), False),
        (["8.0", "9.0+PTX"], (12, 0), True),
        (["12.0+PTX"], (11, 0), False),
        (["9.0a+PTX"], (9, 0), True),
        (["9.0a+PTX"], (10, 0), False),
        (["10.0f"], (10, 3), True),
        ([], (7, 5), True),
    ],
)
def test_the_cuda_kernels_serve_the_devices_they_were_built_for(architectures, capability, fits):
    device = torch.device("cuda", 0)
    given = replace(backends.named("cuda"), missing=lambda index: cuda.unfit(index or 0, capability, architectures))
    with backends.serving(given):
        assert (backends.choose("auto", device) is given) == fits
        assert (info()["auto"]["cuda"] == "cuda") == fits
        assert info()["backends"]["cuda"]["available"] == fits
        if not fits:
            found = "{}.{}".format(*capability)
            assert f"cuda:0 has {found}" in info()["backends"]["cuda"]["reason"]
            with pytest.raises(RuntimeError, match=f"built for compute capability .*, cuda:0 has {found}; "):
                backends.choose("cuda", device)


def test_a_cuda_device_is_asked_for_its_capability(monkeypatch, installation):
    """Once: the answer is kept."""
    asked = []
    monkeypatch.setitem(installation._failures, "cuda", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 7)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: asked.append(index) or (1, 0))
    monkeypatch.setattr(installation, "_PACKAGE", Path("nowhere"))  # no record: any device is served
    assert [cuda.missing(index) for index in (None, 7, 6, 6)] == [None] * 4
    assert asked == [7, 6]
    cuda._unfit.cache_clear()


@pytest.mark.parametrize(("asked", "chosen"), [("auto", "cuda"), ("triton", "triton")])
def test_the_choice_compiles(asked, chosen):
    device = torch.device("cuda", 0)

    def doubled_by_the_chosen(x):
        return 2 * x if backends.choose(asked, device).name == chosen else x

    compiled = torch.compile(doubled_by_the_chosen, backend="eager", fullgraph=True)
    with backends.serving(lacking("cuda", None), lacking("triton", None)):
        assert compiled(torch.ones(1)) == 2


@pytest.mark.parametrize("name", NAMES)
def test_what_is_missing_compiles(name):
    """Under the compiler a backend gives the same reason, whatever it takes to find out."""

    def tripled_if_missing(x):
        return x if backends.unavailable(name) is None else 3 * x

    compiled = torch.compile(tripled_if_missing, backend="eager", fullgraph=True)
    assert compiled(torch.ones(1)) == tripled_if_missing(torch.ones(1))


def test_maps_beyond_the_cuda_kernels():
    device, largest, given = torch.device("cuda"), LARGEST_SIDE, lacking("cuda", None)
    with backends.serving(given):
        assert backends.choose("auto", device, largest) is given
        assert backends.choose("auto", device, largest + 1) is not given
        with pytest.raises(RuntimeError, match="at most 32 cells each way, got 33; use backend='torch'"):
            backends.choose("cuda", device, largest + 1)
        with pytest.raises(RuntimeError, match="it needs CUDA tensors"):
            backends.choose("cuda", CPU)


def test_another_backend_serves_within_its_context_alone():
    """Whatever it computes: the public functions call it, and the choice of `auto` may fall on it."""
    given = replace(backends.named("torch"), name="cpp", cam=lambda *_: torch.ones(1), device_types=("meta",))
    before = backends.named("cpp")
    with backends.serving(given):
        assert backends.named("cpp") is given
        features = torch.rand(1, 1, 2, 2)
        assert gradcam(features.to("meta"), features.to("meta"), backend="cpp") == 1
        with pytest.raises(RuntimeError, match="it needs META tensors, got tensors on cpu"):
            gradcam(features, features, backend="cpp")
    assert backends.named("cpp") is before


def test_what_is_registered_is_forgotten():
    names = list(info()["backends"])
    with backends.serving(replace(backends.named("torch"), name="another")):
        assert list(info()["backends"]) == [*names, "another"]
    assert list(info()["backends"]) == names


def test_the_choice_for_the_current_gpu_is_made_anew():
    """A tensor has the index of its device; "cuda" alone is whatever device is the current one."""
    current = [0]
    given = replace(backends.named("cuda"), missing=lambda index: "no" if (index or current[0]) else None)
    with backends.serving(given):
        assert backends.choose("auto", torch.device("cuda")) is given
        assert backends.choose("auto", torch.device("cuda", 1)) is not given
        current[0] = 1
        assert backends.choose("auto", torch.device("cuda")) is not given


LIBRARIES = pytest.mark.parametrize("name", ["cpp", "cuda"])


@LIBRARIES
def test_a_binary_that_does_not_load_is_reported(monkeypatch, tmp_path, installation, name):
    (tmp_path / installation._LIBRARIES[name]).write_bytes(b"not a library")
    monkeypatch.setattr(installation, "_PACKAGE", tmp_path)
    assert f"do not load under torch {torch.__version__}" in installation._load(name)


def test_a_cpu_build_of_torch_has_no_use_for_the_cuda_library(monkeypatch, installation):
    monkeypatch.setattr(torch.version, "cuda", None)
    assert installation._load("cuda") == f"the installed torch {torch.__version__} is built without CUDA"


BUILDS = (
    '{"cpp": {"built": false, "reason": "CGC_CPP=0 was set"}, "cuda": {"built": false, "reason": "CGC_CPP=0 was set"}}',
    '{"cpp": false, "reason": "an older shape"}',
    "not json",
    "{}",
    None,
)


@LIBRARIES
@pytest.mark.parametrize("content", BUILDS)
def test_the_reason_of_the_build_is_reported(monkeypatch, tmp_path, installation, name, content):
    if content is not None:
        (tmp_path / "_build.json").write_text(content)
    monkeypatch.setattr(installation, "_PACKAGE", tmp_path)
    expected = "CGC_CPP=0 was set" if content == BUILDS[0] else "never installed"
    assert expected in installation._load(name)


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512", "nonsense"])
@pytest.mark.parametrize("backend", [CPP])
def test_the_instruction_set_may_be_lowered(backend, isa):
    code = "import cgc_kernels; print(cgc_kernels.info()['cpp']['instruction_set'])"
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**environment(), "CGC_CPU_ISA": isa},
        capture_output=True,
        text=True,
        check=True,
    )
    order = ("baseline", "avx2", "avx512")
    assert run.stdout.strip() in (order[: order.index(isa) + 1] if isa in order else order)
    if isa == "baseline":
        assert run.stdout.strip() == "baseline"


# ---- As other software treats it


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_autocast_around_the_call_changes_nothing(backend, dtype):
    """The backward runs outside of it, as PyTorch asks."""
    for given in (torch.float32, torch.bfloat16):
        case = simple_case(temperature=0.1).to(given)
        leaves = [v.detach().requires_grad_() for v in case.views]
        expected, grads = evaluate(case, backend)
        heatmaps = gradcam(*leaves[:2], backend=backend)
        with torch.autocast("cpu", dtype=dtype):
            loss = cgc_loss(leaves[:2], leaves[2:], case.transform, backend=backend, **case.settings)
            assert_same_bits(gradcam(*leaves[:2], backend=backend), heatmaps)
            maps = [gradcam(*leaves[i : i + 2], backend=backend) for i in (0, 2)]
            chained = heatmap_loss(*maps, case.transform, image_size=(9, 11), temperature=0.1, backend=backend)
        assert_same_bits(loss.detach(), expected)
        assert chained.dtype == torch.float32
        assert abs(float((chained - loss).detach())) < 1e-5
        for name, grad in zip(VIEWS, torch.autograd.grad(loss, leaves), strict=True):
            assert_same_bits(grad, grads[name], name)


@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_default_dtype_changes_nothing(backend):
    case = simple_case().to(torch.float32)
    loss, grads = evaluate(case, backend)
    torch.set_default_dtype(torch.float64)
    try:
        other_loss, other_grads = evaluate(case, backend)
    finally:
        torch.set_default_dtype(torch.float32)
    assert_same_bits(other_loss, loss)
    for name in VIEWS:
        assert_same_bits(other_grads[name], grads[name])


@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_no_grad_and_inference_mode(backend):
    case = simple_case(transform="warp")
    loss, _ = evaluate(case, backend)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            leaves = [v.clone() for v in case.views]
            quiet = cgc_loss(leaves[:2], leaves[2:], case.transform, backend=backend, **case.settings)
        assert not quiet.requires_grad
        assert_same_bits(quiet.clone(), loss)


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_module(backend):
    case = simple_case(objective="paper", consistency=2.0)
    criterion = CGCLoss(**case.settings, backend=backend)
    expected = cgc_loss(case.views[:2], case.views[2:], case.transform, backend=backend, **case.settings)
    for module in (criterion, copy.deepcopy(criterion), pickle.loads(pickle.dumps(criterion))):
        assert_same_bits(module(case.views[:2], case.views[2:], case.transform), expected)
    assert repr(criterion) == (
        "CGCLoss(image_size=(9, 11), temperature=0.5, weighting='gradcam', objective='paper', consistency=2.0, "
        f"eps=1e-08, backend='{backend}')"
    )
    assert not list(criterion.parameters())
    assert not criterion.state_dict()


def test_defaults_are_the_documented_ones():
    case = simple_case()
    short = cgc_loss(case.views[:2], case.views[2:], case.transform, image_size=(9, 11))
    long = cgc_loss(
        *(case.views[:2], case.views[2:], case.transform),
        image_size=(9, 11),
        temperature=0.5,
        weighting="gradcam",
        objective="released",
        consistency=0.0,
        eps=1e-8,
        backend="auto",
    )
    assert_same_bits(short, long)
    assert_same_bits(CGCLoss(image_size=(9, 11))(case.views[:2], case.views[2:], case.transform), short)
    maps = [gradcam(*case.views[i : i + 2]) for i in (0, 2)]
    assert abs(float(heatmap_loss(*maps, case.transform, image_size=(9, 11)) - short)) < 1e-12


def test_a_number_as_image_size_is_a_square():
    case = simple_case(size=(9, 9))
    square = cgc_loss(case.views[:2], case.views[2:], case.transform, image_size=9)
    assert_same_bits(square, evaluate(case, "auto")[0])


EXAMPLES = [
    *("loss", "transforms", "grad_cam.module", "grad_cam.reshape", "backends"),
    *("metrics.inputs", "metrics.maps", "metrics.places", "metrics.sharpness"),
]


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_of_the_docstrings_run(name):
    module = import_module(f"cgc_kernels.{name}")
    result = doctest.testmod(
        module, optionflags=doctest.ELLIPSIS, extraglobs={**vars(cgc_kernels), "torch": torch, "nn": torch.nn}
    )
    assert result.attempted > 0
    assert result.failed == 0


def test_public_names():
    for name in cgc_kernels.__all__:
        assert getattr(cgc_kernels, name) is not None
    measures = [value for name in metrics.__all__ if callable(value := getattr(metrics, name))]
    for function in (cgc_loss, heatmap_loss, gradcam, info, CGCLoss, *measures):
        assert "Example::" in function.__doc__, function
