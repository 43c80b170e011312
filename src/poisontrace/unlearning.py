"""Forget a cluster and see what the model no longer knows: the test of innocence of Poison Forensics section 4.3.

Only the last linear layer is fitted again, on features that are already there, so forgetting is a softmax regression:
strongly convex, with one answer. It is solved to convergence, because a head that is still moving mistakes its own
drift for guilt (decision 0004), and for all clusters of a level at once, as a batch of heads over the same features.
Each rank of a run has some of the rows; their losses and gradients are summed over all (decision 0016).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor

from poisontrace._blocks import MEMORY
from poisontrace._errors import UnlearningDivergedError
from poisontrace._record import evenly
from poisontrace.ranks import ALONE, Ranks

MAX_ROWS = 3000  # samples that stand for each cluster, and for those in none
MIN_ROWS, COPIES = 100, 5  # of them where memory is short; and copies of their features, in double precision
TETHER = 1e-3  # price of changing the logits, per squared unit; makes the problem strongly convex
RIDGE = 1e-4  # of each feature's second moment, where features are collinear
TINY = 1e-30  # of the largest: what a feature counts that is always zero
MAX_OPEN = 64  # classes that move freely
MAX_STEPS = 100
TOLERANCE = 1e-6  # of the largest entry of the gradient
_NOT_FINITE = "Unlearning must start and end in finite numbers (got NaN or infinity). Check the features."


@dataclass(frozen=True)
class Heads:
    """A batch of last linear layers.

    Attributes:
        weight: (b, k, d).
        bias: (b, k).
    """

    weight: Tensor
    bias: Tensor

    def losses(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Return the cross-entropy of each sample under each head, (b, n), in nats."""
        logits = torch.einsum("bkd,nd->bnk", self.weight, hidden) + self.bias[:, None]
        return logits.logsumexp(2) - logits.gather(2, labels[None, :, None].expand(len(logits), -1, 1))[..., 0]


@dataclass(frozen=True)
class _Rows:
    """Rows over which the objective is summed.

    Attributes:
        h: (u, d + 1), the features and a one.
        offset: (u, k), added to the logits.
        goal: (u, b, k), weights of the logits that each head is to answer.
        total: (u, b), their sums.
    """

    h: Tensor
    offset: Tensor
    goal: Tensor
    total: Tensor

    def __getitem__(self, rows: slice) -> "_Rows":
        return _Rows(*(part[rows] for part in (self.h, self.offset, self.goal, self.total)))

    def at(self, heads: Tensor) -> tuple[Tensor, Tensor]:
        """Return the cross-entropy with the goals under heads (b, k, d + 1), (1,), and its gradient, (b, k, d + 1)."""
        # The gradient written out: what a head answers less what it should, by the features. One product for all heads.
        logits = (self.h @ heads.flatten(0, 1).T).view(self.goal.shape)  # (u, d + 1) @ (d + 1, b k) -> (u, b, k)
        logits += self.offset[:, None]
        log_sum = logits.logsumexp(2, keepdim=True)
        loss = (self.total * log_sum[..., 0]).sum() - (self.goal * logits).sum()
        wrong = self.total[..., None] * (logits - log_sum).exp() - self.goal
        return loss[None], (wrong.flatten(1).T @ self.h).view(heads.shape)


def assist(ranks: Ranks) -> None:
    """Sum over this rank's rows whatever rank 0 unlearns, until that :func:`dismisses <dismiss>` it."""
    while True:
        u, b, k, d = ranks.tell(torch.zeros(4, dtype=torch.int64)).tolist()
        if not u:
            return
        n = len(ranks.part(u, 1))
        shapes = ((n, d), (n, k), (n, b, k), (n, b))
        rows = _Rows(*(ranks.receive(torch.empty(shape, dtype=torch.float64)) for shape in shapes))
        heads = torch.empty(b, k, d, dtype=torch.float64)
        while ranks.tell(torch.zeros(1, dtype=torch.int64)):
            ranks.sum(*rows.at(ranks.tell(heads)))


def dismiss(ranks: Ranks) -> None:
    """Let the ranks go that assist this one."""
    ranks.tell(torch.zeros(4, dtype=torch.int64))


