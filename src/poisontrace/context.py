"""What one event is traced with: search, test, doubt and hearing all ask it."""

from dataclasses import dataclass
from functools import cached_property

from poisontrace._record import Clock, Indices, Tree
from poisontrace.embedding import Features
from poisontrace.judging import Config, Judge, Suspect
from poisontrace.kinds import Kinds
from poisontrace.marks import Marks
from poisontrace.notes import Notes
from poisontrace.sights import Sight, Sights


@dataclass(frozen=True)
class Context:
    """What one event is traced with, and the tree that it fills."""

    features: Features
    tree: Tree
    sights: Sights
    kinds: Kinds
    marks: Marks
    notes: Notes
    config: Config
    clock: Clock

    @property
    def event(self) -> int:
        """Row of the event."""
        return self.tree.event

    @property
    def sight(self) -> Sight:
        """What the event sees of all samples of the label that it was given."""
        return self.sights.of(self.event)

    @property
    def own(self) -> Indices:
        """All samples of that label."""
        return self.sight.indices

    @cached_property
    def judge(self) -> Judge:
        """Unlearns for it."""
        return Judge(self.sight, self.clock)

    @property
    def spared(self) -> float:
        """By how much the loss of controls may rise, in nats."""
        return self.config.spared(self.features.logits.shape[1])

    def may_split(self, suspect: Suspect) -> bool:
        """Whether a cluster is large enough to be split, and not too far down the tree."""
        depth = self.tree.depth(suspect.parent)
        return len(suspect.cluster) >= self.config.min_cluster and depth < self.config.max_depth

    def beyond_mark(self, cluster: Indices, but: Indices | None = None) -> float:
        """Return how far a cluster of rows lies from others but for the mark; 0 if it is of many labels: no family.

        ``but`` are rows that it is not held against.
        """
        if self.kinds.are_rows and self.sight.diversity(cluster) >= 1:
            return 0.0
        return self.kinds.beyond_mark(self.event, cluster, but)

    def margin(self, suspect: Suspect, beyond: float = 0.0) -> float:
        """Return how well the conditions for accusing a suspect are met."""
        return suspect.margin(self.config, self.spared, beyond)
