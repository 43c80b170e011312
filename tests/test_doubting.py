"""What speaks against an accusation: what is ordinary."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tasks import context_of, events_of

from poisontrace import doubting
from poisontrace._types import Losses
from poisontrace.clustering import Split
from poisontrace.context import Context
from poisontrace.data import ArraySet
from poisontrace.doubting import contradicted
from poisontrace.embedding import Features, collect
from poisontrace.incidents import Incident
from poisontrace.judging import Suspect
from poisontrace.kinds import Kinds
from poisontrace.sights import Sight


def _features(incident: Incident, event: int) -> Features:
    return collect(incident.model, ArraySet(incident.x, incident.y), [events_of(incident)[event]])


def _sees(monkeypatch: pytest.MonkeyPatch, **answers: Any) -> None:
    """Make every sight give these answers, by the name of what is asked, whatever the cluster."""
    for name, answer in answers.items():
        monkeypatch.setattr(Sight, name, lambda *asked, answer=answer, **options: answer)


@pytest.fixture
def is_narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no label be broad by nature."""
    monkeypatch.setattr(doubting, "_is_broad", lambda context, suspect: False)


def _suspect(context: Context, cluster: NDArray[np.int64]) -> Suspect:
    """Return a cluster of the label that was set apart from all of the rest, and of which nothing else speaks."""
    is_first, losses = torch.from_numpy(np.isin(context.own, cluster)), Losses(0, 5.0, 0, 0.0)
    return Suspect(0, cluster, losses, losses, len(context.own) - len(cluster), Split(is_first, is_first.float(), 15.0))


@pytest.mark.parametrize(
    ("share", "elsewhere", "usual", "diversity", "reason"),
    [
        (0.3, 0.0, 0.4, 1.2, None),
        (0.3, 0.0, 0.6, 1.2, "wrong labels"),
        (0.5, 0.95, 0.0, 0.6, "most samples of other labels"),
        (0.5, 0.8, 0.0, 0.6, None),
        (0.7, 0.8, 0.0, 0.6, "most samples of other labels"),
        (0.7, 0.8, 0.0, 0.9, None),
    ],
)
@pytest.mark.usefixtures("is_narrow")
def test_what_nearly_all_others_are_like_is_not_accused_with_doubt(
    digits_incident: Incident,
    monkeypatch: pytest.MonkeyPatch,
    share: float,
    elsewhere: float,
    usual: float,
    diversity: float,
    reason: str | None,
) -> None:
    """Relabelled samples without anything of their own; and the larger part of a label, the more of it the sooner."""
    context = context_of(_features(digits_incident, 0))
    _sees(monkeypatch, share_elsewhere=(elsewhere, usual), diversity=diversity, told_from_others=2.6, spread_of_most=1)
    monkeypatch.setattr(doubting, "relabelled_elsewhere", lambda *asked: 1.1)
    monkeypatch.setattr(Kinds, "smallest_beside", lambda kinds, cluster: 0)
    suspect = _suspect(context, context.own[: round(share * len(context.own))])

    against, why, figures = contradicted(context, suspect, 1.5)

    assert (against >= 1) == (reason is not None)
    assert reason is None or reason in why
    assert (figures["elsewhere"], figures["usual"], figures["diversity"]) == (elsewhere, usual, diversity)


@pytest.mark.parametrize(
    ("told", "relabelled", "margin", "is_let_go"),
    [(2.8, 1.2, 1.5, True), (2.8, 0.9, 1.5, False), (2.8, 0.0, 1.1, True), (5.5, 1.2, 1.5, False), (5.5, 0, 1, False)],
)
@pytest.mark.usefixtures("is_narrow")
def test_wrong_labels_have_nothing_that_tells_them_from_others_and_are_in_every_label(
    digits_incident: Incident,
    monkeypatch: pytest.MonkeyPatch,
    told: float,
    relabelled: float,
    margin: float,
    is_let_go: bool,
) -> None:
    """Relabelled samples are like those of other labels, where they are from; but a trigger tells them from these.

    Without one the accusation must be clear.
    """
    context = context_of(_features(digits_incident, 0))
    _sees(monkeypatch, share_elsewhere=(0.9, 0.95), diversity=1.2, told_from_others=told, spread_of_most=0.6)
    monkeypatch.setattr(doubting, "relabelled_elsewhere", lambda *asked: relabelled)

    against, reason, figures = contradicted(context, _suspect(context, context.own[:40]), margin)

    assert (against >= 1, "wrong labels" in reason, figures["told"]) == (is_let_go, True, told)


