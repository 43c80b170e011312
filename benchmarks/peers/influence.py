"""EK-FAC influence of training samples on the event, and Δ-Influence, both through kronfluence.

Grosse et al., "Studying Large Language Model Generalization with Influence Functions" (2023), as kronfluence has it,
with its defaults: all linear and convolutional layers, the true Fisher matrix, damping 1e-8; what is measured is the
margin of the event's label, as in its examples on CIFAR-10.

Li et al., "Delta-Influence: Unlearning Poisons via Influence Functions" (2024): the event is changed 50 times, each
time by one image transformation drawn from seven and to another label, and who loses influence in all but two of the
changes is accused. Differs from the authors' notebooks in asking for all 51 queries at once, which changes no score and
spares 50 passes, and in working on images in [0, 1], since these networks normalise inside.
"""

import logging
from collections.abc import Callable
from tempfile import TemporaryDirectory

import numpy as np
import torch
from kronfluence.analyzer import Analyzer, prepare_model
from kronfluence.arguments import FactorArguments
from kronfluence.task import Task
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from peers.case import Answer, Case
from poisontrace._rng import global_seed, numpy_generator, torch_generator
from poisontrace.data import to_inputs

N_CHANGES, THRESHOLD, N_TOLERATED = 50, 0.0, 2
FACTOR_BATCH, TRAIN_BATCH = 256, 128  # samples at once; they change no score

Batch = tuple[Tensor, Tensor]
Change = Callable[[Tensor, np.random.Generator], Tensor]


def find(case: Case) -> Answer:
    """Rank by EK-FAC influence on the event."""
    return Answer(scores=influences(case, case.event_x[None], torch.tensor([case.event_y]))[0])


def find_by_change(case: Case) -> Answer:
    """Accuse who loses influence when the event is changed; ranked by how often, then by how much."""
    changed, labels = changes(case)
    queries = torch.cat([case.event_x[None], changed])
    scores = influences(case, queries, torch.cat([torch.tensor([case.event_y]), labels]))
    delta = scores[1:] - scores[0]  # (50, n)
    n_losses = (delta < THRESHOLD).sum(0)
    loss = -delta.mean(0)
    within = np.argsort(np.argsort(loss)) / len(loss)  # below 1, so it orders only those that lose as often
    return Answer(np.flatnonzero(n_losses >= N_CHANGES - N_TOLERATED), n_losses + within)


class _Margin(Task):  # type: ignore[misc]
    """The loss that the victim was trained with, and the margin as what is explained."""

    def compute_train_loss(self, batch: Batch, model: nn.Module, sample: bool = False) -> Tensor:
        """Return the summed cross-entropy, with labels drawn from the model's answers if ``sample``."""
        x, labels = batch
        logits = model(x)
        if sample:  # the caller has seeded the global generator, kronfluence has no other way
            labels = torch.multinomial(logits.detach().softmax(1), 1)[:, 0]
        return functional.cross_entropy(logits, labels, reduction="sum")

    def compute_measurement(self, batch: Batch, model: nn.Module) -> Tensor:
        """Return the summed log-odds of all other labels against the given one."""
        x, labels = batch
        logits: Tensor = model(x)
        rest = logits.masked_fill(functional.one_hot(labels, logits.shape[1]).bool(), -torch.inf)
        odds: Tensor = rest.logsumexp(1) - logits.gather(1, labels[:, None])[:, 0]
        return odds.sum()


def influences(case: Case, x: Tensor, labels: Tensor) -> NDArray[np.float64]:
    """Return the influence of n training samples on the margins of m inputs (m, ...), (m, n); more helped more."""
    samples = TensorDataset(to_inputs(case.train_set.x), torch.from_numpy(case.train_set.y))
    task = _Margin()
    with TemporaryDirectory() as folder, global_seed(case.seed, "peers/influence"):
        analyzer = Analyzer(
            "peers",
            prepare_model(case.model, task),
            task,
            cpu=True,
            log_level=logging.ERROR,
            disable_tqdm=True,
            output_dir=folder,
        )
        analyzer.fit_all_factors(
            "ekfac", samples, per_device_batch_size=FACTOR_BATCH, factor_args=FactorArguments(strategy="ekfac")
        )
        analyzer.compute_pairwise_scores(
            "scores",
            "ekfac",
            TensorDataset(x, labels),
            samples,
            per_device_query_batch_size=len(x),
            per_device_train_batch_size=TRAIN_BATCH,
        )
        scores: Tensor = analyzer.load_pairwise_scores("scores")["all_modules"]
    return scores.double().numpy()


