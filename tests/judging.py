"""What tests of laws share: a comparison with a number or a tensor, and a twin that a law must accuse."""

import math

import pytest
import torch


def close(actual, expected, rtol=1e-12, atol=1e-12):
    expected = torch.as_tensor(expected, dtype=actual.dtype).expand(actual.shape)
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol)


def accuses(law, *arguments):
    with pytest.raises(AssertionError):
        law(*arguments)


def between(low, high, n=2001):
    """Noise ratios from low to high, evenly spaced in their logarithm."""
    return torch.logspace(math.log10(low), math.log10(high), n, dtype=torch.float64)
