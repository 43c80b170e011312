"""Forget a cluster and see what the model no longer knows: the test of innocence of Poison Forensics section 4.3.

Only the last linear layer is fitted again, on features that are already there, so forgetting is a softmax regression:
strongly convex, with one answer. It is solved to convergence, because a head that is still moving mistakes its own
drift for guilt (decision 0004), and for all clusters of a level at once, as a batch of heads over the same features.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from poisontrace._blocks import MEMORY
from poisontrace._errors import UnlearningDivergedError

MAX_ROWS = 3000  # samples that stand for each cluster, and for those in none
MIN_ROWS, COPIES = 100, 5  # of them where memory is short; and copies of their features, in double precision
TETHER = 1e-3  # price of changing the logits, per squared unit; makes the problem strongly convex
RIDGE = 1e-4  # of the mean second moment, where features are collinear
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


def spread(indices: NDArray[np.int64], limit: int) -> NDArray[np.int64]:
    """Return at most ``limit`` of the indices, evenly spread over their order."""
    if len(indices) <= limit:
        return indices
    return indices[np.linspace(0, len(indices) - 1, limit).round().astype(np.int64)]


def unlearn(
    hidden: Tensor,
    labels: Tensor,
    weight: Tensor,
    bias: Tensor,
    clusters: Sequence[NDArray[np.int64]],
    *,
    memory: int = MEMORY,
) -> Heads:
    """Refit the last layer once for each cluster, to answer "don't know" on it and to keep the labels of the rest.

    Minimises, for each cluster S with the rest R, 1/n (sum over R of CE(W h + b, y) + sum over S of CE(W h + b,
    uniform)) + TETHER/2 times the mean squared change of the logits (plus RIDGE for the weights). An empty cluster
    gives the head that forgets nothing: what every other one is compared with.

    Paper: section 4.3; differs from it: converged L-BFGS on cached features instead of a fixed number of SGD steps
    through the network.

    Args:
        hidden: (n, d), inputs of the last linear layer.
        labels: (n,) int64.
        weight: of the trained layer, (k, d).
        bias: of the trained layer, (k,).
        clusters: sets of training indices; may be empty sets.
        memory: bytes to get along with; where it is short, fewer samples stand for each cluster.

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
    part = (is_in.long() << torch.arange(len(clusters))[:, None]).sum(0)[order]
    weight_of = torch.zeros(n, dtype=torch.float64)
    parts = sorted(set(part.tolist()))
    max_rows = min(MAX_ROWS, max(MIN_ROWS, memory // (COPIES * 8 * (hidden.shape[1] + 1) * len(parts))))
    for which in parts:
        rows = order[part == which]
        chosen = torch.from_numpy(spread(rows.numpy(), max_rows))
        weight_of[chosen] = len(rows) / len(chosen) / n
    used = weight_of.nonzero()[:, 0]
    kept = hidden[used]
    if not all(bool(torch.isfinite(t).all()) for t in (kept, weight, bias)):
        raise UnlearningDivergedError(_NOT_FINITE)
    forget = is_in[:, used] * weight_of[used]
    keep = ~is_in[:, used] * weight_of[used]

    # In coordinates where the features have unit second moment the problem is well conditioned, and the squared
    # distance between two heads is the mean squared difference of the logits they give.
    h = torch.ones(len(used), hidden.shape[1] + 1, dtype=torch.float64)  # (u, d + 1)
    h[:, :-1] = kept
    moment = (h * weight_of[used, None]).T @ h
    moment += RIDGE * moment.diagonal().mean() * torch.eye(len(moment), dtype=torch.float64)
    root = torch.linalg.cholesky(moment)  # (d + 1, d + 1), root @ root.T = moment
    h = torch.linalg.solve_triangular(root, h.T, upper=False).T
    start = torch.cat([weight.double(), bias.double()[:, None]], 1) @ root  # (k, d + 1)

    target = torch.nn.functional.one_hot(labels[used], k).double()  # (u, k)
    goal = keep[:, :, None] * target + forget[:, :, None] / k  # (b, u, k)
    total = keep + forget  # (b, u)
    heads = start.repeat(len(clusters), 1, 1)  # (b, k, d + 1)
    optimiser = torch.optim.LBFGS(
        [heads],
        max_iter=MAX_STEPS,
        tolerance_grad=TOLERANCE,
        tolerance_change=0,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    # The gradient written out: what a head answers less what it should, by the features. One product for all heads.
    goal, total = goal.transpose(0, 1).contiguous(), total.T.contiguous()  # (u, b, k), (u, b)

    def objective() -> Tensor:
        logits = (h @ heads.flatten(0, 1).T).unflatten(1, goal.shape[1:])  # (u, d + 1) @ (d + 1, b k) -> (u, b, k)
        log_sum = logits.logsumexp(2, keepdim=True)
        off = heads - start
        loss: Tensor = (total * log_sum[..., 0]).sum() - (goal * logits).sum() + TETHER / 2 * off.square().sum()
        wrong = total[..., None] * (logits - log_sum).exp() - goal
        heads.grad = (wrong.flatten(1).T @ h).unflatten(0, goal.shape[1:]) + TETHER * off
        return loss

    with torch.no_grad():
        optimiser.step(objective)  # type: ignore[no-untyped-call]
    fitted = torch.linalg.solve_triangular(root, heads.detach(), upper=False, left=False)
    if not bool(torch.isfinite(fitted).all()):
        raise UnlearningDivergedError(_NOT_FINITE)
    return Heads(fitted[:, :, :-1].to(hidden.dtype), fitted[:, :, -1].to(hidden.dtype))
