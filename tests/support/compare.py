"""The one comparator of the tests: shape and dtype equal, NaN fails, error relative to the largest entry."""

import torch


def assert_close(actual, expected, tol: float, floor: float = 0.0, what: str = "", oracle: bool = False) -> None:
    """Raise AssertionError unless max|actual - expected| <= tol * max(max|expected|, floor).

    actual, expected: tensors of one shape and dtype. floor: magnitude below which a value is rounding noise, to be
    stated per quantity. oracle: expected is the float64 truth, so only its own dtype is demanded to be float64.
    """
    what = what or "tensor"
    _same_kind(actual, expected, what, oracle)
    if expected.numel() == 0:
        return
    error = (actual.double() - expected.double()).abs()
    bound = tol * max(expected.double().abs().max().item(), floor)
    worst = int(error.argmax())
    if not error.flatten()[worst].item() <= bound:
        index = tuple(int(i) for i in torch.unravel_index(torch.tensor(worst), actual.shape))
        raise AssertionError(
            f"{what} at {index}: got {actual[index].item()!r}, expected {expected[index].item()!r}, "
            f"error {error[index].item():.3g} > {bound:.3g} = {tol:g} * max(|expected|, floor {floor:g})"
        )


def assert_low_precision(actual, peer, exact, what: str = "", ulps: float = 2.0, floor: float = 0.0) -> None:
    """Error by norm against `exact` (float64, same rounded inputs) at most 2x that of `peer` in the same dtype + 2 ulp.

    floor: norm below which the truth is rounding noise; an ulp is then one of that.
    """
    what = what or "tensor"
    _same_kind(actual, peer, what, oracle=False)
    _same_kind(actual, exact, what, oracle=True)
    error, peer_error = ((t.double() - exact).norm().item() for t in (actual, peer))
    ulp = torch.finfo(actual.dtype).eps * max(exact.norm().item(), floor)
    if not error <= 2 * peer_error + ulps * ulp:
        raise AssertionError(
            f"{what}: error {error:.3g} > 2 * {peer_error:.3g} (the peer's) + {ulps:g} ulp of {exact.norm().item():.3g}"
        )


def assert_same_bits(actual, expected, what: str = "tensor") -> None:
    """Equal shape, dtype and bits, NaN included."""
    _same_kind(actual, expected, what, oracle=False, finite=False)
    same = (actual == expected) | (actual.isnan() & expected.isnan())
    assert bool(same.all()), f"{what}: {int((~same).sum())} of {same.numel()} entries differ"


def _same_kind(actual, expected, what, oracle, finite=True):
    assert actual.shape == expected.shape, f"{what}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    wanted = torch.float64 if oracle else actual.dtype
    assert expected.dtype == wanted, f"{what}: dtype {actual.dtype}, expected {expected.dtype}"
    if finite:
        assert bool(actual.isfinite().all()), f"{what}: got NaN or infinity"
        assert bool(expected.isfinite().all()), f"{what}: the expected values hold NaN or infinity"
