"""Faults seeded into copies of the CUDA sources: the emulator must find each of them, and none in the clean code."""

import shutil
from pathlib import Path

import pytest
import simt
import torch
from cases import VIEWS, evaluate, lay_out, simple_case

pytestmark = pytest.mark.skipif(bool(simt.missing()), reason=simt.missing() or "there is one")

ROOT = Path(__file__).parents[1]

# Only the kernels of float32, which compile in a fraction of the time.
LEAN = [
    (
        "csrc/common/dispatch.h",
        f"    case Type::{kind}16:\n      return wide ? visit({name}16{{}}, float{{}}, float{{}}) : "
        f"visit({name}16{{}}, {name}16{{}}, float{{}});\n",
        "    case Type::float64:\n      (void)wide;\n" if kind == "float" else "",
    )
    for kind, name in (("bfloat", "BFloat"), ("float", "Float"))
]
LEAN += [
    (f"csrc/cuda/{way}.cu", f"float64 ? &{way}_kernel<double> : &{way}_kernel<float>", f"&{way}_kernel<float>")
    for way in ("forward", "backward")
]

CAM, WALK, CONTRAST, CGC = (f"csrc/cuda/{name}.cuh" for name in ("cam", "walk", "contrast", "cgc"))
PLATFORM, LAUNCH = (f"csrc/cuda/{name}.cuh" for name in ("platform", "launch"))

# name -> file, text that occurs once, what takes its place
FAULTS = {
    "barrier removed": (
        WALK,
        "tile(k * block_threads + thread()) = sums[k];\n    }\n    __syncthreads();",
        "tile(k * block_threads + thread()) = sums[k];\n    }",
    ),
    "barrier before a slot's next use removed": (
        PLATFORM,
        "  __syncthreads();  // an earlier sum may still be read\n",
        "",
    ),
    "grid sync removed": (CGC, "cooperative_groups::this_grid().sync();", ";"),
    "workspace slot reused": (
        CAM,
        "((view * call.batch + sample) * splits + split) * positions",
        "((view * call.batch + sample) * splits + split / 2) * positions",
    ),
    "tail unmasked": (CONTRAST, "counts = column < int(call.batch) && column != row(r)", "counts = column != row(r)"),
    "read past the end": (CONTRAST, "first + r < batch && depth + k < length", "depth + k < length"),
    "update lost": (PLATFORM, "scratch[warp()] = value;", "scratch[0] += value;"),
    "wrong lane in a shuffle": (
        CONTRAST,
        "__shfl_sync(all_lanes, weights[r], j)",
        "__shfl_sync(all_lanes, weights[r], j ^ 1)",
    ),
    "no order between launches": (
        LAUNCH,
        "step.shared),\n                     launch.stream, call)",
        "step.shared),\n                     static_cast<char*>(launch.stream) + call.steps, call)",
    ),
    "shared memory not initialised": (CAM, "{ shared.map(p) = 0; }", "{ (void)p; }"),
    "a block's share skipped": (CAM, "item += int(gridDim.x)", "item += int(gridDim.x) + 1"),
}


def patched(folder: Path, patches):
    """A copy of the sources with each (file, old, new) applied."""
    shutil.copytree(ROOT / "csrc", folder / "csrc")
    shutil.copy(ROOT / "tests" / "cuda_kernels.cu", folder)
    for file, old, new in patches:
        text = (folder / file).read_text()
        found = text.count(old)
        assert found == 1, f"{file} holds {old!r} {found} times"
        (folder / file).write_text(text.replace(old, new))
    return folder / "cuda_kernels.cu"


def case_of(pooled, layout, batch=18):
    case = simple_case(batch=batch, channels=512, side=(2, 3), size=(5, 6), pooled=pooled, consistency=0.5)
    case = case.to(torch.float32)
    return case._replace(views=tuple(lay_out(v, layout) for v in case.views))


def found_by(kernels) -> list[str]:
    """What is wrong with a library: the emulator's messages, launches that fail, results that differ."""
    found = []
    for form, seed in (("cooperative", 1), ("sequence", 2)):
        for pooled, layout in ((True, "contiguous"), (False, "channels_last"), (False, "contiguous")):
            case = case_of(pooled, layout)
            with kernels.running(form, blocks=3, seed=seed, yield_p=0.02):
                try:
                    loss, grads = evaluate(case, "cuda")
                except RuntimeError as error:
                    found.append(str(error))
                    continue
                if kernels.emulator.errors():
                    found.append(kernels.emulator.messages())
            expected, expected_grads = evaluate(case, "torch")
            pairs = [(loss, expected), *((grads[name], expected_grads[name]) for name in VIEWS)]
            for got, wanted in pairs:
                if not (got - wanted).abs().max() <= 1e-3 * wanted.abs().max():
                    found.append("a wrong result")
    return found


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    from cuda_emulation import Emulation

    def make(*patches):
        source = patched(tmp_path_factory.mktemp("fault") / "copy", [*LEAN, *patches])
        return Emulation("instrumented", source=source, include=[source.parent / "csrc" / "cuda"])

    return make


def test_the_clean_code_has_none(library):
    assert found_by(library()) == []


@pytest.mark.parametrize("name", FAULTS)
def test_a_seeded_fault_is_found(library, name):
    assert found_by(library(FAULTS[name]))
