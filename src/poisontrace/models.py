"""Small reference networks for attacks, demos and benchmarks; each ends in one linear layer.

Image networks take float32 NCHW in [0, 1] and normalise inside, so that a saved model carries its own preprocessing.
"""

import inspect
from collections.abc import Callable

import torch
from torch import Tensor, nn

from poisontrace._errors import InvalidInputError


class Normalise(nn.Module):
    """Subtract a mean and divide by a standard deviation per channel; both travel with the weights."""

    def __init__(self, n_channels: int) -> None:
        """Start as the identity; :meth:`fit` sets the statistics."""
        super().__init__()
        self.register_buffer("mean", torch.zeros(n_channels))
        self.register_buffer("std", torch.ones(n_channels))
        self.mean: Tensor
        self.std: Tensor

    def fit(self, x: Tensor) -> None:
        """Set the statistics from inputs of shape (n, channels, ...)."""
        axes = [axis for axis in range(x.ndim) if axis != 1]
        self.mean.copy_(x.mean(axes))
        self.std.copy_(x.std(axes).clamp_min(1e-6))

    def forward(self, x: Tensor) -> Tensor:
        """Return the standardised inputs, same shape."""
        shape = (1, -1) + (1,) * (x.ndim - 2)
        return (x - self.mean.view(shape)) / self.std.view(shape)


def conv_block(n_in: int, n_out: int, *, pool: bool = False) -> nn.Sequential:
    """3x3 convolution, batch normalisation, ReLU and, if asked, 2x2 max pooling."""
    layers = [nn.Conv2d(n_in, n_out, 3, padding=1, bias=False), nn.BatchNorm2d(n_out), nn.ReLU()]
    return nn.Sequential(*layers, *([nn.MaxPool2d(2)] if pool else []))


class Residual(nn.Module):
    """Two convolution blocks around a skip connection."""

    def __init__(self, width: int) -> None:
        """Keep ``width`` channels throughout."""
        super().__init__()
        self.blocks = nn.Sequential(conv_block(width, width), conv_block(width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Return x + blocks(x)."""
        out: Tensor = x + self.blocks(x)
        return out


class MeanPool(nn.Module):
    """Mean over height and width: (n, c, h, w) to (n, c)."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the spatial mean."""
        return x.mean((2, 3))


def resnet9(n_classes: int = 10, *, n_channels: int = 3, width: int = 16) -> nn.Sequential:
    """ResNet-9 (the DAWNBench form), ``width`` to 8 times ``width`` channels, with a mean-pooled linear head."""
    return nn.Sequential(
        Normalise(n_channels),
        conv_block(n_channels, width),
        conv_block(width, 2 * width, pool=True),
        Residual(2 * width),
        conv_block(2 * width, 4 * width, pool=True),
        conv_block(4 * width, 8 * width, pool=True),
        Residual(8 * width),
        MeanPool(),
        nn.Linear(8 * width, n_classes),
    )


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a skip connection, with the last ReLU after the sum."""

    def __init__(self, n_in: int, n_out: int, *, stride: int = 1) -> None:
        """Map ``n_in`` to ``n_out`` channels; where form or channels change, so does the skip connection."""
        super().__init__()
        # The skip comes first, so that the last convolution of a network is the last one in its list of modules too.
        self.skip = nn.Sequential()
        if stride != 1 or n_in != n_out:
            self.skip.append(nn.Conv2d(n_in, n_out, 1, stride=stride, bias=False)).append(nn.BatchNorm2d(n_out))
        self.block = nn.Sequential(
            *(nn.Conv2d(n_in, n_out, 3, stride=stride, padding=1, bias=False), nn.BatchNorm2d(n_out), nn.ReLU()),
            *(nn.Conv2d(n_out, n_out, 3, padding=1, bias=False), nn.BatchNorm2d(n_out)),
        )
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Return relu(skip(x) + block(x)), at a ``stride``-th of the height and width."""
        out: Tensor = self.relu(self.skip(x) + self.block(x))
        return out


def resnet18(n_classes: int = 10, *, n_channels: int = 3, width: int = 64) -> nn.Sequential:
    """ResNet-18 (the CIFAR form: 3x3 stem, no max pooling), ``width`` to 8 times ``width`` channels; for a GPU."""
    return nn.Sequential(
        Normalise(n_channels),
        conv_block(n_channels, width),
        *(BasicBlock(width, width), BasicBlock(width, width)),
        *(BasicBlock(width, 2 * width, stride=2), BasicBlock(2 * width, 2 * width)),
        *(BasicBlock(2 * width, 4 * width, stride=2), BasicBlock(4 * width, 4 * width)),
        *(BasicBlock(4 * width, 8 * width, stride=2), BasicBlock(8 * width, 8 * width)),
        MeanPool(),
        nn.Linear(8 * width, n_classes),
    )


def small_cnn(n_classes: int = 10, *, n_channels: int = 1, width: int = 32) -> nn.Sequential:
    """Three convolution blocks and a linear head, for images of about 8x8."""
    return nn.Sequential(
        Normalise(n_channels),
        conv_block(n_channels, width),
        conv_block(width, 2 * width, pool=True),
        conv_block(2 * width, 4 * width),
        MeanPool(),
        nn.Linear(4 * width, n_classes),
    )


def mlp(n_classes: int = 2, *, n_features: int, width: int = 64) -> nn.Sequential:
    """Two hidden layers for rows of features."""
    return nn.Sequential(
        Normalise(n_features),
        nn.Linear(n_features, width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Linear(width, n_classes),
    )


def plain_cnn(n_classes: int = 10, *, n_channels: int = 1, width: int = 16) -> nn.Sequential:
    """Two convolutions without batch normalisation and a hidden dense layer (the LeNet-5 form), for small images."""
    return nn.Sequential(
        Normalise(n_channels),
        *(nn.Conv2d(n_channels, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(width, 2 * width, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten()),
        *(nn.Linear(32 * width, 4 * width), nn.ReLU(), nn.Linear(4 * width, n_classes)),
    )


def flat_mlp(n_classes: int = 10, *, n_channels: int = 1, width: int = 128) -> nn.Sequential:
    """Two hidden layers for images that are read as rows of 8x8 pixels."""
    return nn.Sequential(
        Normalise(n_channels),
        *(nn.AdaptiveAvgPool2d(8), nn.Flatten()),
        *(nn.Linear(64 * n_channels, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()),
        nn.Linear(width, n_classes),
    )


MODELS: dict[str, Callable[..., nn.Sequential]] = {
    "resnet9": resnet9,
    "resnet18": resnet18,
    "small_cnn": small_cnn,
    "mlp": mlp,
    "plain_cnn": plain_cnn,
    "flat_mlp": flat_mlp,
}


def build(name: str, **options: int) -> nn.Sequential:
    """Return a fresh network by its name in ``MODELS``.

    Raises:
        InvalidInputError: if no network has that name, or it does not take these options.
    """
    if name not in MODELS:
        raise InvalidInputError(f"'model' must be one of {', '.join(sorted(MODELS))} (got {name!r}).")
    try:
        inspect.signature(MODELS[name]).bind(**options)
    except TypeError as error:
        raise InvalidInputError(
            f"'model' must be one for this kind of data (got {name!r}: {error}). Leave it out for the usual network."
        ) from error
    return MODELS[name](**options)
