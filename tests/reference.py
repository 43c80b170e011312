"""Slow twins that are obviously right: loops and literal formulas in float64, to measure the fast code against."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from sklearn.cluster import KMeans
from torch import Tensor, nn
from torch.nn import functional

# float32 results against float64 twins.
RTOL, ATOL = 1e-4, 1e-5


def target(label: int | None, n_classes: int) -> Tensor:
    """Return the distribution a sample is pulled to: its label, or uniform for None."""
    if label is None:
        return torch.full((n_classes,), 1 / n_classes, dtype=torch.float64)
    return torch.eye(n_classes, dtype=torch.float64)[label]


def cross_entropy(logits: Tensor, wanted: Tensor) -> Tensor:
    """Return the cross-entropy of one sample with a distribution."""
    return -(wanted * logits.log_softmax(0)).sum()


def last_layer_gradients(weight: Tensor, bias: Tensor, hidden: Tensor, labels: Sequence[int | None]) -> Tensor:
    """Return the autograd gradient of each sample's loss with respect to the weights, (n, k * d), one at a time."""
    rows = []
    for h, label in zip(hidden.double(), labels, strict=True):
        w = weight.double().clone().requires_grad_()
        loss = cross_entropy(w @ h + bias.double(), target(label, len(bias)))
        rows.append(torch.autograd.grad(loss, w)[0].flatten())
    return torch.stack(rows)


def pooled_inputs(model: nn.Module, names: Sequence[str], x: Tensor) -> list[Tensor]:
    """Return the inputs of some layers as mean and maximum of each channel, one sample and one channel at a time."""
    modules = dict(model.named_modules())
    rows: dict[str, list[Tensor]] = {name: [] for name in names}
    for sample in x:
        for name in names:
            caught: list[Tensor] = []
            handle = modules[name].register_forward_hook(
                lambda _, args, __, caught=caught: caught.append(args[0].clone())
            )
            with torch.no_grad():
                model(sample[None])
            handle.remove()
            below = caught[0][0]
            if below.ndim > 1:
                is_linear = isinstance(modules[name], nn.Linear)
                channels = [below.select(-1 if is_linear else 0, c) for c in range(below.shape[-1 if is_linear else 0])]
                below = torch.stack([c.mean() for c in channels] + [c.max() for c in channels])
            rows[name].append(below)
    return [torch.stack(rows[name]) for name in names]


def saliency(above: nn.Module, below: Tensor, channel_means: Tensor, channel_axis: int) -> Tensor:
    """Return |sum of d margin / d a * (a - mean)| of each channel of one layer's input, (c,).

    Args:
        above: what turns the layer's input into logits, in float64.
        below: the event's input of that layer, without the batch axis.
        channel_means: (c,) mean over the training set.
        channel_axis: axis of ``below`` that counts channels.
    """
    a = below.double().clone().requires_grad_()
    best, rival = above(a[None])[0].topk(2).values
    (gradient,) = torch.autograd.grad(best - rival, a)
    shares = []
    for c, mean in enumerate(channel_means.double()):
        off = a.detach().select(channel_axis, c) - mean
        shares.append((gradient.select(channel_axis, c) * off).sum().abs())
    return torch.stack(shares)


def two_means(rows: Tensor) -> NDArray[np.bool_]:
    """Return scikit-learn's k-means on written-out rows, from the two starting rows that the tracer names."""
    dense = rows.double().numpy()
    first = np.square(dense - dense.mean(0)).sum(1).argmax()
    second = np.square(dense - dense[first]).sum(1).argmax()
    fitted = KMeans(2, init=dense[[first, second]], n_init=1, algorithm="lloyd", max_iter=100, tol=0).fit(dense)
    return fitted.labels_ == 0


def discriminate(x: Tensor, is_first: Tensor, *, n_folds: int, ridge: float) -> Tensor:
    """Return each sample's place between the clusters' means along a direction fitted without its fold."""
    rows, side = x.double().numpy(), is_first.numpy()
    fold = np.arange(len(rows)) % n_folds
    for position, member in enumerate(np.flatnonzero(side if side.sum() <= (~side).sum() else ~side)):
        fold[member] = position % n_folds  # the smaller cluster is spread evenly
    score = np.zeros(len(rows))
    for k in range(n_folds):
        first, second = rows[(fold != k) & side], rows[(fold != k) & ~side]
        centre = (first.mean(0) + second.mean(0)) / 2
        # Every sample of a cluster weighs the same, and both clusters weigh 1/2.
        weights = np.concatenate([np.full(len(first), 0.5 / len(first)), np.full(len(second), 0.5 / len(second))])
        off = np.concatenate([first, second]) - centre
        covariance = (off * weights[:, None]).T @ off
        covariance += ridge * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
        direction = np.linalg.inv(covariance) @ (first.mean(0) - second.mean(0))
        low, high = second.mean(0) @ direction, first.mean(0) @ direction
        for row in np.flatnonzero(fold == k):
            score[row] = (rows[row] @ direction - low) / (high - low)
    return torch.from_numpy(score)


