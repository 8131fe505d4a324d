"""Faults seeded into copies of the CUDA sources: the emulator must find each of them, and none in the clean code."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.cuda import simt
from tests.support import ROOT
from tests.support.cases import VIEWS, evaluate, lay_out, simple_case

pytestmark = pytest.mark.skipif(bool(simt.missing()), reason=simt.missing() or "there is one")


# Only the kernels of float32 and of crops, which compile in a fraction of the time.
DISPATCH = "csrc/common/dispatch.h"
ROWS, FLAT = (f"csrc/cuda/cam{name}.cuh" for name in ("_rows", "_flat"))
RESAMPLE, RESAMPLE_FORWARD = (f"csrc/cuda/resample.{kind}" for kind in ("cuh", "cu"))
CONTRAST, CONTRAST_FORWARD, CONTRAST_BACKWARD = (
    f"csrc/cuda/{name}" for name in ("contrast.cuh", "contrast.cu", "contrast_gradient.cuh")
)
PLATFORM = "csrc/cuda/platform.cuh"
LEAN = [
    (
        DISPATCH,
        f"    case Type::{kind}16:\n      return wide ? visit({name}16{{}}, float{{}}, float{{}}) : "
        f"visit({name}16{{}}, {name}16{{}}, float{{}});\n",
        "    case Type::float64:\n      (void)wide;\n" if kind == "float" else "",
    )
    for kind, name in (("bfloat", "BFloat"), ("float", "Float"))
]
LEAN += [
    (DISPATCH, "  if (call.features_type == Type::float64) return visit(double{}, double{}, double{});\n", ""),
    (DISPATCH, "return float64 ? visit(double{}) : visit(float{});", "(void)float64;\n  return visit(float{});"),
    (RESAMPLE, "    if (call.float64) return with_entries(double{}, double{}, double{}, warps);\n", ""),
    (
        RESAMPLE,
        "return call.inverses == nullptr ? with_states(std::false_type{}) : with_states(std::true_type{});",
        "return with_states(std::false_type{});",
    ),
]

# name -> file, text that occurs once, what takes its place
FAULTS = {
    "barrier removed": (FLAT, "    __syncthreads();\n    fold_positions", "    fold_positions"),
    "barrier before a slot's next use removed": (
        CONTRAST,
        "    if (!ahead) load();\n    __syncthreads();\n",
        "    if (!ahead) load();\n",
    ),
    "wait removed": (RESAMPLE_FORWARD, "  simt::wait_for_predecessor();\n", ""),
    "wait at the end of a kernel that streams beside its predecessor removed": (
        FLAT,
        "relu(map[p]) : map[p]); });\n  simt::wait_for_predecessor();\n",
        "relu(map[p]) : map[p]); });\n",
    ),
    "input of a later kernel read before the wait": (
        CONTRAST_FORWARD,
        "  simt::wait_for_predecessor();\n  simt::release_successor();\n  Acc positives[2];\n#pragma unroll\n"
        "  for (int half = 0; half < 2; ++half) {\n    const int mine = row + row_of(2 * half);\n"
        "    positives[half] = mine < batch ? Acc(simt::gld(call.positives + mine)) : Acc(0);\n  }\n",
        "  Acc positives[2];\n#pragma unroll\n"
        "  for (int half = 0; half < 2; ++half) {\n    const int mine = row + row_of(2 * half);\n"
        "    positives[half] = mine < batch ? Acc(simt::gld(call.positives + mine)) : Acc(0);\n  }\n"
        "  simt::wait_for_predecessor();\n  simt::release_successor();\n",
    ),
    "workspace slot reused": (
        ROWS,
        "part.sample * call.splits + part.split",
        "part.sample * call.splits + part.split / 2",
    ),
    "tail unmasked": (CONTRAST_FORWARD, "other < batch && other != row + row_of(i)", "other != row + row_of(i)"),
    "read past the end": (FLAT, "if (at >= vectors) return;", "if (at > vectors) return;"),
    "update lost": (PLATFORM, "scratch[warp() * count + i] = values[i];", "scratch[i] += values[i];"),
    "wrong lane in a shuffle": (
        PLATFORM,
        "__shfl_xor_sync(all_lanes, sent, distance)",
        "__shfl_xor_sync(all_lanes, sent, 1)",
    ),
    "fragments exchanged": (
        CONTRAST,
        "{upper[k], lower[k], upper[k + 4], lower[k + 4]}",
        "{upper[k], upper[k + 4], lower[k], lower[k + 4]}",
    ),
    "a product of halves left out": (PLATFORM, "  simt::mma_tf32(c, a_low, b_high);\n", ""),
    "no order between launches": (
        PLATFORM,
        "simt::launch(started_, kernel, grid, CGC_ISA::block_threads, std::size_t(shared_bytes), stream_, call)",
        "simt::launch(false, kernel, grid, CGC_ISA::block_threads, std::size_t(shared_bytes), "
        "static_cast<char*>(stream_) + int(started_), call)",
    ),
    "shared memory not initialised": (FLAT, "{ map[p] = 0; }", "{ (void)p; }"),
    "ticket without a barrier": (CONTRAST_FORWARD, "  __syncthreads();\n  unsigned* last", "  unsigned* last"),
    "counter not cleared": (
        RESAMPLE_FORWARD,
        "  if (sample == 0 && thread() == 0 && phase.counter != nullptr) simt::gst(phase.counter, 0u);\n",
        "",
    ),
    "a block's share skipped": (CONTRAST_BACKWARD, "column += tile_columns) {", "column += 2 * tile_columns) {"),
    "the end of a channel given to the next": (
        FLAT,
        "const bool mine = k < left;",
        "const bool mine = k <= left;",
    ),
}


# One of a kind; all others, of which each takes a build, are slow tests.
IN_CI = {
    "barrier removed",
    "no order between launches",
    "read past the end",
    "shared memory not initialised",
    "wait removed",
    "workspace slot reused",
    "wrong lane in a shuffle",
}


def replaced(text: str, file: str, old: str, new: str) -> str:
    found = text.count(old)
    assert found == 1, f"{file} holds {old!r} {found} times"
    return text.replace(old, new)


def patched(folder: Path, patches):
    """A copy of the sources with each (file, old, new) applied."""
    shutil.copytree(ROOT / "csrc", folder / "csrc")
    shutil.copy(ROOT / "tests" / "cuda" / "kernels.cu", folder)
    for file, old, new in patches:
        (folder / file).write_text(replaced((folder / file).read_text(), file, old, new))
    return folder / "kernels.cu"


def case_of(pooled, layout, batch=66):
    case = simple_case(batch=batch, channels=512, side=(2, 3), size=(5, 6), pooled=pooled, consistency=0.5)
    case = case.to(torch.float32)
    return case._replace(views=tuple(lay_out(v, layout) for v in case.views))


def found_by(kernels) -> Iterator[str]:
    """What is wrong with a library: the emulator's messages, launches that fail, results that differ."""
    for seed, dependent in ((1, True), (2, False)):
        for pooled, layout in ((True, "contiguous"), (False, "channels_last"), (False, "contiguous")):
            case = case_of(pooled, layout)
            with kernels.running(seed=seed, yield_p=0.02, dependent=dependent):
                try:
                    loss, grads = evaluate(case, "cuda")
                    failed, message = False, kernels.emulator.messages() if kernels.emulator.errors() else None
                except RuntimeError as error:
                    failed, message = True, str(error)
            if message is not None:
                yield message
            if failed:
                continue
            expected, expected_grads = evaluate(case, "torch")
            pairs = [(loss, expected), *((grads[name], expected_grads[name]) for name in VIEWS)]
            for got, wanted in pairs:
                if not (got - wanted).abs().max() <= 1e-4 * wanted.abs().max():
                    yield "a wrong result"


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    from tests.cuda.emulation import Emulation

    def make(*patches):
        source = patched(tmp_path_factory.mktemp("fault") / "copy", [*LEAN, *patches])
        return Emulation("instrumented", source=source, include=[source.parent / "csrc" / "cuda"])

    return make


def test_the_clean_code_has_none(library):
    assert list(found_by(library())) == []


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_names_a_place_in_the_sources(name):
    file, old, new = FAULTS[name]
    assert replaced((ROOT / file).read_text(), file, old, new)


@pytest.mark.parametrize("name", [pytest.param(f, marks=[pytest.mark.slow] * (f not in IN_CI)) for f in FAULTS])
def test_a_seeded_fault_is_found(library, name):
    assert next(found_by(library(FAULTS[name])), None) is not None