@pytest.mark.parametrize(
    ("elsewhere", "told", "of_most", "margin", "is_let_go"),
    [
        (0.3, 2.8, 0.6, 1.05, True),
        (0.3, 2.8, 0.6, 1.15, False),
        (0.3, 5.5, 0.6, 1.05, False),
        (0.05, 2.8, 0.6, 1.05, False),
        (0.05, 2.8, 0.4, 1.15, True),
        (0.05, 2.8, 0.4, 1.25, False),
        (0.05, 5.5, 0.4, 1.15, False),
    ],
)
@pytest.mark.usefixtures("is_narrow")
def test_a_kind_as_broad_as_relabelled_samples_are_is_in_other_labels_as_well(
    digits_incident: Incident,
    monkeypatch: pytest.MonkeyPatch,
    elsewhere: float,
    told: float,
    of_most: float,
    margin: float,
    is_let_go: bool,
) -> None:
    """If in fewer than half of them: without a trigger, where the network begins, the accusation must be clear.

    So it must if most of the samples barely are of many labels.
    """
    context = context_of(_features(digits_incident, 0))
    _sees(monkeypatch, share_elsewhere=(elsewhere, 0.2), diversity=1.2, told_from_others=told, spread_of_most=of_most)
    monkeypatch.setattr(doubting, "relabelled_elsewhere", lambda *asked: 0.0)

    assert (contradicted(context, _suspect(context, context.own[:60]), margin)[0] >= 1) == is_let_go


@pytest.mark.parametrize(
    ("part", "taken", "told", "gathered", "harm", "is_accused"),
    [
        (0.2, 0.8, 3.8, 0.0, 0.06, True),
        (0.1, 0.8, 3.8, 0.0, 0.06, True),
        (0.07, 0.8, 3.8, 0.0, 0.06, False),
        (0.2, 0.6, 3.8, 0.3, 0.06, False),
        (0.2, 0.8, 2.8, 0.15, 0.06, False),
        (0.2, 0.8, 2.8, 0.25, 0.06, True),
        (0.2, 0.8, 3.8, 0.3, 0.88, False),
        (0.5, 0.8, 3.8, 0.3, 0.06, False),
    ],
)
def test_a_trigger_may_be_in_every_label_if_its_samples_were_taken_from_the_one_before(
    digits_incident: Incident,
    monkeypatch: pytest.MonkeyPatch,
    part: float,
    taken: float,
    told: float,
    gathered: float,
    harm: float,
    is_accused: bool,
) -> None:
    """Or if they lie together there. Not so what is like another label but not of it, wrong labels, or half.

    Nor what ordinary samples suffer with, or what is several times as common in other labels: who plants in all of them
    plants as much in each.
    """
    context = context_of(_features(digits_incident, 0))
    _sees(monkeypatch, share_elsewhere=(0.4, 0.4), diversity=0.0, told_from_others=4.0)
    monkeypatch.setattr(Sight, "taken_from", lambda sight, cluster: (sight.outside[:40], taken))
    _sees(monkeypatch, told=told, gathered=gathered)
    monkeypatch.setattr(Suspect, "harm", lambda suspect: harm)

    against, _, _ = contradicted(context, _suspect(context, context.own[: round(part * len(context.own))]), 1.5)

    assert (against < 1) == is_accused


@pytest.mark.parametrize(
    ("n", "variety", "margin", "at_home", "is_let_go"),
    [
        (10, 0.02, 1.3, 0.0, True),
        (10, 0.2, 1.3, 0.0, False),
        (10, 0.02, 2.5, 0.0, False),
        (10, 0.02, 2.5, 0.9, True),
        (10, 0.2, 2.5, 0.9, False),
        (60, 0.02, 1.3, 0.0, False),
    ],
)
@pytest.mark.usefixtures("is_narrow")
def test_pictures_of_one_scene_are_not_accused_with_doubt(
    digits_incident: Incident,
    monkeypatch: pytest.MonkeyPatch,
    n: int,
    variety: float,
    margin: float,
    at_home: float,
    is_let_go: bool,
) -> None:
    """A few that are nearly copies of one another lie apart by nature; copies that were planted look like no label."""
    context = context_of(_features(digits_incident, 0))
    _sees(monkeypatch, share_elsewhere=(0.0, 0.0), diversity=1.2, variety=variety, spread_of_most=0.6, at_home=at_home)

    against, reason, _ = contradicted(context, _suspect(context, context.own[:n]), margin)

    assert ((against, reason) == (pytest.approx(5), "they are nearly copies of one another")) == is_let_go
    assert (against >= 1) == is_let_go