def unlearn(
    hidden: Tensor,
    labels: Tensor,
    weight: Tensor,
    bias: Tensor,
    cluster: NDArray[np.int64],
    *,
    tether: float,
    ridge: float,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return weight and bias that minimise the literal objective for one cluster, in the weights' own coordinates.

    1/n (sum of CE to the label over the rest + sum of CE to uniform over the cluster) + tether / 2 (mean squared change
    of the logits + ridge * sum of the squared changes of the weights, each times its feature's second moment).
    """
    h = np.concatenate([hidden.double().numpy(), np.ones((len(hidden), 1))], 1)
    start = np.concatenate([weight.double().numpy(), bias.double().numpy()[:, None]], 1)
    n, k = len(h), len(start)
    goal = np.eye(k)[labels.numpy()]
    goal[cluster] = 1 / k
    scale = ridge * np.square(h).mean(0)

    def objective(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        head = flat.reshape(start.shape)
        logits, change = h @ head.T, head - start
        top = logits.max(1, keepdims=True)
        log_p = logits - top - np.log(np.exp(logits - top).sum(1, keepdims=True))
        moved = h @ change.T
        loss = -(goal * log_p).sum() / n
        loss += tether / 2 * (np.square(moved).sum() / n + (scale * np.square(change)).sum())
        gradient = (np.exp(log_p) - goal).T @ h / n + tether * (moved.T @ h / n + scale * change)
        return loss, gradient.ravel()

    options = {"maxiter": 20_000, "maxfun": 40_000, "ftol": 1e-16, "gtol": 1e-9}
    best = minimize(objective, start.ravel(), jac=True, method="L-BFGS-B", options=options).x.reshape(start.shape)
    return best[:, :-1], best[:, -1]


def unlearn_whole_network(
    build: Callable[[], nn.Module], state: dict[str, Tensor], x: Tensor, y: Tensor, cluster: NDArray[np.int64]
) -> nn.Module:
    """Return a network with all weights fitted again in full batches: "don't know" on the cluster, labels elsewhere."""
    model = build()
    model.load_state_dict(state)
    k = model(x[:1]).shape[1]
    goal = functional.one_hot(y, k).float()
    goal[torch.from_numpy(cluster)] = 1 / k
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(300):
        optimiser.zero_grad()
        functional.cross_entropy(model(x), goal).backward()
        optimiser.step()
    return model


def condition(activation: Tensor, of_event: Tensor, saliency: Tensor, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """Return one layer's coordinates (n, d) and cosines to the event (n,), one coordinate at a time."""
    own, event = activation.double().numpy()[rows], of_event.double().numpy()
    weights = saliency.double().numpy() / saliency.double().numpy().mean()
    seen, seen_event = np.zeros_like(own), np.zeros_like(event)
    for c in range(own.shape[1]):
        mean, std = own[:, c].mean(), own[:, c].std(ddof=1)
        seen[:, c] = (own[:, c] - mean) / std * np.sqrt(weights[c])
        seen_event[c] = (event[c] - mean) / std * np.sqrt(weights[c])
    cosines = [row @ seen_event / np.linalg.norm(row) / np.linalg.norm(seen_event) for row in seen]
    return torch.from_numpy(seen), torch.tensor(cosines)


def agree(activation: Tensor, of_event: Tensor, saliency: Tensor, rows: NDArray[np.int64], *, width: float) -> Tensor:
    """Return one layer's shares of agreement with the event (n, d), one number at a time."""
    own, event = activation.double().numpy()[rows], of_event.double().numpy()
    roots = np.sqrt(saliency.double().numpy())
    shares = np.zeros_like(own)
    for c in range(own.shape[1]):
        std = own[:, c].std(ddof=1)
        for i in range(len(own)):
            shares[i, c] = roots[c] / roots.sum() * np.exp(-0.5 * ((own[i, c] - event[c]) / (width * std)) ** 2)
    return torch.from_numpy(shares)


def sharing(
    x: Tensor, of_event: Tensor, saliency: Tensor, *, width: float, alike: float, least: int
) -> list[list[int]]:
    """Return sets of rows (n, d) that have the same columns in common with an event, column by column, row by row."""
    near = {}
    for column in range(x.shape[1]):
        values = x[:, column].double()
        far = width * float(values.std())
        near[column] = {row for row, value in enumerate(values.tolist()) if abs(value - float(of_event[column])) <= far}
    found, left = [], [column for column in near if least <= len(near[column]) <= len(x) / 2 and saliency[column] > 0]
    for column in sorted(near, key=lambda column: -float(saliency[column])):
        if column not in left:
            continue
        mark = [other for other in left if len(near[column] & near[other]) >= alike * len(near[column] | near[other])]
        left = [other for other in left if other not in mark]
        if len(mark) > 1:
            found.append([row for row in range(len(x)) if sum(row in near[other] for other in mark) >= len(mark) / 2])
    return found
