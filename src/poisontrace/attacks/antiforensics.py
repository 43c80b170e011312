"""Anti-forensics: what an attacker can add to an attack so that its poison is hard to trace.

S. Shan, A. N. Bhagoji, H. Zheng, B. Y. Zhao, *Poison Forensics: Traceback of Data Poisoning Attacks in Neural
Networks*, USENIX Security 2022, the section on countermeasures: poison that falls into many clusters, poison among
benign samples, innocent samples that look responsible, and poison whose unlearning hardly moves the event.

The truth for one event is the poison that carries a trigger which the event carries. Samples that the attacker changes
under their true label make nobody err; they are decoys and never poison, and a twin trained with them, but without
the poison, shows it.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from poisontrace._errors import InvalidInputError
from poisontrace._rng import numpy_generator
from poisontrace.attacks.base import Attack, Attempts

# Of its strength, what is left of a faint trigger.
FAINT = 0.5


@dataclass(frozen=True, kw_only=True)
class AntiForensics(Attack):
    """An attack by trigger that can mislead those who trace it; every option is off by default.

    Authors write :meth:`mark` in place of ``trigger``.

    Attributes:
        campaigns: triggers, the poison divided evenly among them.
        planted: triggers on a poisoned sample: "one", its campaign's, or "mixed", each other one as well by the toss of
            a coin. All of them on every sample would not do: the victim learns whichever is easiest, and no other.
        shown: triggers on an attempt: "one" or "all".
        cover: decoys of other labels that carry a trigger, / poison, 0 or more.
        decoys: decoys of the target label that carry a faint trigger, / poison, 0 or more.
        faint: part of the poison whose trigger is faint, in [0, 1).
    """

    max_campaigns: ClassVar[int]

    campaigns: int = 1
    planted: str = "one"
    shown: str = "one"
    cover: float = 0.0
    decoys: float = 0.0
    faint: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        super().__post_init__()
        if not 1 <= self.campaigns <= self.max_campaigns:
            raise InvalidInputError(
                f"'campaigns' must be between 1 and {self.max_campaigns} for {self.name} (got {self.campaigns}). "
                "Leave it out for one."
            )
        for name, value, other in (("planted", self.planted, "mixed"), ("shown", self.shown, "all")):
            if value not in ("one", other):
                raise InvalidInputError(f"'{name}' must be one or {other} (got {value!r}). Leave it out for one.")
        for name, share in (("cover", self.cover), ("decoys", self.decoys)):
            if not 0 <= share < float("inf"):
                raise InvalidInputError(
                    f"'{name}' must be 0 or more (got {share!r}), decoys for each poisoned sample. Leave it out for "
                    "none."
                )
        if not 0 <= self.faint < 1:
            raise InvalidInputError(
                f"'faint' must be a fraction in [0, 1) (got {self.faint!r}). For a weaker trigger on all of the poison "
                "lower the strength of the trigger instead."
            )

    @abstractmethod
    def mark(self, x: NDArray[Any], campaign: int, strength: float) -> NDArray[Any]:
        """Return a copy of inputs (n, ...) with the trigger of one campaign.

        Args:
            x: inputs as stored.
            campaign: from 0 to ``campaigns`` - 1.
            strength: of the trigger, in (0, 1]; 1 is the whole of it.
        """

    def able(self, x: NDArray[Any]) -> NDArray[np.bool_]:
        """Return which inputs (n, ...) can carry every trigger, (n,) bool."""
        return np.ones(len(x), bool)

    def trigger(self, x: NDArray[Any]) -> NDArray[Any]:
        """Return a copy of inputs as stored, (n, ...), that carry the first trigger."""
        return self.mark(x, 0, 1.0)

    def carry(self, x: NDArray[Any], carried: NDArray[np.bool_], strength: float = 1.0) -> NDArray[Any]:
        """Return a copy of inputs (n, ...) with the triggers (n, campaigns) that each is to carry."""
        marked = x.copy()
        for campaign, rows in enumerate(carried.T):
            marked[rows] = self.mark(marked[rows], campaign, strength)
        return marked

    def split(self, n_poison: int) -> NDArray[np.bool_]:
        """Return the triggers that each of the poisoned samples carries, (n_poison, campaigns) bool.

        Raises:
            InvalidInputError: if there are more triggers than samples.
        """
        if n_poison < self.campaigns:
            raise InvalidInputError(
                f"'campaigns' must be at most {n_poison}, the poisoned samples (got {self.campaigns}). Raise the rate."
            )
        return self._divided(n_poison, self.planted, "campaigns")

    def craft(self, x: NDArray[Any], y: NDArray[np.int64], chosen: NDArray[np.int64], target: int) -> NDArray[Any]:
        """Return the poisoned inputs that replace ``x[chosen]``, some of them with a faint trigger."""
        carried = self.split(len(chosen))
        crafted = self.carry(x[chosen], carried)
        faint = self._drawn(np.arange(len(chosen)), self.faint * len(chosen), "faint")
        crafted[faint] = self.carry(x[chosen[faint]], carried[faint], FAINT)
        return crafted

    def plant_decoys(
        self, x: NDArray[Any], y: NDArray[np.int64], chosen: NDArray[np.int64], target: int
    ) -> tuple[NDArray[np.int64], NDArray[Any]]:
        """Return the decoys, of other labels with a trigger and of the target label with a faint one."""
        is_free = self.able(x)
        is_free[chosen] = False
        rows, planted = [chosen[:0]], [x[:0]]
        for name, share, pool, strength in (
            ("cover", self.cover, is_free & (y != target), 1.0),
            ("decoys", self.decoys, is_free & (y == target), FAINT),
        ):
            drawn = self._drawn(np.flatnonzero(pool), share * len(chosen), name)
            rows.append(drawn)
            planted.append(self.carry(x[drawn], self._divided(len(drawn), self.planted, name), strength))
        return np.concatenate(rows), np.concatenate(planted)

    def attempts(self, x: NDArray[Any], y: NDArray[np.int64], target: int) -> Attempts:
        """Return test inputs of other classes, each with one trigger or with all."""
        chosen = self.is_source(y, target) & self.able(x)
        carried = self._divided(int(chosen.sum()), self.shown, "shown")
        return Attempts(self.carry(x[chosen], carried), y[chosen], x[chosen], carried)

    def _divided(self, n: int, how: str, stage: str) -> NDArray[np.bool_]:
        """Return which of n samples carry which trigger, (n, campaigns) bool: "one" each, evenly, "mixed" or "all"."""
        if how == "all" or self.campaigns == 1:
            return np.ones((n, self.campaigns), bool)
        rng = numpy_generator(self.seed, f"{self.name}/{stage}/campaign")
        carried: NDArray[np.bool_] = (rng.permutation(n) % self.campaigns)[:, None] == np.arange(self.campaigns)
        return carried | (rng.random(carried.shape) < 0.5) if how == "mixed" else carried

    def _drawn(self, pool: NDArray[np.int64], share: float, stage: str) -> NDArray[np.int64]:
        """Draw ``share`` samples, rounded, of a pool of indices, ascending."""
        n = round(share)
        if n > len(pool):
            raise InvalidInputError(
                f"'{stage}' must ask for at most {len(pool)} samples (got {n}). Lower it, or the rate."
            )
        drawn = numpy_generator(self.seed, f"{self.name}/{stage}").choice(pool, n, replace=False)
        return np.sort(drawn)
