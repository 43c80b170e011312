"""What an event sees of a set of samples: worked out once for all that ask.

The search, the scores of single samples, the plane in the report and the samples nearest to the event look at the same
label through the same event.
"""

from dataclasses import replace
from functools import cached_property
from math import inf

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from poisontrace._blocks import Blocks
from poisontrace._record import Indices, evenly
from poisontrace._types import Coordinates
from poisontrace.clustering import ONE_KIND, TWO_KINDS, Split, posterior, separate
from poisontrace.embedding import Features
from poisontrace.origins import MIN_LABELS, Origins, taken_from
from poisontrace.pictures import Pictures
from poisontrace.scoring import Conditioned, Unconditioned, condition, layer_at, standardise
from poisontrace.spaces import N_FOLDS, Space, leading, principal

HARDLY = 0.1  # of all other samples: fewer are hardly any
# Of samples of many labels this share is spread at least so much; of an ordinary kind with some wrong labels hardly.
BULK, LITTLE_SPREAD = 0.7, 0.35
N_NEAREST, N_GATHERED = 10, 500  # samples that are near to one, and of a cluster at most that are asked for theirs
N_ELSEWHERE = 2_000  # samples that stand for all of other labels: a share to within about a hundredth


class Sight:
    """Some training samples as one event sees them.

    Attributes:
        indices: (n,), which.
        features: of the training set.
        event: row of the event.
    """

    def __init__(self, features: Features, event: int, indices: Indices, pictures: Pictures | None = None) -> None:
        """Take at least two samples; nothing is worked out before it is asked for.

        ``pictures`` are those of the training set, where the samples are all of one label.
        """
        self.indices, self.features, self.event, self._pictures = indices, features, event, pictures
        self._apart: tuple[Tensor, tuple[float, ...]] | None = None  # of the poison that was asked about last

    @cached_property
    def seen(self) -> Conditioned:
        """Which of them lean the event's way, and which agree with it."""
        return condition(self.features, self.event, self.indices)

    @cached_property
    def leaning(self) -> Space:
        """Their principal coordinates by what they lean on."""
        return principal(self.seen.leaning.x)

    @cached_property
    def agreements(self) -> tuple[Space, ...]:
        """Their principal coordinates by what they agree on, a layer each."""
        return tuple(principal(view.x) for view in self.seen.agreements)

    @cached_property
    def unconditioned(self) -> Space:
        """Their principal coordinates whatever the event."""
        return principal(Unconditioned(self.features, self.indices).x)

    @cached_property
    def pictures(self) -> Space | None:
        """Their pixels; None if they are no images, or not all of one label."""
        return self._pictures.of(self.indices) if self._pictures else None

    @cached_property
    def origins(self) -> Origins:
        """What they bring along of other labels."""
        return Origins(self.features, self.indices)

    @cached_property
    def outside(self) -> Indices:
        """Training samples that stand for all that are not among them, ``N_ELSEWHERE`` at most."""
        return evenly(np.setdiff1d(np.arange(len(self.features.labels)), self.indices), N_ELSEWHERE)

    @cached_property
    def contrasted(self) -> Space | None:
        """Their coordinates by what they lean on along the directions in which samples outside vary least beside them.

        None if there are hardly any outside.
        """
        if len(self.outside) < N_FOLDS:
            return None
        return self.leaning.against(self.seen.leaning.others(torch.from_numpy(self.outside)))

    def diversity(self, cluster: Indices) -> float:
        """Return how much more diverse some of them are than the rest; from 1 on they were relabelled.

        The rest may hold wrong labels, as other labels do; so what hardly another sample is like is held against most
        of it only (decision 0043).
        """
        is_first = self._among(cluster)
        spread = self.origins.spread(is_first)
        diversity = spread - self.origins.spread(~is_first)
        if spread < 1:
            return diversity
        if (of_most := self.origins.spread(is_first, BULK)) < LITTLE_SPREAD:
            return min(diversity, of_most)
        is_rare = self.share_elsewhere(cluster)[0] <= HARDLY
        return spread - self.origins.spread(~is_first, BULK) if is_rare else diversity

    def relabelled(self, split: Split) -> Split:
        """Return a split with its diversity, the first cluster that of relabelled samples if either is."""
        if split.separation < ONE_KIND or not self.origins.rankings:
            return split
        first, second = (self.indices[side.numpy()] for side in (split.is_first, ~split.is_first))
        diversity = self.diversity(first)
        if diversity < 1 and (of_second := self.diversity(second)) >= 1:
            split, diversity = split.flipped(), of_second
        return replace(split, diversity=max(0.0, diversity))

    def spread(self, cluster: Indices) -> float:
        """Return how diverse some of them are, whatever the rest is."""
        return self.origins.spread(self._among(cluster))

    def spread_of_most(self, cluster: Indices) -> float:
        """Return the same of those that lie closest together: of an ordinary kind only a few may be of other labels."""
        return self.origins.spread(self._among(cluster), BULK)

    def variety(self, cluster: Indices) -> float:
        """Return how much some of them differ as they enter the network: the variance, over that of the rest.

        Pictures of one scene hardly differ, whatever they show.

        Args:
            cluster: two at least of ``indices``, and as many others.
        """
        features, rest = self.features, np.setdiff1d(self.indices, cluster)
        of_cluster, of_rest = (
            layer_at(features.activations[0], torch.from_numpy(rows), features.memory) for rows in (cluster, rest)
        )
        _, std, is_constant = standardise(of_rest)
        shares = (of_cluster.moments()[1] / std.square())[~is_constant]
        return float(shares.mean()) if len(shares) else 1.0

    @cached_property
    def _spaces(self) -> tuple[Space, ...]:
        """All coordinates that poison may be told apart by: of layers, and last of pixels if there are any."""
        of_layers = self.leaning, *self.agreements, self.unconditioned
        return (*of_layers, self.pictures) if self.pictures else of_layers

    def _apart_in(self, is_poison: Tensor) -> tuple[float, ...]:
        """Return how far apart each of the spaces tells poison, (n,) bool, in standard deviations."""
        if self._apart is None or not torch.equal(self._apart[0], is_poison):
            self._apart = (
                is_poison,
                tuple(separate(space, is_poison, max_rounds=1).separation for space in self._spaces),
            )
        return self._apart[1]

    def clearest(self, is_poison: Tensor) -> Space:
        """Return the coordinates that tell poison, (n,) bool, apart best."""
        apart = self._apart_in(is_poison)
        return self._spaces[apart.index(max(apart))]

    def settled(self, poison: Indices) -> tuple[Indices, float]:
        """Return poison as the images themselves tell it from the rest, if they do so better than all else.

        It is split anew by what is in the pixels, which ends at a split of its own: that is of another kind if less
        than half is common to both, and no better if it lies less far apart (decision 0045).

        Args:
            poison: some of ``indices``.

        Returns:
            the poison, and how far apart it lies from the rest in pixels, in standard deviations; 0 if it stays as it
            is given, because they tell it less well, or are none.
        """
        if self.pictures is None:
            return poison, 0.0
        is_poison = self._among(poison)
        split = separate(self.pictures, is_poison)
        n_common, n_either = int((split.is_first & is_poison).sum()), int((split.is_first | is_poison).sum())
        if 2 * n_common < n_either or split.separation < max(TWO_KINDS, *self._apart_in(is_poison)[:-1]):
            return poison, 0.0
        return self.indices[split.is_first.numpy()], split.separation

    def _among(self, cluster: Indices) -> Tensor:
        return torch.from_numpy(np.isin(self.indices, cluster))

    def position(self, cluster: Indices) -> float:
        """Return where the event lies along what tells a cluster from the rest: 0 is the mean of these, 1 its own.

        Args:
            cluster: some of ``indices``, ``N_FOLDS`` at least, and as many others.
        """
        is_first = self._among(cluster)
        return float(self.leaning.place(self.seen.leaning.event, is_first))

    def elsewhere(self, cluster: Indices) -> tuple[Tensor, Tensor]:
        """Return where samples outside lie along what tells a cluster from the rest: 0 is the mean of these, 1 its own.

        Args:
            cluster: some of ``indices``.

        Returns:
            positions and labels, (m,) each, one for each of the samples that stand for all outside; m may be 0, as it
            is for a cluster too small to be told from the rest.
        """
        n_first = int(self._among(cluster).sum())
        if not len(self.outside) or min(n_first, len(self.indices) - n_first) < N_FOLDS:
            return torch.empty(0, dtype=torch.float32), torch.empty(0, dtype=torch.int64)
        return self.places(cluster, self.outside), self.features.labels[torch.from_numpy(self.outside)]

    def places(self, cluster: Indices, others: Indices) -> Tensor:
        """Return where other training samples lie, (m,), along what tells a cluster from the rest; see ``position``."""
        rows = torch.from_numpy(others)
        return self.leaning.place(self.seen.leaning.others(rows), self._among(cluster))

    def share_elsewhere(self, cluster: Indices) -> tuple[float, float]:
        """Return how many samples outside, as a share, lie on a cluster's side of what tells it from the rest.

        What is planted hardly occurs in samples that nobody touched; what is ordinary does. Samples that were
        relabelled look like those of the labels they are from, so half of the labels must not count.

        Returns:
            of all, and of a label, the median one; 0 for the latter if there are fewer than ``MIN_LABELS`` labels.
        """
        position, labels = self.elsewhere(cluster)
        is_like = (position > 0.5).float()
        shares = sorted(float(is_like[labels == label].mean()) for label in set(labels.tolist()))
        usual = shares[(len(shares) - 1) // 2] if len(shares) >= MIN_LABELS else 0.0
        return float(is_like.mean()) if len(labels) else 0.0, usual

    def taken_from(self, cluster: Indices) -> tuple[Indices, float]:
        """Return the samples of the one other label that a cluster was taken from, if it was, and how clearly.

        Returns:
            samples outside, and how much more often the cluster lies nearest to them than to the rest of its label,
            beside how often they do themselves.
        """
        label, share = taken_from(self.features, cluster, np.setdiff1d(self.indices, cluster), self.outside)
        return self.outside[self.features.labels.numpy()[self.outside] == label], share

    def told_from_others(self, cluster: Indices, *, are_alike: bool = False) -> float:
        """Return how far a cluster lies from samples outside where the network begins, see ``told``.

        Args:
            cluster: some of ``indices``, ``N_FOLDS`` at least, and as many others.
            are_alike: whether to ask only those outside that lie on its side of what tells it from the rest.
        """
        others = self.outside
        if are_alike:
            others = others[(self.elsewhere(cluster)[0] > 0.5).numpy()]
        return self.told(cluster, others)

    def told(self, cluster: Indices, others: Indices) -> float:
        """Return how far a cluster lies from other training samples, in standard deviations, where the network begins.

        A trigger is seen in the first half of the layers; a wrong label that was learned by heart shows in the last
        ones only, and natural kinds of several labels are alike in both. Halves of one crowd come to 2.6. 0 if there
        are too few to say.
        """
        if min(len(cluster), len(others)) < N_FOLDS:
            return 0.0
        n_layers = (len(self.features.activations) + 1) // 2
        first_half = replace(self.features, activations=self.features.activations[:n_layers])
        space = principal(Unconditioned(first_half, np.concatenate([cluster, others])).x)
        return separate(space, torch.arange(len(space.x)) < len(cluster), max_rounds=1).separation

    def told_in_pixels(self, cluster: Indices) -> float:
        """Return how far a cluster lies from samples outside pixel by pixel, in standard deviations (decision 0050).

        The same trigger in the same place shows there, whatever the network makes of it. 0 if they are no images, or if
        there are too few to say.
        """
        if min(len(cluster), len(self.outside)) < N_FOLDS or (pixels := self.pixels(cluster, self.outside)) is None:
            return 0.0
        space = leading(Blocks.of(torch.cat(pixels), self.features.memory))
        return separate(space, torch.arange(len(space.x)) < len(cluster), max_rounds=1).separation

    def gathered(self, cluster: Indices, others: Indices) -> float:
        """Return how much a cluster lies together among other training samples, pixel by pixel (decision 0052).

        Of the ``N_NEAREST`` samples nearest to each of it, the share that is of it as well: 0 is what chance comes to,
        1 is all of them (a test of two samples: Schilling, *Multivariate two-sample tests based on nearest neighbors*,
        JASA 1986). 0 if they are no images, or too few.
        """
        cluster = evenly(cluster, N_GATHERED)
        if min(len(cluster), len(others)) <= N_NEAREST or (pixels := self.pixels(cluster, others)) is None:
            return 0.0
        distances = torch.cdist(pixels[0], torch.cat(pixels)).fill_diagonal_(inf)
        share = float((distances.topk(N_NEAREST, largest=False).indices < len(cluster)).float().mean())
        chance = (len(cluster) - 1) / (len(cluster) + len(others) - 1)
        return max(0.0, (share - chance) / (1 - chance))

    def at_home(self, cluster: Indices) -> float:
        """Return how many of a cluster, as a share, look like the rest of its label rather than like other labels.

        Pixel by pixel, along what tells those two from each other: what was relabelled still looks like what it was,
        whatever the network makes of it (decision 0045).

        Args:
            cluster: some of ``indices``, ``N_FOLDS`` at least, and as many others, where as many are outside.

        Returns:
            the share; 0 if they are no images, or if nothing tells labels apart.
        """
        if not self.origins.rankings:
            return 0.0
        # Of the others those count that lie nearest to the bulk of the label: they may be of many labels as well.
        from_bulk, others = torch.stack(self.origins.rankings).sum(0).numpy(), ~self._among(cluster).numpy()
        rest = self.indices[others][from_bulk[others].argsort(kind="stable")]
        rest = np.sort(rest[: max(N_FOLDS, len(rest) // 2)])
        pixels = self.pixels(rest, self.outside, cluster)
        if pixels is None:
            return 0.0
        position = _placed(*pixels, memory=self.features.memory)
        return float((position > 0.5).float().mean())

    def bears(self, cluster: Indices, others: Indices) -> float:
        """Return how much of what a cluster has, and samples outside have not, others have, pixel by pixel.

        The median of them: 1 if it is all of it, as of a trigger that both bear, 0 if it is nothing.

        Args:
            cluster: some of ``indices``, ``N_FOLDS`` at least.
            others: training samples.

        Returns:
            how much; 0 if they are no images, or if hardly any are outside.
        """
        pixels = self.pixels(cluster, self.outside, others) if len(self.outside) >= N_FOLDS else None
        return 0.0 if pixels is None else float(_placed(*pixels, memory=self.features.memory).median())

    def reach(self, first: Indices, second: Indices) -> float:
        """Return how far four in five of the samples outside lie from each other along what tells two clusters apart.

        Pixel by pixel, in distances between the two; infinite if they are no images.

        Args:
            first: some of ``indices``, ``N_FOLDS`` at least.
            second: others of them, as many.
        """
        pixels = self.pixels(first, second, self.outside)
        if pixels is None or not len(self.outside):
            return inf
        places = _placed(*pixels, memory=self.features.memory)
        return float(places.quantile(0.9) - places.quantile(0.1))

    def pixels(self, *clusters: Indices) -> tuple[Tensor, ...] | None:
        """Return the pixels of the samples of each cluster, (n, d) each; None if they are no images."""
        pixels = self._pictures.pixels(np.concatenate(clusters)) if self._pictures else None
        if pixels is None:
            return None
        ends = np.cumsum([len(cluster) for cluster in clusters])
        return tuple(pixels[end - len(cluster) : end] for cluster, end in zip(clusters, ends, strict=True))

    def certainty(self, poison: Indices) -> NDArray[np.float32]:
        """Return how surely each sample is poison, (n,) in [0, 1], where that is told apart best."""
        is_poison = self._among(poison)
        certainty: NDArray[np.float32] = posterior(self.clearest(is_poison), is_poison).numpy()
        return certainty

    def coordinates(self, poison: Indices) -> Coordinates:
        """Return where the samples lie: to be looked at, and to be re-scored."""
        is_poison = self._among(poison)
        space = self.clearest(is_poison)
        return Coordinates(self.indices, space.x.float().numpy(), space.plane(is_poison).float().numpy())

    def nearest(self, poison: Indices, n: int) -> Indices:
        """Return the responsible samples that lean the event's way most, the nearest first, filled up with -1 to n."""
        nearest = np.full(n, -1, np.int64)
        poison = np.intersect1d(self.indices, poison)
        if len(self.indices) > 1 and len(poison):
            likeness = self.seen.leaning.likeness.numpy()[np.isin(self.indices, poison)]
            first = poison[np.argsort(-likeness, kind="stable")[:n]]
            nearest[: len(first)] = first
        return nearest


def _placed(first: Tensor, others: Tensor, asked: Tensor, *, memory: int) -> Tensor:
    """Return where rows (m, d) lie, (m,), along what tells some (a, d) from others (b, d): 1 and 0 are their means."""
    known = leading(Blocks.of(torch.cat([first, others]), memory))
    return known.place(Blocks.of(asked, memory), torch.arange(len(known.x)) < len(first))


class Sights:
    """What each event sees of its own label; of the last event that was asked about, it is kept."""

    def __init__(self, features: Features, pictures: Pictures | None = None) -> None:
        """Look at nothing yet."""
        self._features, self._labels, self._pictures = features, features.labels.numpy(), pictures
        self._last: tuple[int, Sight] | None = None

    def of(self, event: int) -> Sight:
        """Return what an event sees of the samples of the label that it was given."""
        if self._last is None or self._last[0] != event:
            own = np.flatnonzero(self._labels == int(self._features.event_logits[event].argmax()))
            self._last = event, Sight(self._features, event, own, self._pictures)
        return self._last[1]
