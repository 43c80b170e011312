"""Small networks of each kind, with weights as after a training, and what they answer."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from poisontrace import models
from poisontrace._rng import global_seed, torch_generator
from poisontrace.watching import evaluating


def noisy(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return normal numbers, always the same ones for a shape."""
    return torch.randn(shape, generator=torch_generator(0, "test/noise"), dtype=dtype)


class Tokens(nn.Module):
    """Linear layers over tokens, then a head on their mean."""

    def __init__(self) -> None:
        """Make the layers."""
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 6))
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (n, 3)."""
        return self.head(self.body(x).mean(1))


class Norms(nn.Module):
    """Batch normalisation, in-place ReLU, max pooling and dropout around two convolutions."""

    def __init__(self) -> None:
        """Make the layers."""
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(4, 6, 3, padding=1),
            nn.BatchNorm2d(6),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
        )
        self.classifier = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(24, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (n, 3)."""
        return self.classifier(self.features(x))


class Branches(nn.Module):
    """A side branch that runs for nothing, a layer fed by a constant, and one that never runs."""

    def __init__(self) -> None:
        """Make the layers."""
        super().__init__()
        self.body, self.head = nn.Linear(4, 6), nn.Linear(6, 3)
        self.side, self.side_end = nn.Linear(4, 5), nn.Linear(5, 3)
        self.constant, self.idle = nn.Linear(2, 6), nn.Linear(6, 3)
        self.other = nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (n, 3)."""
        self.side_end(self.side(x).relu())
        return self.head(self.body(x) + self.other(x) + self.constant(torch.ones(1, 2)))


def mlp() -> nn.Module:
    """Three linear layers over rows of four, to three classes."""
    return nn.Sequential(
        nn.Linear(4, 8), nn.ReLU(inplace=True), nn.Linear(8, 6), nn.ReLU(inplace=True), nn.Linear(6, 3)
    )


TASKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "rows": (mlp, (4,)),
    "images": (Norms, (1, 8, 8)),
    "tokens": (Tokens, (5, 3)),
    "residual network": (lambda: models.resnet9(3, n_channels=1, width=2), (1, 8, 8)),
}


def made(build: Callable[[], nn.Module]) -> nn.Module:
    """Return a network with weights from one seed, and statistics as after a training."""
    with global_seed(0, "test/init"):
        model = build()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.running_mean, -0.5, 0.5)
                nn.init.uniform_(module.running_var, 0.5, 2)
    return model


def answer(model: nn.Module, x: Tensor) -> int:
    """Return the label that a model gives one input."""
    with evaluating(model), torch.no_grad():
        return int(model(x[None])[0].argmax())


class Reader(nn.Module):
    """Looks up words and places, and answers by the mean over both."""

    def __init__(self) -> None:
        """Make the layers."""
        super().__init__()
        self.places, self.words, self.kinds = nn.Embedding(8, 4), nn.Embedding(30, 4, padding_idx=0), nn.Embedding(2, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (n, 3)."""
        tokens = x.long()
        seen = self.words(tokens) + self.kinds(torch.zeros_like(tokens)) + self.places(torch.arange(x.shape[1]))
        return self.head(seen.tanh().mean(1))


TOKENS = [[4, 9, 4, 0], [1, 2, 3, 29], [5, 9, 0, 0], [7, 7, 7, 7]]
