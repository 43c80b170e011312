"""What clustering and scoring both measure: how far apart two groups lie."""

from torch import Tensor


def standardised_difference(values: Tensor, is_first: Tensor, *, min_variance: float = 0.0) -> Tensor:
    """Return the difference of two clusters' means over their pooled standard deviation, a scalar.

    Args:
        values: (n,).
        is_first: (n,) bool; 0 is returned if either side has fewer than two samples.
        min_variance: the least pooled variance to reckon with.
    """
    first, second = values[is_first], values[~is_first]
    if min(len(first), len(second)) < 2:
        return values.new_tensor(0.0)
    variance = (first.var() * len(first) + second.var() * len(second)) / len(values)
    return (first.mean() - second.mean()) / variance.clamp_min(max(min_variance, 1e-24)).sqrt()
