"""Count what one sample takes in the pass: operations and bytes in the store, for three sizes of training set.

``python benchmarks/count_sizes.py`` takes seconds; nothing is timed. The rows go to ``results/sizes.jsonl``;
``poisontrace bench --tables-only`` multiplies them by what ``measure_ranks.py`` and ``measure_scaling.py`` measured.
"""

import json
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import ResNetConfig, ResNetForImageClassification

from poisontrace.data import ArraySet
from poisontrace.embedding import collect
from poisontrace.models import resnet18

RESULT = Path(__file__).parent / "results" / "sizes.jsonl"


class Logits(nn.Module):
    """A model of transformers that returns its logits alone."""

    def __init__(self, model: nn.Module) -> None:
        """Wrap it."""
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (n, k)."""
        logits: Tensor = self.model(x).logits
        return logits


def count(name: str, n: int, model: nn.Module, side: int) -> dict[str, object]:
    """Return the row of a training set of n images for one model."""
    model.eval()
    x = torch.zeros(1, 3, side, side)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        label = int(model(x).argmax())
    features = collect(model, ArraySet(x.numpy(), torch.tensor([label]).numpy()), [(x[0], label)])
    widths = [activation.shape[1] for activation in features.activations]
    k = features.logits.shape[1]
    return {
        "kind": "sizes",
        "name": name,
        "n": n,
        "flops": counter.get_total_flops(),
        "widths": widths,
        "k": k,
        "bytes": 8 + 4 * (sum(widths) + k + features.noise.shape[1]),
    }


def main() -> None:
    """Count, and write the rows."""
    resnet50 = Logits(ResNetForImageClassification(ResNetConfig(num_labels=1000)))
    rows = [
        count("CIFAR-10, ResNet-18", 50_000, resnet18(), 32),
        count("ImageNet, ResNet-50", 1_281_167, resnet50, 224),
        count("LAION-sized, ResNet-50", 10**9, resnet50, 224),
    ]
    RESULT.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    print(RESULT.read_text("utf-8"), end="")


if __name__ == "__main__":
    main()
