"""Which backend serves a call: the choice of "auto", explicit names, what info() tells."""

from dataclasses import replace

import pytest
import torch

import cgc_kernels
from cgc_kernels import backends, gradcam, info
from cgc_kernels.__main__ import report
from cgc_kernels.backends import cuda
from cgc_kernels.backends.backend import LARGEST_SIDE
from tests.support.cases import CPP, VIEWS, evaluate, simple_case
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
