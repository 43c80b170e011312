"""How far apart two groups lie, worked out by hand."""

import numpy as np
import pytest
import torch

from poisontrace._statistics import standardised_difference


def test_the_difference_is_in_pooled_standard_deviations() -> None:
    """By hand: means 10 and 1, variances 2 and 1 over 2 and 3 samples."""
    values, is_first = torch.tensor([9.0, 11, 0, 1, 2]), torch.tensor([True, True, False, False, False])

    assert float(standardised_difference(values, is_first)) == pytest.approx(9 / np.sqrt((2 * 2 + 3 * 1) / 5))
    assert float(standardised_difference(-values, is_first)) == pytest.approx(-9 / np.sqrt((2 * 2 + 3 * 1) / 5))
    assert float(standardised_difference(values, is_first, min_variance=9.0)) == pytest.approx(3)
    assert float(standardised_difference(values, torch.arange(5) < 1)) == 0.0
