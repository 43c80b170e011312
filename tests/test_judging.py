"""What unlearning says of a cluster: each condition of an accusation, and the controls that it is measured on."""

import dataclasses
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from tasks import fitted_network, planted, planted_mlp

from poisontrace._record import Clock
from poisontrace._types import Losses
from poisontrace.clustering import Split
from poisontrace.data import ArraySet
from poisontrace.embedding import collect
from poisontrace.judging import Config, Judge, Suspect, is_minority
from poisontrace.notes import Notes
from poisontrace.sights import Sight


@pytest.mark.parametrize(
    ("rise", "control_rise", "of_sibling", "control_of_sibling", "n_sibling", "decision"),
    [
        (0.04, 0.0, 0.05, 0.0, 100, "pruned"),  # hardly moves the event
        (0.09, 0.0, 0.008, 0.0, 100, "responsible"),  # hardly, but its sibling much less
        (0.5, 0.0, 0.2, 0.3, 100, "responsible"),
        (0.5, 0.3, 0.6, 0.0, 100, "pruned"),  # ordinary samples suffer, and the sibling is pure
        (0.5, 0.3, 0.4, 0.0, 100, None),  # guilty, not pure
        (0.5, 0.3, 0.6, 0.3, 100, None),
        (0.5, 0.0, 0.4, 0.0, 100, "pruned"),  # leans as much on the other
        (0.5, 0.0, 0.4, 0.0, 1000, "responsible"),  # but that is many times larger
    ],
)
def test_what_unlearning_says_of_a_cluster(
    rise: float,
    control_rise: float,
    of_sibling: float,
    control_of_sibling: float,
    n_sibling: int,
    decision: str | None,
) -> None:
    """A hundred samples, with the controls' loss to rise by no more than 0.1."""
    losses, sibling = Losses(0, rise, 0, control_rise), Losses(0, of_sibling, 0, control_of_sibling)

    suspect = Suspect(0, np.arange(100), losses, sibling, n_sibling)
    judgement = suspect.judge(Config(), 0.1)

    assert (judgement[0] if judgement else None) == decision
    # One number says the same, for a whole label.
    assert (suspect.margin(Config(), 0.1) >= 1) == (decision == "responsible")


def test_the_margin_is_that_of_the_condition_met_least() -> None:
    """How far apart, how much the event is moved, what is spared, and, among rows, what is left without the mark."""
    losses, split = Losses(0, 5.0, 0, 0.0), Split(torch.arange(300) < 100, torch.zeros(300), 15.0, gap=1.5)
    suspect = Suspect(0, np.arange(100), losses, Losses(0, 0.0, 0, 5.0), 200, split)

    assert suspect.margin(Config(), 0.1) == suspect.split_margin(Config()) == 1.5
    assert suspect.margin(Config(), 0.1, beyond=0.8) == pytest.approx(0.5)
    leaning_on_both = dataclasses.replace(suspect, sibling=Losses(0, 30.0, 0, 5.0))
    assert leaning_on_both.margin(Config(), 0.1) == pytest.approx(5 / 30 / 1.5)


@pytest.mark.parametrize(
    ("rise", "control_rise", "harm"),
    [(4.0, 0.08, 0.5), (4.0, 0.32, 2.0), (0.1, 0.01, 0.5), (0.1, 0.0, 0.0), (3.0, -0.01, 0.0)],
)
def test_harm_is_what_controls_suffer_beside_the_event(rise: float, control_rise: float, harm: float) -> None:
    """At most 0.04 of the event's rise, and 0.02 nats are too little to matter; controls that gain are not harmed."""
    suspect = Suspect(0, np.arange(100), Losses(0, rise, 0, control_rise), Losses(0, 0.0, 0, 0.0), 200)

    assert max(0.0, suspect.harm()) == pytest.approx(harm)


@pytest.mark.parametrize(("first", "second"), [("kind", "rest"), ("rest", "kind")])
def test_controls_are_taken_from_the_kind_that_the_event_does_not_need(first: str, second: str) -> None:
    """Whichever is named first: forgetting the planted kind moves the event and no control, the rest the reverse."""
    task = planted()
    features = collect(fitted_network(task, planted_mlp), ArraySet(task.x.numpy(), task.y.numpy()), [(task.event, 0)])
    own = np.flatnonzero(task.y.numpy() == 0)
    sides = {"kind": own[task.is_poison[own]], "rest": own[~task.is_poison[own]]}

    compared = Judge(Sight(features, 0, own), Clock()).compare(sides[first], sides[second], lambda: 0.0)
    losses = dict(zip((first, second), compared, strict=True))

    assert losses["kind"].event_rise > 10 * losses["rest"].event_rise
    assert losses["kind"].control_rise < 0.01 < 0.5 < losses["rest"].control_rise


