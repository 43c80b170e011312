"""How likely poison is, given how well the conditions of an accusation are met (decisions 0014, 0038).

The null are natural mistakes of networks trained without poison; against them stand events of attacks that worked. Both
are rows of the benchmarks, and ``fit`` is all that was done to them.
"""

import math
from collections.abc import Sequence

# What ``fit`` gives on the committed rows; a test fits again.
INTERCEPT, SLOPE, STEP = -2.630, 3.642, 4.327
RANGE = (0.1, 10.0)  # a margin beyond says no more


def p_poison(margin: float) -> float:
    """Return the probability that an event is due to poison, if that is as likely as not beforehand.

    Args:
        margin: of the accusation, or of the one that came nearest to it; 1 is what it takes to accuse.
    """
    log, accuses = _terms(margin)
    return 1 / (1 + math.exp(-(INTERCEPT + SLOPE * log + STEP * accuses)))


def fit(margins: Sequence[float], is_poison: Sequence[bool]) -> tuple[float, float, float]:
    """Return intercept, slope and step of a logistic regression on the logarithm of the margin and whether it accuses.

    What accuses has stood up to everything that is asked of an accusation, which its margin alone does not say. Natural
    mistakes weigh as much as poison, however many there are of each. The usual penalty of scikit-learn keeps the slope
    finite where hardly a margin is on the wrong side.
    """
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(class_weight="balanced").fit([*map(_terms, margins)], is_poison)
    slope, step = model.coef_[0].tolist()
    return float(model.intercept_[0]), slope, step


def _terms(margin: float) -> tuple[float, bool]:
    return math.log(min(max(margin, RANGE[0]), RANGE[1])), margin >= 1
