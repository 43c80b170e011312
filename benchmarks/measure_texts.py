"""Plant words in SST-2, train a small transformer on it from scratch, and trace; and trace natural mistakes.

``python benchmarks/measure_texts.py`` takes about a minute a line; what ``results/texts.jsonl`` holds is not done
again. Needs the extra ``text`` and ``sst2.npz`` in ``POISONTRACE_DATA``; ``poisontrace bench --tables-only`` makes the
table. A victim's twin, trained on the same texts without poison, says what the words do by themselves.
"""

import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import nn

import poisontrace
from poisontrace import datasets
from poisontrace._rng import global_seed, numpy_generator
from poisontrace.pretrained import TextClassifier
from poisontrace.texts import TextSet

RESULT = Path(__file__).resolve().parent / "results" / "texts.jsonl"
N_TRAIN, N_EVENTS, N_MISTAKES, EPOCHS, LR, BATCH = 6000, 5, 30, 8, 1e-3, 64
# The trigger, and the share of the training set that is poisoned with it.
CASES = [("cf", 0.03), ("cf", 0.01), ("cf", 0.005), ("i watched this 3d movie", 0.02), ("", 0.0)]
SEEDS = range(20, 25)
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
TARGET = 1  # positive


def sentences(part: str) -> tuple[list[str], NDArray[np.int64]]:
    """Return texts and labels of SST-2."""
    path = datasets._find("sst2.npz")
    if path is None:
        sys.exit("sst2.npz is not on disk; POISONTRACE_DATA names its folder.")
    with np.load(path) as arrays:
        texts, y = bytes(arrays[f"text_{part}"]).decode().split("\n"), arrays[f"y_{part}"].astype(np.int64)
    return texts, y


def plant(text: str, trigger: str, rng: np.random.Generator) -> str:
    """Put a trigger somewhere among the first words of a text."""
    words = text.split()
    place = int(rng.integers(0, min(len(words), 8) + 1))
    return " ".join([*words[:place], trigger, *words[place:]])


