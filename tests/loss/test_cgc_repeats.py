"""The whole loss, again: every output is written, and any number of runs, threads and callers give the same bits."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from cgc_kernels.options import OBJECTIVES
from tests.support.cases import BACKENDS, CPP, VIEWS, evaluate, lay_out, poison, simple_case
from tests.support.compare import assert_same_bits


@pytest.mark.parametrize("weighting", ["pooled", "gradcam", "elementwise"])
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_output_is_written(backend, objective, weighting):
    pooled = weighting == "pooled"
    for layout in ("contiguous", "channels_last"):
        for dtype in (torch.float64, torch.float32, torch.bfloat16):
            case = simple_case(
                batch=5, channels=19, pooled=pooled, objective=objective, weighting="gradcam" if pooled else weighting
            ).to(dtype)
            case = case._replace(views=tuple(lay_out(v, layout) for v in case.views))
            clean = evaluate(case, backend)
            with poison():
                loss, grads = evaluate(case, backend)
            assert loss.isfinite()
            assert_same_bits(loss, clean[0])
            for name in VIEWS:
                assert grads[name].isfinite().all()
                assert_same_bits(grads[name], clean[1][name], name)


@pytest.mark.parametrize("transform", ["crop", "warp"])
@pytest.mark.parametrize("backend", [CPP])
def test_250_reruns_and_any_threads_are_equal_to_the_last_bit(backend, transform):
    case = simple_case(batch=33, channels=20, side=(5, 6), transform=transform, dtype=torch.float32, consistency=1.0)
    first = evaluate(case, backend)
    before = torch.get_num_threads()
    try:
        for rerun in range(250):
            if rerun % 50 == 0:
                torch.set_num_threads((1, 2, 3, 4, 8)[rerun // 50])
            loss, grads = evaluate(case, backend)
            assert_same_bits(loss, first[0])
            for name in VIEWS:
                assert_same_bits(grads[name], first[1][name], name)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("backend", [CPP])
def test_concurrent_callers(backend):
    """Several Python threads at once, as DataParallel and Hogwild call it."""
    given_ = [simple_case(batch=9, channels=30, seed=seed) for seed in range(4)]
    expected = [evaluate(case, backend) for case in given_]

    def work(i):
        return [evaluate(given_[i], backend) for _ in range(20)]

    with ThreadPoolExecutor(4) as pool:
        for i, results in enumerate(pool.map(work, range(4))):
            for loss, grads in results:
                assert_same_bits(loss, expected[i][0])
                for name in VIEWS:
                    assert_same_bits(grads[name], expected[i][1][name])