@pytest.mark.parametrize(
    ("rises", "standing", "is_pure"),
    [
        ((1.0, 11.0), 0.5, True),  # the event clearly needs the larger one
        ((1.0, 9.0), 0.5, False),
        ((1.0, 9.0), 1.5, True),  # and no other label holds the like
        ((1.0, 1.4), 1.5, False),  # it hardly needs one more than the other
    ],
)
def test_most_of_a_label_is_ordinary_unless_there_is_evidence(
    monkeypatch: pytest.MonkeyPatch, rises: tuple[float, float], standing: float, is_pure: bool
) -> None:
    """Controls of a smaller and a larger kind come from the smaller one only if the larger one stands out."""
    task = planted()
    features = collect(fitted_network(task, planted_mlp), ArraySet(task.x.numpy(), task.y.numpy()), [(task.event, 0)])
    own = np.flatnonzero(task.y.numpy() == 0)
    smaller, larger = own[:20], own[20:]
    judge, taken = Judge(Sight(features, 0, own), Clock()), []
    monkeypatch.setattr(judge, "take_controls", taken.append)
    heads = Mock(losses=lambda hidden, labels: torch.tensor([[0.0], [rises[0]], [rises[1]]]))
    monkeypatch.setattr(judge, "_unlearn", lambda *clusters: heads)

    judge.compare(smaller, larger, lambda: standing)

    assert len(taken) == 1
    assert np.array_equal(taken[0], smaller if is_pure else larger)


@pytest.mark.parametrize(("n", "n_others", "is_fewer"), [(40, 60, True), (49, 51, False), (60, 40, False)])
def test_of_two_halves_neither_is_a_minority(n: int, n_others: int, is_fewer: bool) -> None:
    """Nor does one sample more or fewer say which of two kinds is the ordinary one."""
    losses, split = Losses(0, 5.0, 0, 0.0), Split(torch.arange(100) < n, torch.zeros(100), 15.0)

    assert is_minority(n, n_others) == is_fewer
    assert Suspect(0, np.arange(n), losses, losses, n_others, split).is_far(Config()) == is_fewer


def test_there_are_controls_wherever_the_model_answers_with_the_label() -> None:
    """If not in what they are to be taken from, in the whole label: without any nobody would suffer."""
    task = planted()
    data = ArraySet(task.x.numpy(), task.y.numpy())
    features = collect(fitted_network(task, planted_mlp), data, [(task.event, 0)])
    own = np.flatnonzero(task.y.numpy() == 0)
    few = task.benign(0)[:10]
    features.logits[torch.from_numpy(few)] = torch.eye(features.logits.shape[1])[1]
    judge = Judge(Sight(features, 0, own), Clock())
    controls = judge._controls[0]

    judge.take_controls(few)

    assert torch.equal(judge._controls[0], controls) and len(controls) > 0


def test_what_a_whole_label_comes_to_is_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second event of a label unlearns nothing for it; a note of another form is as good as none."""
    task = planted()
    features = collect(fitted_network(task, planted_mlp), ArraySet(task.x.numpy(), task.y.numpy()), [(task.event, 0)])
    y = task.y.numpy()
    own, others, notes = np.flatnonzero(y == 0), np.flatnonzero(y != 0), Notes(tmp_path, len(y), "")
    first = Judge(Sight(features, 0, own), Clock()).whole_label(others, notes)

    again = Judge(Sight(features, 0, own), Clock())
    unlearned = Mock(wraps=again._unlearn)
    monkeypatch.setattr(again, "_unlearn", unlearned)

    assert again.whole_label(others, notes) == first
    assert not unlearned.called
    notes.keep("heads", b"0", {"weight": np.zeros((3, 1, 1), np.float32), "bias": np.zeros((3, 1), np.float32)})
    assert again.whole_label(others, notes) == first
    assert unlearned.called


@pytest.mark.parametrize(("n", "is_part"), [(30, False), (70, False), (29, True), (50, True)])
def test_a_part_is_less_than_a_side_of_its_split(n: int, is_part: bool) -> None:
    """Either side of it is no part, nor is what was never split."""
    split = Split(torch.arange(100) < 30, torch.zeros(100), 8.0)
    suspect = Suspect(0, np.arange(n), Losses(0, 0, 0, 0), Losses(0, 0, 0, 0), 100 - n, split)

    assert suspect.is_part == is_part
    assert not dataclasses.replace(suspect, split=None).is_part