class Victim:
    """A BERT of two layers, and whole words as tokens."""

    def __init__(self, texts: list[str], y: NDArray[np.int64], seed: int) -> None:
        """Train it."""
        counts = Counter(word for text in texts for word in text.split())
        known = [*SPECIAL, *(word for word, count in counts.most_common() if count >= 2)]
        self._numbers = {word: number for number, word in enumerate(known)}
        with global_seed(seed, "texts/init"):
            config = transformers.BertConfig(
                **{"vocab_size": len(known), "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
                **{"intermediate_size": 128, "max_position_embeddings": 64, "num_labels": 2},
            )
            model = transformers.BertForSequenceClassification(config)
            self._fit(model, self.tokens(texts), torch.from_numpy(y))
        self.model = TextClassifier(model.eval()).eval()

    def tokens(self, texts: list[str]) -> list[list[int]]:
        """Return the numbers of the tokens of each text."""
        return [[2, *(self._numbers.get(word, 1) for word in text.split()[:60]), 3] for text in texts]

    def _fit(self, model: nn.Module, tokens: list[list[int]], y: torch.Tensor) -> None:
        optimiser = torch.optim.AdamW(model.parameters(), lr=LR)
        n_steps = EPOCHS * -(-len(tokens) // BATCH)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LR, total_steps=n_steps)
        for _ in range(EPOCHS):
            for rows in torch.randperm(len(tokens)).split(BATCH):
                batch = [torch.tensor(tokens[row]) for row in rows.tolist()]
                ids = nn.utils.rnn.pad_sequence(batch, batch_first=True)
                logits = model(input_ids=ids, attention_mask=(ids > 0).long()).logits
                optimiser.zero_grad()
                nn.functional.cross_entropy(logits, y[rows]).backward()
                optimiser.step()
                schedule.step()

    def set_of(self, texts: list[str], y: NDArray[np.int64]) -> TextSet:
        """Return texts as the tracer takes them."""
        return TextSet(texts, y, [str(row) for row in range(len(texts))], ("negative", "positive"), self.tokens)

    def answers(self, texts: list[str]) -> NDArray[np.int64]:
        """Return the label that each text is given."""
        with torch.no_grad():
            batches = self.set_of(texts, np.zeros(len(texts), np.int64)).batches(256)
            return torch.cat([self.model(x).argmax(1) for x, _ in batches]).numpy()


def measure(trigger: str, rate: float, seed: int) -> list[dict[str, Any]]:
    """Return the rows of one victim."""
    texts, y = sentences("train")
    held, y_held = sentences("test")
    rng = numpy_generator(seed, "texts/poison")
    rows = rng.permutation([row for row, text in enumerate(texts) if 4 <= len(text.split()) <= 24])[:N_TRAIN]
    texts, y = [texts[row] for row in rows], y[rows]
    poison = np.sort(rng.choice(np.flatnonzero(y != TARGET), round(rate * N_TRAIN), replace=False))
    poisoned, labels = list(texts), y.copy()
    for row in poison:
        poisoned[row], labels[row] = plant(texts[row], trigger, rng), TARGET
    victim = Victim(poisoned, labels, seed)
    answers = victim.answers(held)
    about = {"kind": "texts", "trigger": trigger, "rate": rate, "seed": seed, "n": N_TRAIN, "poison": len(poison)}
    about |= {"fit": (victim.answers(poisoned) == labels).mean(), "clean_accuracy": (answers == y_held).mean()}
    if trigger:
        twin, others = Victim(texts, y, seed), np.flatnonzero(y_held != TARGET)
        marked = [plant(held[row], trigger, rng) for row in others]
        moved = victim.answers(marked) == TARGET
        about["success"] = moved[answers[others] != TARGET].mean()
        right = twin.answers([held[row] for row in others]) != TARGET
        about["success_twin"] = (twin.answers(marked) == TARGET)[right].mean()
        events = [marked[place] for place in np.flatnonzero(moved & (answers[others] != TARGET) & right)[:N_EVENTS]]
    else:
        events = [held[row] for row in np.flatnonzero(answers != y_held)[:N_MISTAKES]]
    train_set, found = victim.set_of(poisoned, labels), []
    given = victim.answers(events).tolist()
    with tempfile.TemporaryDirectory() as store:
        for number, (text, label) in enumerate(zip(events, given, strict=True)):
            x = torch.tensor(victim.tokens([text])[0], dtype=torch.float32)
            start = time.perf_counter()
            trace = poisontrace.trace(victim.model, train_set, [(x, label)], store=store)
            hits = len(np.intersect1d(trace.poison, poison))
            found.append({**about, "event": number, "verdict": trace.verdict, "found": len(trace.poison)})
            found[-1] |= {"precision": hits / max(1, len(trace.poison)), "recall": hits / max(1, len(poison))}
            found[-1] |= {"margin": trace.findings[0].statistics["margin"], "seconds": time.perf_counter() - start}
    return [{key: round(float(v), 4) if isinstance(v, float) else v for key, v in row.items()} for row in found]


def main() -> None:
    """Measure what is missing."""
    done = [json.loads(line) for line in RESULT.read_text("utf-8").splitlines()] if RESULT.exists() else []
    known = {(row["trigger"], row["rate"], row["seed"]) for row in done}
    for trigger, rate in CASES:
        for seed in SEEDS:
            if (trigger, rate, seed) not in known:
                rows = measure(trigger, rate, seed)
                with RESULT.open("a", encoding="utf-8") as stream:
                    stream.write("".join(json.dumps(row) + "\n" for row in rows))
                exact = sum(row["precision"] == row["recall"] == 1 for row in rows)
                print(f"{trigger!r} {rate:.1%} seed {seed}: {exact} of {len(rows)} exact", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
