"""What a trace writes down while it runs: the clusters of one event, and the time of each stage."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from poisontrace._types import Cluster, Decision, Losses

Indices = NDArray[np.int64]


def evenly(indices: Indices, limit: int) -> Indices:
    """Return at most ``limit`` of the indices, evenly spread over their order."""
    if len(indices) <= limit:
        return indices
    return indices[np.linspace(0, len(indices) - 1, limit).round().astype(np.int64)]


class Tree:
    """The clusters of one event, parents before children."""

    def __init__(self, event: int, first_id: int) -> None:
        self.event, self.clusters, self._first_id = event, list[Cluster](), first_id

    @property
    def next_id(self) -> int:
        """The id that the next cluster gets."""
        return self._first_id + len(self.clusters)

    def add(self, parent: int | None, indices: Indices, losses: Losses | None, decision: Decision, reason: str) -> int:
        """Add a cluster and return its id."""
        new = self.next_id
        self.clusters.append(Cluster(new, parent, self.event, indices, losses, decision, reason))
        return new

    def decide(self, cluster: int, decision: Decision, reason: str) -> None:
        """Change what was decided on a cluster."""
        self.clusters[cluster - self._first_id] = replace(self[cluster], decision=decision, reason=reason)

    def __getitem__(self, cluster: int) -> Cluster:
        """Return a cluster by its id."""
        return self.clusters[cluster - self._first_id]

    def leaves(self, among: Indices) -> list[Cluster]:
        """Return the clusters of some samples alone that are not split."""
        leaves = [cluster for cluster in self.clusters if cluster.decision != "split"]
        return [cluster for cluster in leaves if np.isin(cluster.indices, among).all()]

    def depth(self, cluster: int | None) -> int:
        """Return how many clusters lie above and including this one."""
        depth = 0
        while cluster is not None:
            cluster, depth = self[cluster].parent, depth + 1
        return depth


class Clock:
    """Wall time by stage; a stage entered twice adds up."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time that the block takes to ``name``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
