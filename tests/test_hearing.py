"""What is asked again once the tree is done: an event with several marks is owed to the rows with any of them."""

import dataclasses

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tasks import Planted, case_of, fitted_network, planted_marks
from torch import nn

from poisontrace._record import Tree
from poisontrace.clustering import Split
from poisontrace.data import ArraySet
from poisontrace.doubting import Case
from poisontrace.embedding import collect
from poisontrace.hearing import Course, follow_marks
from poisontrace.judging import Suspect
from poisontrace.kinds import Kinds


@pytest.fixture(scope="module")
def two_marks() -> tuple[Planted, Case]:
    """Rows with one of two marks each, and the case of an event that carries both."""
    task = planted_marks(2)
    network = fitted_network(task, lambda: nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 2)))
    return task, case_of(collect(network, ArraySet(task.x.numpy(), task.y.numpy()), [(task.event, 0)]))


def _marks_followed(case: Case, first: NDArray[np.int64], *, accuses: bool) -> NDArray[np.int64]:
    """Return what is accused in the end, after one mark was told from the rest of the label, and accused or not."""
    case = dataclasses.replace(case, tree=Tree(0, 0))
    rest = np.setdiff1d(case.own, first)
    is_first = torch.from_numpy(np.isin(case.own, first))
    of_first, of_rest = case.judge.losses(first, rest)
    root = case.tree.add(None, case.own, None, "split", "by a twin")
    suspect = Suspect(root, first, of_first, of_rest, len(rest), Split(is_first, is_first.float(), 30.0))
    case.tree.add(root, rest, of_rest, "pruned", "by a twin")
    node = case.tree.add(root, first, of_first, "responsible" if accuses else "pruned", "by a twin")
    course = Course()
    if accuses:
        course.responsible.append((node, suspect, 1.0))
    else:
        course.pruned.append((node, suspect))
    follow_marks(case, course)
    assert {node for node, _, _ in course.responsible} == {
        cluster.id for cluster in case.tree.clusters if cluster.decision == "responsible"
    }
    assert sorted(np.concatenate([leaf.indices for leaf in case.tree.leaves(case.own)])) == case.own.tolist()
    return np.sort(np.concatenate([case.own[:0], *(suspect.cluster for _, suspect, _ in course.responsible)]))


@pytest.mark.parametrize("accuses", [False, True])
def test_an_event_with_two_marks_is_owed_to_the_rows_with_either(
    two_marks: tuple[Planted, Case], accuses: bool
) -> None:
    """Whichever was found first, and whether the last layer said anything of it."""
    task, case = two_marks

    assert _marks_followed(case, task.poison[:60], accuses=accuses).tolist() == task.poison.tolist()


def test_rows_without_a_mark_of_the_event_lead_to_no_other_mark(two_marks: tuple[Planted, Case]) -> None:
    """An accusation of such rows is left as it is, and without one nothing is accused."""
    task, case = two_marks
    some = task.benign(0)[:60]

    assert _marks_followed(case, some, accuses=True).tolist() == some.tolist()
    assert _marks_followed(case, some, accuses=False).tolist() == []


def test_marks_that_hold_little_of_the_margin_accuse_nobody(
    two_marks: tuple[Planted, Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Below a tenth each they are none; both together below a half they are not enough."""
    task, case = two_marks

    for share, n_accused in ((0.05, 0), (0.2, 0), (0.3, 120)):
        monkeypatch.setattr(Kinds, "share_on_mark", lambda kinds, event, cluster, share=share: share)
        assert len(_marks_followed(case, task.poison[:60], accuses=False)) == n_accused
