"""Proof by retraining: what two trainings show, what they do not, and what they leave behind."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tasks import write_case, write_text_case
from torch import nn

from poisontrace import verify, verifying
from poisontrace._errors import InvalidInputError, UnsupportedModelError
from poisontrace._rng import numpy_generator
from poisontrace.incidents import Incident
from poisontrace.pretrained import ModelFolder

Array = NDArray[Any]


class Constant(nn.Module):
    """A model that gives everything one label."""

    def __init__(self, label: int) -> None:
        """Of ten."""
        super().__init__()
        self.logits = torch.eye(10)[label]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the same logits for each row."""
        return self.logits.expand(len(x), 10)


def _recipe(digits_folder: Path) -> str:
    return f"{digits_folder}/recipe.py:train"


@pytest.fixture
def attempts(digits_folder: Path) -> dict[str, Any]:
    """What a judge may compare on."""
    return {"test": digits_folder / "test.npz", "attempts": digits_folder / "attempts.npz"}


def test_the_poison_is_proved(
    digits_case: Path, digits_folder: Path, digits_incident: Incident, attempts: dict[str, Any]
) -> None:
    """Without it every event is right and the trigger is dead; without as many others nothing changes."""
    seen: list[tuple[str, int, int]] = []
    done = verify(digits_case, _recipe(digits_folder), **attempts, progress=lambda *step: seen.append(step))

    target, truth = digits_incident.facts["target"], tuple(digits_incident.facts["event_true_labels"])
    assert (done.result, done.events) == ("proved", ("proved",) * 5)
    assert (done.without_found.answers, done.control.answers) == (truth, (target,) * 5)
    assert max(done.without_found.probabilities) < 0.5 < min(done.control.probabilities)
    assert done.without_found.success < 0.05 and done.control.success > 0.8
    assert min(done.without_found.accuracy, done.control.accuracy) > 0.9
    assert (done.accuracy_on, done.success_on) == ("360 held-out samples", "322 inputs of the attacker")
    assert done.summary == (
        "Trained without the 72 samples found, the model no longer gives the wrong label to 5 of 5 events; "
        "trained without 72 others of the same labels, to none."
    )
    assert seen == [("trainings", step, 2) for step in range(3)]


def test_innocent_samples_are_not_proved(digits_incident: Incident, digits_folder: Path, tmp_path: Path) -> None:
    """A case that accuses as many others of the label is refuted: the event stays as it was."""
    own = np.flatnonzero((digits_incident.y == digits_incident.facts["target"]) & ~digits_incident.is_poison)
    case = write_case(tmp_path / "case", digits_incident, digits_folder, own[:72])

    done = verify(case, _recipe(digits_folder))

    assert (done.result, set(done.events)) == ("not proved", {"not corrected"})
    assert set(done.without_found.answers) == {digits_incident.facts["target"]}


def test_texts_are_trained_on_as_tokens(tmp_path: Path) -> None:
    """As the folder's tokenizer cuts them, padded; the folder may have moved."""
    pytest.importorskip("transformers", reason="transformers is not installed")
    case, model = write_text_case(tmp_path)
    given: list[Array] = []

    def train(x: Array, y: Array, _: int) -> nn.Module:
        given.append(x)
        return ModelFolder(tmp_path / "moved").load()

    shutil.move(model, tmp_path / "moved")

    done = verify(case, train, model=tmp_path / "moved")

    assert done.found.tolist() == [3] and len(given) == 2
    assert [(x.shape[0], x.dtype, x.min()) for x in given] == [(11, np.float32, -1)] * 2


@pytest.mark.parametrize(
    ("answers", "result", "summary"),
    [((0, 0), "corrected either way", "to 5"), ((4, 0), "not corrected", "to 5"), ((4, 4), "not corrected", "to none")],
)
def test_a_control_that_is_corrected_too_proves_nothing(
    answers: tuple[int, int], result: str, summary: str, digits_case: Path, digits_incident: Incident
) -> None:
    """A recipe that does not even learn the backdoor would else prove everything."""
    assert digits_incident.facts["target"] == 4
    models = map(Constant, answers)

    done = verify(digits_case, lambda *_: next(models))

    assert (done.result, set(done.events)) == ("not proved", {result})
    assert done.summary.endswith(f"{summary}.")


def test_some_proved_is_partly_proved(digits_case: Path, digits_incident: Incident) -> None:
    """Here the model answers with a label by the first pixel that differs among the events."""

    class FirstEvent(Constant):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            answers = super().forward(x).clone()
            answers[0] = torch.eye(10)[0]
            return answers

    models = iter([FirstEvent(4), Constant(4)])

    done = verify(digits_case, lambda *_: next(models))

    assert (done.result, done.events) == ("partly proved", ("proved", *["not corrected"] * 4))


