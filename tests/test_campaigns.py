"""Several events: one campaign where they lead to the same samples, and its members by their mean score."""

import numpy as np
from numpy.typing import NDArray

from poisontrace._types import Finding
from poisontrace.campaigns import Campaigns, settled


def _found(
    label: int, poison: list[int], *, sure: float = 0.9, doubt: float = 0.2
) -> tuple[Finding, NDArray[np.float32]]:
    """Return a finding among 20 samples, and scores that fit it."""
    scores = np.full(20, doubt, np.float32)
    scores[poison] = sure
    return Finding(label, 0.9, "poison", np.array(poison, np.int64), {}), scores


def _campaigns(*found: tuple[Finding, NDArray[np.float32]]) -> Campaigns:
    campaigns = Campaigns()
    for event, (finding, scores) in enumerate(found):
        campaigns.add(event, finding, scores)
    return campaigns


def test_events_that_lead_to_the_same_samples_vote() -> None:
    """Each of three missed one sample and took one too many: together they have it right."""
    found = [
        _found(0, [1, 2, 3, 4, 5, 6, 10]),
        _found(0, [2, 3, 4, 5, 6, 7, 11]),
        _found(0, [1, 2, 3, 5, 6, 7, 12]),
    ]

    (campaign,) = _campaigns(*found).closed()

    assert campaign.events == (0, 1, 2)
    assert campaign.poison.tolist() == [1, 2, 3, 4, 5, 6, 7]


def test_one_event_alone_has_its_way() -> None:
    """Its samples and its scores, as they are."""
    finding, scores = _found(3, [4, 7], sure=0.5, doubt=0.49)

    campaigns = _campaigns((finding, scores))

    assert campaigns.closed()[0].poison.tolist() == [4, 7]
    assert np.array_equal(campaigns.scores(20), scores)


def test_other_samples_or_another_label_are_another_campaign() -> None:
    """Two triggers for one label, and one for another, in the order of their first events."""
    campaigns = _campaigns(
        _found(0, [1, 2, 3]), _found(0, [3, 4, 5, 6]), _found(1, [1, 2, 3]), _found(0, [1, 2]), _found(0, [4, 5, 6])
    ).closed()

    assert [(one.label, one.events) for one in campaigns] == [(0, (0, 3)), (0, (1, 4)), (1, (2,))]
    assert campaigns[0].poison.tolist() == [1, 2, 3]


def test_campaigns_may_be_kept_apart() -> None:
    """Though they lead to the same samples."""
    campaigns = Campaigns(are_joint=False)
    for event in range(2):
        campaigns.add(event, *_found(0, [1, 2, 3]))

    assert [one.events for one in campaigns.closed()] == [(0,), (1,)]


def test_scores_are_those_of_the_campaign_a_sample_belongs_to_most() -> None:
    """The highest of the campaigns' means; nothing where there is no campaign."""
    campaigns = _campaigns(_found(0, [1, 2]), _found(0, [1, 2], sure=0.7), _found(1, [9], doubt=0.1))

    scores = campaigns.scores(20)

    np.testing.assert_allclose(scores[[1, 9, 0]], [0.8, 0.9, 0.2], rtol=1e-6)
    assert not Campaigns().scores(20).any()


def test_an_adopted_event_has_no_vote_and_the_campaigns_samples() -> None:
    """It led nowhere itself; the others stay as they were."""
    campaigns = _campaigns(_found(0, [1, 2, 3, 5]), _found(0, [1, 2, 4, 5]))
    before = campaigns.scores(20)
    nothing = Finding(0, 0.9, "no-poison", np.array([], np.int64), {}, np.array([7]), "like others")

    campaigns.adopt(2, 0)
    findings = settled([_found(0, [1, 2, 3, 5])[0], _found(0, [1, 2, 4, 5])[0], nothing, nothing], campaigns.closed())

    assert campaigns.closed()[0].events == (0, 1, 2)
    np.testing.assert_allclose(campaigns.scores(20), before, rtol=1e-6)
    assert [finding.verdict for finding in findings] == ["poison", "poison", "poison", "no-poison"]
    assert [finding.poison.tolist() for finding in findings] == [[1, 2, 3, 4, 5]] * 3 + [[]]
    assert [(finding.suspects.tolist(), finding.doubt) for finding in findings[2:]] == [([], ""), ([7], "like others")]
