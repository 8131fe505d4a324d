"""The comparator itself must be able to fail."""

import pytest
import torch

from tests.support.compare import assert_close, assert_low_precision, assert_same_bits

X = torch.linspace(-1, 1, 12).reshape(3, 4)


def off_by_one_element(amount):
    wrong = X.clone()
    wrong[1, 2] += amount
    return wrong


def test_equal_passes():
    assert_close(X, X.clone(), tol=0)
    assert_close(X, X.double(), tol=0, oracle=True)
    assert_close(X.new_empty(0), X.new_empty(0), tol=0)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (X.flatten(), "shape"),
        (X[None], "shape"),
        (X.double(), "dtype"),
        (X.bfloat16(), "dtype"),
        (off_by_one_element(float("nan")), "NaN"),
        (off_by_one_element(float("inf")), "infinity"),
        (off_by_one_element(2e-3), r"at \(1, 2\)"),
    ],
)
def test_wrong_fails(wrong, message):
    with pytest.raises(AssertionError, match=message):
        assert_close(wrong, X, tol=1e-3)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_expected_must_be_finite(value):
    with pytest.raises(AssertionError, match="expected values hold"):
        assert_close(X, off_by_one_element(value), tol=1e9)


def test_bound_is_relative_to_the_largest_entry_and_the_floor():
    assert_close(off_by_one_element(0.9e-3), X, tol=1e-3)
    zero = torch.zeros(2)
    assert_close(zero + 1e-9, zero, tol=1e-6, floor=1e-2)
    with pytest.raises(AssertionError, match="error"):
        assert_close(zero + 1e-9, zero, tol=1e-6, floor=1e-4)
    with pytest.raises(AssertionError, match="error"):
        assert_close(zero + 1e-9, zero, tol=1e-6)


def test_the_oracle_is_float64():
    with pytest.raises(AssertionError, match="dtype"):
        assert_close(X, X, tol=1, oracle=True)


def test_low_precision_rule():
    exact = torch.linspace(0.1, 1, 64, dtype=torch.float64)
    peer = exact.bfloat16()
    assert_low_precision(peer, peer, exact)
    with pytest.raises(AssertionError, match="ulp"):
        assert_low_precision(peer * 1.03, peer, exact)
    with pytest.raises(AssertionError, match="NaN"):
        assert_low_precision(peer * float("nan"), peer, exact)
    with pytest.raises(AssertionError, match="dtype"):
        assert_low_precision(peer.float(), peer, exact)


def test_same_bits():
    nan = off_by_one_element(float("nan"))
    assert_same_bits(nan, nan.clone())
    with pytest.raises(AssertionError, match="1 of 12"):
        assert_same_bits(nan, X)
    with pytest.raises(AssertionError, match="1 of 12"):
        assert_same_bits(off_by_one_element(1e-6), X)