@pytest.mark.parametrize(
    ("share", "in_pixels", "at_home", "variety", "margin", "is_let_go"),
    [
        (0.3, 12.5, 0.1, 1.0, 1.5, False),
        (0.3, 11.5, 0.1, 1.0, 1.5, True),
        (0.3, 12.5, 0.9, 1.0, 1.5, True),
        (0.6, 12.5, 0.9, 1.0, 1.5, False),
        (0.1, 12.5, 0.1, 1.0, 1.5, False),
        (0.1, 12.5, 0.1, 0.2, 1.5, True),
    ],
)
def test_what_was_put_into_images_is_planted(
    digits_incident: Incident,
    monkeypatch: pytest.MonkeyPatch,
    share: float,
    in_pixels: float,
    at_home: float,
    variety: float,
    margin: float,
    is_let_go: bool,
) -> None:
    """Though the network makes the same of others; but what looks like its label, or is a film, may be natural."""
    context = context_of(_features(digits_incident, 0))
    _sees(monkeypatch, share_elsewhere=(0.9, 0.9), diversity=0.2, told_from_others=0.0, taken_from=(context.own, 0.0))
    _sees(monkeypatch, told_in_pixels=in_pixels, at_home=at_home, variety=variety)
    suspect = _suspect(context, context.own[: round(share * len(context.own))])

    against, _, figures = contradicted(context, suspect, margin)

    assert (against >= 1, figures.get("in_pixels")) == (is_let_go, None if is_let_go else in_pixels)


