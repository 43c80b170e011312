"""Where a square patch lies, whatever its pixels are."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray
from tasks import toy_images, toy_rows

from poisontrace._errors import InvalidInputError
from poisontrace.attacks.patch import Patch


@dataclass(frozen=True, kw_only=True)
class _White(Patch):
    """A white patch."""

    name: ClassVar[str] = "white"
    summary: ClassVar[str] = "a white patch"
    paper: ClassVar[str] = "none"
    is_dirty_label: ClassVar[bool] = True

    def pattern(self, size: int, n_channels: int) -> NDArray[np.uint8]:
        """Return white pixels."""
        return np.full((size, size, n_channels), 255, np.uint8)


@pytest.mark.parametrize(
    ("shape", "options", "rows", "columns"),
    [
        ((1, 8, 8, 1), {}, (6, 8), (6, 8)),
        ((5, 15, 15, 3), {}, (13, 15), (13, 15)),
        ((1, 32, 32, 3), {}, (27, 31), (27, 31)),
        ((1, 32, 64, 3), {}, (27, 31), (59, 63)),
        ((1, 64, 32, 3), {"size": 5}, (58, 63), (26, 31)),
        ((1, 32, 32, 3), {"margin": 0}, (28, 32), (28, 32)),
        ((1, 9, 8, 1), {"size": 8}, (1, 9), (0, 8)),
    ],
)
def test_the_patch_is_a_square_at_the_bottom_right(
    shape: tuple[int, ...], options: dict[str, int], rows: tuple[int, int], columns: tuple[int, int]
) -> None:
    """An eighth of the shorter side, off both borders by the margin, unless asked for else; only there are changes."""
    is_white = np.zeros(shape, bool)
    is_white[:, slice(*rows), slice(*columns)] = True

    assert _White(**options).place(shape) == (slice(*rows), slice(*columns))
    assert ((_White(**options).trigger(np.zeros(shape, np.uint8)) == 255) == is_white).all()


@pytest.mark.parametrize("options", [{"size": 0}, {"size": 9}, {"size": 5, "margin": 4}, {"margin": -1}])
def test_a_patch_that_does_not_fit_is_refused_at_once(options: dict[str, Any]) -> None:
    """Before an attacker trains a network in vain."""
    with pytest.raises(InvalidInputError, match=r"'(size|margin)' must be .*\(got"):
        _White(**options).check_kind(toy_images()[0])


def test_rows_are_no_images() -> None:
    """The kind is named, not the patch."""
    with pytest.raises(InvalidInputError, match=r"'attack' must be one for this kind of data .*white.*uint8 images"):
        _White(size=9).check_kind(toy_rows()[0])