@contextmanager
def _shared(rows: _Rows, ranks: Ranks) -> Iterator[Callable[[Tensor], tuple[Tensor, Tensor]]]:
    """Hand rows out to the ranks that assist; yield what sums the objective over all of them."""
    if ranks.size == 1:
        yield rows.at
        return
    u, b, k = rows.goal.shape
    ranks.tell(torch.tensor([u, b, k, rows.h.shape[1]]))
    own, *others = (ranks.part(u, 1, rank) for rank in range(ranks.size))
    for rank, part in enumerate(others, 1):
        theirs = rows[part.start : part.stop]
        for tensor in (theirs.h, theirs.offset, theirs.goal, theirs.total):
            ranks.send(tensor, rank)
    mine = rows[own.start : own.stop]

    def everywhere(heads: Tensor) -> tuple[Tensor, Tensor]:
        ranks.tell(torch.ones(1, dtype=torch.int64))
        loss, gradient = mine.at(ranks.tell(heads))
        ranks.sum(loss, gradient)
        return loss, gradient

    yield everywhere
    ranks.tell(torch.zeros(1, dtype=torch.int64))


def unlearn(
    hidden: Tensor,
    labels: Tensor,
    weight: Tensor,
    bias: Tensor,
    clusters: Sequence[NDArray[np.int64]],
    *,
    memory: int = MEMORY,
    max_rows: int | None = None,
    ranks: Ranks = ALONE,
) -> Heads:
    """Refit the last layer once for each cluster, to answer "don't know" on it and to keep the labels of the rest.

    Minimises, for each cluster S with the rest R, 1/n (sum over R of CE(W h + b, y) + sum over S of CE(W h + b,
    uniform)) + TETHER/2 times the mean squared change of the logits (plus RIDGE for the weights). An empty cluster
    gives the head that forgets nothing: what every other one is compared with.

    Of very many classes only ``MAX_OPEN`` move freely, those that the clusters are labelled or taken for; what is asked
    of all others is nearly the same for each, so they share one change (decision 0017).

    Paper: section 4.3; differs from it: converged L-BFGS on cached features instead of a fixed number of SGD steps
    through the network.

    Args:
        hidden: (n, d), inputs of the last linear layer.
        labels: (n,) int64.
        weight: of the trained layer, (k, d).
        bias: of the trained layer, (k,).
        clusters: sets of training indices; may be empty sets.
        memory: bytes to get along with; where it is short, fewer samples stand for each cluster.
        max_rows: samples that stand for each cluster, and for those in none; None for ``MAX_ROWS``.
        ranks: that share the work; this is rank 0, the others :func:`assist`.

    Raises:
        UnlearningDivergedError: if a head ends in numbers that are not finite.
    """
    n, k = len(hidden), weight.shape[0]
    is_in = torch.zeros(len(clusters), n, dtype=torch.bool)
    for b, cluster in enumerate(clusters):
        is_in[b, torch.from_numpy(cluster)] = True
    # Every head sees the same rows: those of each cluster, and of what is in none, up to a limit, speak for the others
    # of their part. A head fitted to other rows than the one it is compared with would be found to differ from it.
    order = labels.argsort(stable=True)  # by label, so that an even spread keeps every class
    part = torch.zeros(n, dtype=torch.int64)
    for b in range(len(clusters)):
        part += is_in[b].long() << b
    part = part[order]
    weight_of = torch.zeros(n, dtype=torch.float64)
    parts = torch.unique(part).tolist()
    max_rows = min(max_rows or MAX_ROWS, max(MIN_ROWS, memory // (COPIES * 8 * (hidden.shape[1] + 1) * len(parts))))
    for which in parts:
        rows = order[part == which]
        chosen = torch.from_numpy(evenly(rows.numpy(), max_rows))
        weight_of[chosen] = len(rows) / len(chosen) / n
    used = weight_of.nonzero()[:, 0]
    kept = hidden[used]
    if not all(bool(torch.isfinite(t).all()) for t in (kept, weight, bias)):
        raise UnlearningDivergedError(_NOT_FINITE)

    layer = torch.cat([weight, bias[:, None]], 1)  # (k, d + 1)
    h, root = _conditioned(kept, weight_of[used])
    start = layer.double() @ root
    is_open = _open_classes((h @ start.T).softmax(1), labels[used], is_in[:, used])
    first, price = start, torch.ones(k, 1, dtype=torch.float64)
    if not is_open.all():  # closed classes are one more, at the end, that starts without a change
        first = torch.cat([start[is_open], torch.zeros_like(start[:1])])
        price = _merged(price.T, is_open).T
    summands = _rows(h, start, is_open, labels[used], is_in[:, used], weight_of[used])
    heads = _fit(summands, first, price, ranks)
    fitted = torch.linalg.solve_triangular(root, heads, upper=False, left=False)
    if not bool(torch.isfinite(fitted).all()):
        raise UnlearningDivergedError(_NOT_FINITE)
    fitted = fitted.to(hidden.dtype)
    if not is_open.all():
        free, shared = fitted[:, :-1], fitted[:, -1:]
        fitted = layer + shared  # (b, k, d + 1)
        fitted[:, is_open] = free
    return Heads(fitted[:, :, :-1], fitted[:, :, -1])


def _conditioned(hidden: Tensor, weight_of: Tensor) -> tuple[Tensor, Tensor]:
    """Return features (u, d + 1), a one added, with unit second moment, and the root (d + 1, d + 1) of what it was.

    In such coordinates the problem is well conditioned, and the squared distance between two heads is the mean squared
    difference of the logits they give.

    Args:
        hidden: (u, d).
        weight_of: (u,), what each row counts.
    """
    h = torch.ones(len(hidden), hidden.shape[1] + 1, dtype=torch.float64)
    h[:, :-1] = hidden
    moment = (h * weight_of[:, None]).T @ h
    diagonal = moment.diagonal()  # a view; of each feature by itself, for rows of a table have units of their own
    diagonal += RIDGE * diagonal.clamp_min(TINY * float(diagonal.max()))
    root = torch.linalg.cholesky(moment)  # root @ root.T = moment
    return torch.linalg.solve_triangular(root, h.T, upper=False).T, root


def _rows(h: Tensor, start: Tensor, is_open: Tensor, labels: Tensor, is_in: Tensor, weight_of: Tensor) -> _Rows:
    """Return what is asked of each head at each row: "don't know" in its cluster, the label elsewhere.

    Closed classes are one more class, whose logit is the log of the sum of theirs, and which they all move with.

    Args:
        h: (u, d + 1).
        start: (k, d + 1), the trained layer.
        is_open: (k,), classes that move freely.
        labels: (u,).
        is_in: (b, u), the clusters.
        weight_of: (u,), what each row counts.
    """
    k = len(start)
    forget, keep = is_in * weight_of, ~is_in * weight_of
    target = torch.nn.functional.one_hot(labels, k).double()  # (u, k)
    share = torch.full((k,), 1 / k, dtype=torch.float64)
    offset = torch.zeros_like(target)
    if not is_open.all():
        target, share, offset = (_merged(x, is_open) for x in (target, share, offset))
        offset[:, -1] = (h @ start[~is_open].T).logsumexp(1)
    goal = keep[:, :, None] * target + forget[:, :, None] * share  # (b, u, k)
    return _Rows(h, offset, goal.transpose(0, 1).contiguous(), (keep + forget).T.contiguous())


def _fit(rows: _Rows, first: Tensor, price: Tensor, ranks: Ranks) -> Tensor:
    """Return heads (b, k, d + 1) that minimise the objective.

    Args:
        rows: over which it is summed.
        first: (k, d + 1), where they start, and from where a change has its price.
        price: (k, 1), classes that each row of a head stands for.
        ranks: that share the sums.
    """
    start = first.repeat(rows.goal.shape[1], 1, 1)
    with _shared(rows, ranks) as summed:

        def objective(x: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
            heads = torch.from_numpy(x).view(start.shape)
            off = heads - first
            loss, gradient = summed(heads)
            gradient = gradient + TETHER * price * off
            return float(loss[0] + TETHER / 2 * (price * off.square()).sum()), gradient.flatten().numpy()

        # SciPy's, not torch.optim's: every optimiser there first imports the compiler, two seconds of a process.
        options = {"maxiter": MAX_STEPS, "gtol": TOLERANCE, "ftol": 0, "maxcor": 20}
        fitted = minimize(objective, start.flatten().numpy(), jac=True, method="L-BFGS-B", options=options)
    return torch.from_numpy(fitted.x).view(start.shape)


def _open_classes(p: Tensor, labels: Tensor, is_in: Tensor) -> Tensor:
    """Return the classes that move freely, (k,) bool: those that some cluster is labelled or taken for most.

    Args:
        p: (u, k), what the model answers.
        labels: (u,).
        is_in: (b, u), the clusters.
    """
    k = p.shape[1]
    if k <= MAX_OPEN:
        return torch.ones(k, dtype=torch.bool)
    weight = is_in.double() / is_in.sum(1, keepdim=True).clamp_min(1)
    given = torch.zeros(len(is_in), k, dtype=torch.float64).index_add_(1, labels, weight)
    needed = (weight @ p + given).amax(0)  # (k,)
    is_open = torch.zeros(k, dtype=torch.bool)
    is_open[needed.argsort(descending=True, stable=True)[:MAX_OPEN]] = True
    return is_open


def _merged(x: Tensor, is_open: Tensor) -> Tensor:
    """Return numbers (..., k) with those of closed classes as one, their sum, at the end."""
    return torch.cat([x[..., is_open], x[..., ~is_open].sum(-1, keepdim=True)], -1)
