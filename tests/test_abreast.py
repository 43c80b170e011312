"""Things done side by side: the same, in the same order, on any number of threads."""

import threading

import pytest
import torch

from poisontrace._abreast import MAX_THREADS, abreast, lent


@pytest.mark.parametrize("n_threads", [1, 2, 100])
def test_results_come_in_the_order_of_the_items(n_threads: int) -> None:
    """However many do them."""
    with lent(n_threads):
        assert list(abreast(lambda item: item * item, range(20))) == [item * item for item in range(20)]


def test_items_are_done_side_by_side() -> None:
    """Two that wait for each other both end; torch uses one thread in each, whatever it was set to."""
    both = threading.Barrier(2, timeout=30)

    def meet(_: int) -> int:
        both.wait()
        return torch.get_num_threads()

    with lent(2):
        assert list(abreast(meet, range(2))) == [1, 1]


def test_nothing_is_done_beside_unless_threads_are_lent() -> None:
    """The caller's own thread does it all; so it does again after the block."""
    with lent(2):
        pass
    assert set(abreast(lambda _: threading.get_ident(), range(5))) == {threading.get_ident()}


def test_no_more_threads_are_taken_than_make_sense() -> None:
    """More would only wait."""
    with lent(1000):
        assert len(set(abreast(lambda _: threading.get_ident(), range(100)))) <= MAX_THREADS


def test_an_error_is_raised_where_the_results_are_read() -> None:
    """As if it had been done here."""
    with lent(2), pytest.raises(ZeroDivisionError):
        list(abreast(lambda item: 1 / item, [1, 0, 2]))