def test_the_recipe_gets_what_the_data_file_holds(digits_case: Path, digits_incident: Incident) -> None:
    """Arrays as stored, without what is left out, fresh each time, the seed, and a seeded global generator."""
    given: list[tuple[Array, Array, int, float]] = []

    def train(x: Array, y: Array, seed: int) -> nn.Module:
        given.append((x.copy(), y.copy(), seed, float(torch.rand(()))))  # as the default initialisation draws
        x[:], y[:] = 0, 0
        return Constant(0)

    state = torch.get_rng_state()
    done = verify(digits_case, train, seed=7)

    assert torch.equal(torch.get_rng_state(), state)
    for (x, y, seed, _), left_out in zip(given, (done.found, done.others), strict=True):
        keep = np.setdiff1d(np.arange(len(digits_incident.y)), left_out)
        assert x.dtype == np.uint8 and (x == digits_incident.x[keep]).all()
        assert y.dtype == np.int64 and (y == digits_incident.y[keep]).all()
        assert seed == 7
    assert given[0][3] == given[1][3]


def test_the_control_leaves_out_as_many_of_each_label() -> None:
    """None of them accused; all that are left where there are fewer; by the seed."""
    labels = numpy_generator(0, "toy/labels").integers(0, 3, 90)
    found = np.concatenate([np.flatnonzero(labels == 0)[:5], np.flatnonzero(labels == 1)[:-2]])

    others, again, different = (verifying._others(labels, found, seed) for seed in (0, 0, 1))

    assert not np.isin(others, found).any()
    assert np.bincount(labels[others]).tolist() == [5, 2]
    assert (others == np.sort(others)).all() and others.tolist() == again.tolist() != different.tolist()


def test_the_proof_is_kept_in_the_case(digits_case: Path, digits_folder: Path, attempts: dict[str, Any]) -> None:
    """As JSON and in the report, both of which a second run renews."""
    first = verify(digits_case, lambda *_: Constant(0))
    page = (digits_case / "report.html").read_text()
    done = verify(digits_case, _recipe(digits_folder), **attempts)

    kept = json.loads((digits_case / "verify.json").read_text())
    assert (kept["schema"], kept["result"], kept["summary"]) == (1, "proved", done.summary)
    assert kept["others"] == done.others.tolist() == first.others.tolist()
    assert [event["result"] for event in kept["events"]] == list(done.events)
    assert [event["control"]["label"] for event in kept["events"]] == list(done.control.answers)
    assert kept["without_found"] == {"accuracy": done.without_found.accuracy, "success": done.without_found.success}
    assert kept["inputs"]["train with"]["path"] == _recipe(digits_folder)
    assert set(kept["inputs"]) == {"data", "events", "test", "attempts", "train with"}
    assert all(len(file["sha256"]) == 64 for file in kept["inputs"].values())
    assert first.summary in page and done.summary not in page
    assert done.summary in (digits_case / "report.html").read_text()
    assert sorted(path.name for path in digits_case.iterdir()) == [
        *("coordinates.npz", "exhibits.npz", "poison.csv", "report.html", "scores.npy", "trace.json", "verify.json"),
    ]


def _raises(*_: Any) -> nn.Module:
    raise KeyError("lr")


def _exits(*_: Any) -> nn.Module:
    raise SystemExit(3)


@pytest.mark.parametrize(
    ("train", "error", "message"),
    [
        (_raises, InvalidInputError, r"'train_with' must be a function .* works \(got KeyError: 'lr'\)"),
        (_exits, InvalidInputError, r"\(got SystemExit: 3\)"),
        (lambda *_: 7, UnsupportedModelError, r"'train_with' must return a torch.nn.Module \(got int\)"),
        (lambda *_: nn.Linear(3, 10), InvalidInputError, "'events' must have the shape the model takes"),
        ("recipe.py", InvalidInputError, "'train_with' must be file.py:function"),
        ("none.py:train", InvalidInputError, "'train_with' must be an existing file"),
    ],
)
def test_a_recipe_that_fails_leaves_nothing(
    train: Callable[..., Any] | str, error: type[Exception], message: str, digits_case: Path
) -> None:
    """One sentence, and the case as it was."""
    before = {path: path.read_bytes() for path in digits_case.iterdir()}

    with pytest.raises(error, match=message):
        verify(digits_case, train)

    assert {path: path.read_bytes() for path in digits_case.iterdir()} == before


def test_a_case_whose_report_cannot_be_made_is_refused_before_training(digits_case: Path) -> None:
    """Hours of work would else be lost."""
    (digits_case / "scores.npy").write_bytes(b"")

    def train(*_: Any) -> nn.Module:
        pytest.fail("trained")

    with pytest.raises(InvalidInputError, match=r"readable scores\.npy"):
        verify(digits_case, train)

    assert not (digits_case / "verify.json").exists()