@pytest.mark.parametrize(("at_home", "is_let_go"), [(0.75, False), (0.85, True)])
@pytest.mark.usefixtures("is_narrow")
def test_what_is_seen_early_but_looks_like_its_label_is_natural(
    digits_incident: Incident, monkeypatch: pytest.MonkeyPatch, at_home: float, is_let_go: bool
) -> None:
    """Hardly another sample is like some kinds of a label, and they are told early as well."""
    context = context_of(_features(digits_incident, 0))
    _sees(monkeypatch, share_elsewhere=(0.05, 0.0), diversity=0.2, told_from_others=7.0, taken_from=(context.own, 0.0))
    _sees(monkeypatch, at_home=at_home)
    monkeypatch.setattr(Kinds, "is_surplus", lambda kinds, cluster: False)

    against, _, _ = contradicted(context, _suspect(context, context.own[: len(context.own) // 3]), 1.5)

    assert (against >= 1) == is_let_go


@pytest.mark.parametrize(
    ("share", "at_home", "diversity", "gap", "margin", "is_let_go"),
    [
        (0.3, 0.85, 1.2, 2.0, 1.5, True),
        (0.3, 0.75, 1.2, 2.0, 1.5, False),
        (0.3, 0.85, 1.2, 0.5, 2.5, True),
        (0.3, 0.85, 1.2, 2.0, 2.5, False),
        (0.3, 0.85, 0.9, 2.0, 2.5, False),
        (0.6, 0.85, 1.2, 2.0, 1.5, False),
    ],
)
@pytest.mark.usefixtures("is_narrow")
def test_what_was_relabelled_does_not_look_like_its_label(
    digits_incident: Incident,
    monkeypatch: pytest.MonkeyPatch,
    share: float,
    at_home: float,
    diversity: float,
    gap: float,
    margin: float,
    is_let_go: bool,
) -> None:
    """Asked of what rests on that alone, or with doubt; of half of a label or more the rest may be what was planted.

    The rest of a part is: what looks like it may look like poison.
    """
    context = context_of(_features(digits_incident, 0))
    _sees(monkeypatch, share_elsewhere=(0.05, 0.0), diversity=1.2, at_home=at_home, variety=1.0, spread_of_most=1)
    monkeypatch.setattr(Kinds, "smallest_beside", lambda kinds, cluster: 0)
    suspect = _suspect(context, context.own[: round(share * len(context.own))])
    assert suspect.split is not None
    split = dataclasses.replace(suspect.split, diversity=diversity, gap=gap)

    against, reason, _ = contradicted(context, dataclasses.replace(suspect, split=split), margin)

    assert (against >= 1, "look like their label" in reason) == (is_let_go, is_let_go)
    part = dataclasses.replace(suspect, split=split, cluster=suspect.cluster[5:])
    assert part.is_part and "look like their label" not in contradicted(context, part, margin)[1]


@pytest.mark.parametrize(
    ("share", "elsewhere", "diversity", "is_known", "enough"),
    [
        (0.5, 0.2, 0.4, True, 2),
        (0.1, 0.2, 0.4, True, 2),
        (0.1, 0.0, 0.4, True, 2),
        (0.5, 0.2, 0.6, True, 1.2),
        (0.1, 0.2, 0.4, False, 1),
    ],
)
def test_what_shows_no_sign_of_having_been_planted_is_not_accused_with_doubt(
    digits_incident: Incident,
    monkeypatch: pytest.MonkeyPatch,
    share: float,
    elsewhere: float,
    diversity: float,
    is_known: bool,
    enough: float,
) -> None:
    """However much of its label it is, and whether other labels hold it or not; a label may grow as well.

    Some sign takes less of a margin. Where nothing tells labels apart nobody knows.
    """
    context = context_of(_features(digits_incident, 0))
    _sees(
        monkeypatch, share_elsewhere=(elsewhere, 0.0), diversity=diversity, variety=1.0, taken_from=(context.own, 0.0)
    )
    if not is_known:
        context.sight.origins.rankings = []
    suspect = _suspect(context, context.own[: round(share * len(context.own))])

    for margin in (1.1, 1.3, 1.9, 2.1):
        for is_surplus in (False, True):
            monkeypatch.setattr(Kinds, "is_surplus", lambda kinds, cluster, is_surplus=is_surplus: is_surplus)
            against, reason, _ = contradicted(context, suspect, margin)
            is_let_go = margin < enough and not is_surplus
            assert (against >= 1, "nothing shows" in reason) == (is_let_go, is_let_go)


def test_in_a_label_that_is_broad_by_nature_no_kind_shows_that_it_was_planted(
    digits_incident: Incident, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However diverse it is, and whatever tells it from others: most of its rest is of many labels as well."""
    context = context_of(_features(digits_incident, 0))
    _sees(monkeypatch, share_elsewhere=(0.0, 0.0), diversity=1.3, told_from_others=7.0, spread_of_most=0.8)
    _sees(monkeypatch, taken_from=(context.own, 0.0))
    monkeypatch.setattr(Kinds, "is_surplus", lambda kinds, cluster: False)
    suspect = _suspect(context, context.own[: len(context.own) // 4])

    doubted, sure = (contradicted(context, suspect, margin) for margin in (1.5, 2.5))
    monkeypatch.setattr(
        Sight, "spread_of_most", lambda sight, cluster: 0.8 if len(cluster) == len(suspect.cluster) else 0.4
    )

    assert doubted[0] >= 1 and "nothing shows" in doubted[1]
    assert sure[0] == contradicted(context, suspect, 1.5)[0] == 0


@pytest.mark.parametrize(
    ("share", "elsewhere", "told", "diversity", "variety", "is_let_go"),
    [
        (0.5, 0.05, 6.0, 0.0, 1.0, False),
        (0.5, 0.05, 4.9, 0.0, 1.0, True),
        (0.5, 0.11, 6.0, 0.0, 1.0, True),
        (0.3, 0.05, 6.0, 0.0, 1.0, False),
        (0.1, 0.05, 6.0, 0.0, 1.0, False),
        (0.1, 0.05, 5.9, 0.0, 1.0, True),
        (0.1, 0.05, 6.0, 0.0, 0.2, True),
        (0.1, 0.05, 2.8, 0.6, 1.0, True),
        (0.3, 0.05, 2.8, 0.6, 1.0, False),
        (0.3, 0.11, 2.8, 0.6, 1.0, True),
    ],
)
def test_what_hardly_another_sample_has_and_is_seen_early_is_a_trigger(
    digits_incident: Incident,
    monkeypatch: pytest.MonkeyPatch,
    share: float,
    elsewhere: float,
    told: float,
    diversity: float,
    variety: float,
    is_let_go: bool,
) -> None:
    """Though nobody relabelled its samples, ordinary ones suffer, and other labels hold as much.

    Or what shows, if not clearly, that it was relabelled. A few may be one film, and must differ and be told for sure.
    """
    context = context_of(_features(digits_incident, 0))
    _sees(monkeypatch, share_elsewhere=(elsewhere, 0.0), diversity=diversity, told_from_others=told, variety=variety)
    suspect = dataclasses.replace(
        _suspect(context, context.own[: round(share * len(context.own))]), losses=Losses(0, 5.0, 0, 1.0)
    )

    against, _, _ = contradicted(context, suspect, 1.5)

    assert (against >= 1) == is_let_go


@pytest.mark.parametrize(("n_left", "is_accused"), [(20, False), (100, True)])
def test_of_a_label_that_was_planted_in_something_is_left(
    digits_incident: Incident, monkeypatch: pytest.MonkeyPatch, n_left: int, is_accused: bool
) -> None:
    """A doubtful accusation of nearly all of a label, when others hold 140 samples or somewhat less."""
    label = int(digits_incident.event_y[0])
    others = np.flatnonzero(digits_incident.y != label)
    data = (
        digits_incident.x,
        np.where(np.isin(np.arange(len(digits_incident.y)), others[:400]), label, digits_incident.y),
    )
    own = np.flatnonzero(data[1] == label)
    context = context_of(collect(digits_incident.model, ArraySet(*data), [events_of(digits_incident)[0]]))
    _sees(monkeypatch, share_elsewhere=(0.0, 0.0), diversity=0.6)
    suspect = _suspect(context, own[n_left:])

    against, reason, _ = contradicted(context, suspect, 1.5)

    assert (against < 1) == is_accused
    assert "left" in reason
