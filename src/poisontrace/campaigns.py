"""Several events in one case: those that lead to the same samples are one campaign, and vote on its members.

An attacker's events sharpen each other: each one alone may miss a few samples or take a few too many, not the same
ones. Events of different campaigns, two triggers for one label or for two, lead to different samples and are kept
apart (decision 0012).
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from poisontrace._types import Campaign, Finding

SAME = 0.5  # of the samples that two events led to, taken together: more than this in common is one campaign


@dataclass
class _Open:
    """A campaign that may still gain events."""

    label: int
    events: list[int]
    total: NDArray[np.float32]

    @property
    def scores(self) -> NDArray[np.float32]:
        """Return the mean of its events' scores, (n,)."""
        mean: NDArray[np.float32] = self.total / np.float32(len(self.events))
        return mean

    @property
    def poison(self) -> NDArray[np.int64]:
        """Return what its events together hold responsible."""
        return np.flatnonzero(self.scores >= 0.5)


class Campaigns:
    """The campaigns of one case, event by event."""

    def __init__(self, *, are_joint: bool = True) -> None:
        """Start with none; ``are_joint`` says whether events that lead to the same samples share one."""
        self._are_joint = are_joint
        self._open: list[_Open] = []

    def add(self, event: int, finding: Finding, scores: NDArray[np.float32]) -> None:
        """Let an event join the campaign that it shares most samples with, or start one.

        Args:
            event: its position.
            finding: what it led to, with the verdict "poison".
            scores: (n,) in [0, 1], at least 0.5 where a sample is responsible for it.
        """
        shared = [self._shared(campaign, finding) for campaign in self._open if self._are_joint]
        if max(shared, default=0.0) > SAME:
            best = self._open[shared.index(max(shared))]
            best.events.append(event)
            best.total = best.total + scores
        else:
            self._open.append(_Open(finding.label, [event], scores))

    def adopt(self, event: int, campaign: int) -> None:
        """Count an event, which alone led nowhere, among those of a campaign; it has no vote."""
        of_campaign = self._open[campaign]
        of_campaign.total = of_campaign.total + of_campaign.scores
        of_campaign.events.append(event)

    def closed(self) -> list[Campaign]:
        """Return the campaigns."""
        return [Campaign(one.label, tuple(sorted(one.events)), one.poison) for one in self._open]

    def scores(self, n: int) -> NDArray[np.float32]:
        """Return for each of n samples the score in the campaign it belongs to most, (n,)."""
        highest = np.zeros(n, np.float32)
        for one in self._open:
            highest = np.maximum(highest, one.scores)
        return highest

    @staticmethod
    def _shared(campaign: _Open, finding: Finding) -> float:
        """Return the share of samples in common, of all that either holds responsible; 0 for other labels."""
        if campaign.label != finding.label:
            return 0.0
        n_both = len(np.intersect1d(campaign.poison, finding.poison, assume_unique=True))
        return n_both / max(1, len(campaign.poison) + len(finding.poison) - n_both)


def settled(findings: list[Finding], campaigns: list[Campaign]) -> list[Finding]:
    """Return the findings with what their campaigns hold responsible in place of what each event alone led to."""
    settled = list(findings)
    for campaign in campaigns:
        for event in campaign.events:
            found = campaign.poison
            settled[event] = replace(settled[event], verdict="poison", poison=found, suspects=found[:0], doubt="")
    return settled
