"""The tree and the clock of a trace."""

import numpy as np

from poisontrace._record import Clock, Tree, evenly


def test_clusters_are_numbered_on_from_the_first_id_and_know_their_depth() -> None:
    """Ids go on from the trees before, and depth counts a cluster and all above it."""
    tree = Tree(event=1, first_id=7)

    root = tree.add(None, np.arange(4), None, "split", "all")
    child = tree.add(root, np.arange(2), None, "pruned", "half")

    assert (root, child) == (7, 8)
    assert [cluster.id for cluster in tree.clusters] == [7, 8]
    assert [tree.depth(cluster) for cluster in (None, root, child)] == [0, 1, 2]
    assert all(cluster.event == 1 for cluster in tree.clusters)


def test_a_decision_can_be_revised() -> None:
    """What could not be split further is decided after the fact; the rest of the cluster stays."""
    tree = Tree(event=0, first_id=3)
    node = tree.add(None, np.arange(4), None, "split", "all")

    tree.decide(node, "responsible", "nothing left to split")

    assert tree.clusters[0].decision == "responsible"
    assert tree.clusters[0].reason == "nothing left to split"
    assert tree.clusters[0].indices.tolist() == [0, 1, 2, 3]


def test_a_stage_entered_twice_adds_up_even_when_it_fails() -> None:
    """Time is counted per stage over all its blocks, failed ones too."""
    clock = Clock()

    with clock.stage("one"):
        pass
    first = clock.seconds["one"]
    try:
        with clock.stage("one"):
            raise ValueError
    except ValueError:
        pass

    assert clock.seconds["one"] >= first >= 0
    assert list(clock.seconds) == ["one"]


def test_a_choice_is_even_and_covers_both_ends() -> None:
    """A cap takes every so-manieth; below the cap nothing is left out."""
    indices = np.arange(100, 1100)

    chosen = evenly(indices, 37)

    assert len(np.unique(chosen)) == 37
    assert (chosen[0], chosen[-1]) == (100, 1099)
    assert set(np.diff(chosen)) <= {27, 28}
    assert evenly(indices, 1000) is indices
    assert evenly(indices[:0], 5).tolist() == []