def changes(case: Case) -> Batch:
    """Return 50 changed copies of the event's image, (50, c, h, w), and as many labels other than its own."""
    random = numpy_generator(case.seed, "peers/changes")
    noise = torch_generator(case.seed, "peers/changes")
    kinds: list[Change] = [_flip, _jitter, _turn, lambda x, _: _bend(x, noise), _blur, _invert]
    if len(case.event_x) == 3:
        kinds.append(_swap_colours)
    images = [kinds[random.integers(len(kinds))](case.event_x, random) for _ in range(N_CHANGES)]
    others = [label for label in range(case.head.out_features) if label != case.event_y]
    return torch.stack(images), torch.from_numpy(random.choice(others, N_CHANGES))


def _flip(x: Tensor, _: np.random.Generator) -> Tensor:
    return x.flip(2)


def _invert(x: Tensor, _: np.random.Generator) -> Tensor:
    return 1 - x


def _swap_colours(x: Tensor, _: np.random.Generator) -> Tensor:
    return x[[1, 0, 2]]


def _jitter(x: Tensor, random: np.random.Generator) -> Tensor:
    """Brightness and contrast within a tenth, saturation within four tenths, hue within a tenth of the circle."""
    x = (x * random.uniform(0.9, 1.1)).clamp(0, 1)
    grey = _grey(x)
    x = (grey.mean() + (x - grey.mean()) * random.uniform(0.9, 1.1)).clamp(0, 1)
    if len(x) == 1:
        return x
    grey = _grey(x)
    x = (grey + (x - grey) * random.uniform(0.6, 1.4)).clamp(0, 1)
    return _turn_hue(x, random.uniform(-0.1, 0.1))


def _grey(x: Tensor) -> Tensor:
    weights = torch.tensor([0.299, 0.587, 0.114]) if len(x) == 3 else torch.ones(len(x)) / len(x)
    return (weights[:, None, None] * x).sum(0, keepdim=True)


def _turn_hue(x: Tensor, share: float) -> Tensor:
    """Turn the colours about the grey axis by a share of the circle."""
    angle, third = torch.tensor(2 * torch.pi * share), 1 / 3
    along = (1 - angle.cos()) * third
    across = angle.sin() * third**0.5
    matrix = torch.stack(
        [
            torch.stack([angle.cos() + along, along - across, along + across]),
            torch.stack([along + across, angle.cos() + along, along - across]),
            torch.stack([along - across, along + across, angle.cos() + along]),
        ]
    )
    return torch.einsum("cd,dhw->chw", matrix, x).clamp(0, 1)


def _turn(x: Tensor, random: np.random.Generator) -> Tensor:
    """Rotate by any angle, enlarge up to twice and shear by up to ten degrees; what comes from outside is black."""
    angle, shear = np.deg2rad(random.uniform(-180, 180)), np.deg2rad(random.uniform(-10, 10))
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = rotation @ np.array([[1, np.tan(shear)], [0, 1]]) / random.uniform(1, 2)
    theta = torch.tensor(np.hstack([matrix, np.zeros((2, 1))]), dtype=torch.float32)
    grid = functional.affine_grid(theta[None], [1, *x.shape], align_corners=False)
    return functional.grid_sample(x[None], grid, mode="nearest", align_corners=False)[0]


def _bend(x: Tensor, noise: torch.Generator) -> Tensor:
    """Shift each pixel by smooth noise: uniform in [-1, 1], blurred with sigma 5, times 150 pixels."""
    height, width = x.shape[1:]
    shifts = torch.stack([_gaussian(2 * torch.rand((1, height, width), generator=noise) - 1, 5.0, 5.0) for _ in "xy"])
    shifts = 150 * shifts[:, 0] / torch.tensor([width, height])[:, None, None]  # in half-widths, as the grid is
    theta = torch.eye(2, 3)[None]
    grid = functional.affine_grid(theta, [1, *x.shape], align_corners=False) + shifts.permute(1, 2, 0)[None]
    return functional.grid_sample(x[None], grid, mode="bilinear", align_corners=False)[0]


def _blur(x: Tensor, random: np.random.Generator) -> Tensor:
    """Blur with 5 x 9 pixels of a Gaussian of sigma 8 to 10."""
    sigma = random.uniform(8, 10)
    return _gaussian(x, sigma, sigma, radius=(4, 2))


def _gaussian(x: Tensor, sigma_x: float, sigma_y: float, radius: tuple[int, int] | None = None) -> Tensor:
    """Convolve each channel of (c, h, w) with a Gaussian of some radius, by default four sigma, at most the image."""
    for axis, sigma in ((2, sigma_x), (1, sigma_y)):
        reach = int(4 * sigma) if radius is None else radius[2 - axis]
        reach = min(reach, x.shape[axis] - 1)
        kernel = (-0.5 * (torch.arange(-reach, reach + 1) / sigma).square()).exp()
        kernel = (kernel / kernel.sum()).view(1, 1, *((1, -1) if axis == 2 else (-1, 1)))
        pad = (reach, reach, 0, 0) if axis == 2 else (0, 0, reach, reach)
        x = functional.conv2d(functional.pad(x[:, None], pad, mode="reflect"), kernel)[:, 0]
    return x
