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

    def pattern(self, size: int, n_channels: int, campaign: int = 0) -> NDArray[np.uint8]:
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


@pytest.mark.parametrize(
    ("campaigns", "side", "size", "starts"),
    [
        (4, 8, 4, [(4, 4), (4, 0), (0, 4), (0, 0)]),
        (2, 32, None, [(27, 27), (27, 1)]),
        (9, 8, 2, [(6, 6), (6, 0), (0, 6), (0, 0), (6, 3), (3, 6), (0, 3), (3, 0), (3, 3)]),
    ],
)
def test_campaigns_have_places_of_their_own(
    campaigns: int, side: int, size: int | None, starts: list[tuple[int, int]]
) -> None:
    """Corners first, then the middles; no two patches touch the same pixel."""
    attack, black = _White(campaigns=campaigns, size=size), np.zeros((1, side, side, 1), np.uint8)

    places = [attack.place(black.shape, campaign) for campaign in range(campaigns)]

    assert [(rows.start, columns.start) for rows, columns in places] == starts
    marked = [attack.mark(black, campaign, 1.0) > 0 for campaign in range(campaigns)]
    assert sum(map(np.ndarray.sum, marked)) == np.any(marked, 0).sum()


@pytest.mark.parametrize(("campaigns", "side", "largest"), [(2, 8, 4), (4, 33, 15), (5, 8, 2), (9, 32, 10)])
def test_patches_that_would_overlap_are_refused(campaigns: int, side: int, largest: int) -> None:
    """The message says how large they may be."""
    x = np.zeros((1, side, side, 1), np.uint8)
    _White(campaigns=campaigns, size=largest).check_kind(x)

    with pytest.raises(InvalidInputError, match=rf"'size' must be between 1 and {largest} pixels"):
        _White(campaigns=campaigns, size=largest + 1).check_kind(x)


@pytest.mark.parametrize(("opacity", "strength", "pixel"), [(1.0, 1.0, 255), (0.5, 1.0, 178), (0.5, 0.5, 139)])
def test_the_image_shows_through_a_patch(opacity: float, strength: float, pixel: int) -> None:
    """A white patch on pixels of 100, rounded; opacity and strength multiply."""
    grey = np.full((1, 8, 8, 1), 100, np.uint8)

    marked = _White(opacity=opacity).mark(grey, 0, strength)

    assert marked.dtype == np.uint8
    assert np.unique(marked).tolist() == [100, pixel]


@pytest.mark.parametrize("opacity", [0.0, 1.5, float("nan")])
def test_an_opacity_out_of_range_is_refused(opacity: float) -> None:
    """Nothing could be seen, or more than all of it."""
    with pytest.raises(InvalidInputError, match=r"'opacity' must be a fraction in \(0, 1\] \(got .*\)\. Leave it out"):
        _White(opacity=opacity)


@pytest.mark.parametrize("options", [{"size": 0}, {"size": 9}, {"size": 5, "margin": 4}, {"margin": -1}])
def test_a_patch_that_does_not_fit_is_refused_at_once(options: dict[str, Any]) -> None:
    """Before an attacker trains a network in vain."""
    with pytest.raises(InvalidInputError, match=r"'(size|margin)' must be .*\(got"):
        _White(**options).check_kind(toy_images()[0])


def test_rows_are_no_images() -> None:
    """The kind is named, not the patch."""
    with pytest.raises(InvalidInputError, match=r"'attack' must be one for this kind of data .*white.*uint8 images"):
        _White(size=9).check_kind(toy_rows()[0])
