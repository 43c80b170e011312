"""Repair: the backdoor goes, the accuracy stays, and what is written can be loaded."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tasks import fitted_network, planted, planted_mlp, write_case, write_text_case
from torch import nn

from poisontrace import repair, repairing, store, train
from poisontrace._errors import InvalidInputError, UnlearningDivergedError
from poisontrace.data import ArraySet
from poisontrace.incidents import Incident
from poisontrace.pretrained import ModelFolder


def test_the_backdoor_is_gone_and_the_accuracy_is_not(
    digits_case: Path, digits_folder: Path, digits_incident: Incident
) -> None:
    """Measured by the repair, and again on the weights that it wrote."""
    judge = {"test": digits_folder / "test.npz", "attempts": digits_folder / "attempts.npz"}
    done = repair(digits_case, **judge)

    assert (done.result, done.events) == ("repaired", ("corrected",) * 5)
    assert done.before.success > 0.8 and done.after.success < 0.1
    assert done.after.accuracy > done.before.accuracy - 0.02 > 0.9
    assert set(done.before.answers) == {digits_incident.facts["target"]}
    assert done.weights == digits_case / "repaired.safetensors"
    model, state = digits_incident.model, load_file(done.weights)
    try:
        before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
        model.load_state_dict(state, strict=True)
        assert tuple(train.predict(model, digits_incident.event_x).argmax(1)) == done.after.answers
        assert train.accuracy(model, digits_incident.x_test, digits_incident.y_test) == done.after.accuracy
    finally:
        model.load_state_dict(before)
    buffers = {name for name, _ in model.named_buffers()}
    assert buffers and all(torch.equal(state[name], before[name]) for name in buffers)
    assert not any(torch.equal(state[name], before[name]) for name in before.keys() - buffers)


def test_a_repair_that_changes_nothing_would_be_seen(digits_case: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a step, the verdict is that nothing was repaired."""
    monkeypatch.setattr(repairing, "N_STEPS", 0)

    done = repair(digits_case)

    assert (done.result, set(done.events)) == ("not repaired", {"not corrected"})
    assert done.after == done.before


def test_to_train_on_is_not_enough(monkeypatch: pytest.MonkeyPatch, digits_case: Path) -> None:
    """The same steps, with the poison left out instead of taught otherwise, leave events as they are."""

    def labels(_: nn.Module, train_set: ArraySet, samples: Any) -> torch.Tensor:
        return torch.from_numpy(train_set.y[samples])

    monkeypatch.setattr(repairing, "_second_choice", labels)

    assert repair(digits_case).result == "not repaired"


def test_the_same_seed_gives_the_same_bytes(digits_case: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And leaves the global generator as it was."""
    monkeypatch.setattr(repairing, "N_STEPS", 20)
    state = torch.get_rng_state()

    files = [
        repair(digits_case, out=tmp_path / f"{i}.safetensors", seed=seed).weights for i, seed in enumerate((0, 0, 1))
    ]

    assert files[0].read_bytes() == files[1].read_bytes() != files[2].read_bytes()
    assert torch.equal(torch.get_rng_state(), state)


def test_the_repair_is_kept_in_the_case(digits_case: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As JSON and in the report; a second one overwrites the first."""
    monkeypatch.setattr(repairing, "N_STEPS", 20)
    repair(digits_case, seed=1)
    done = repair(digits_case)

    kept = json.loads((digits_case / "repair.json").read_text())
    assert (kept["schema"], kept["result"], kept["summary"], kept["seed"]) == (1, done.result, done.summary, 0)
    assert kept["weights"] == {"path": str(done.weights), "sha256": store.sha256(done.weights)}
    assert [event["after"]["label"] for event in kept["events"]] == list(done.after.answers)
    assert kept["after"] == {"accuracy": done.after.accuracy, "success": done.after.success}
    assert kept["accuracy_on"] == done.accuracy_on == "1,365 training samples that are not accused"
    assert kept["success_on"] == done.success_on == "5 events of the case"
    assert set(kept["inputs"]) == {"model", "weights", "data", "events"}
    assert done.summary in (digits_case / "report.html").read_text()


def test_the_second_choice_is_never_the_label() -> None:
    """One sample at a time: the most likely of the other labels."""
    task = planted()
    model, train_set = fitted_network(task, planted_mlp), ArraySet(task.x.numpy(), task.y.numpy())
    rows = np.arange(0, 240, 7)

    chosen = repairing._second_choice(model, train_set, rows)

    for row, label in zip(rows, chosen.tolist(), strict=True):
        logits = model(task.x[row][None])[0].tolist()
        others = [other for other in range(3) if other != task.y[row]]
        assert label == max(others, key=lambda other: logits[other])


def test_the_rest_is_spread_over_all_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    """However few stand for it, and in whatever order they lie; the poison is always whole."""
    task = planted()
    order = task.y.argsort(stable=True)
    train_set = ArraySet(task.x[order].numpy(), task.y[order].numpy())
    poison = np.flatnonzero(task.is_poison[order.numpy()])[:9]
    seen: list[int] = []

    class Watched(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.extend(int((train_set.x == row).all(1).argmax()) for row in x.numpy())
            return super().forward(x)

    for name, value in {"MAX_REST": 12, "N_STEPS": 1, "STEP": 99}.items():
        monkeypatch.setattr(repairing, name, value)
    repairing.teach_otherwise(Watched(8, 3), train_set, poison, seed=0)

    used = seen[len(poison) :]  # after those that were asked for their second choice
    rest = sorted(set(used) - set(poison.tolist()))
    assert len(used) == 21 and set(poison.tolist()) <= set(used)
    assert np.bincount(train_set.y[rest]).min() >= 3


def _forget_the_model(case: Path) -> None:
    content = json.loads((case / "trace.json").read_text())
    del content["inputs"]["model"], content["inputs"]["weights"]
    (case / "trace.json").write_text(json.dumps(content))


def _repaired(case: Path, code: Path, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Repair the network that ``build`` of some code makes, with these weights, in place of a case's own."""
    weights = code.with_suffix(".pt")
    torch.save(state, weights)
    _forget_the_model(case)
    return load_file(repair(case, model=f"{code}:build", weights=weights).weights)


def test_parameters_that_share_memory_are_written(
    tmp_path: Path, digits_case: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every key of the state dict is in the file."""
    (tmp_path / "tied.py").write_text(
        "from torch import nn\n\n\ndef build():\n    a, b = nn.Linear(64, 64), nn.Linear(64, 64)\n"
        "    b.weight = a.weight\n    return nn.Sequential(nn.Flatten(), a, b, nn.Linear(64, 10))\n"
    )
    first, second = nn.Linear(64, 64), nn.Linear(64, 10)
    keys = {"1": first, "2": first, "3": second}
    state = {
        f"{key}.{part}": getattr(layer, part).detach() for key, layer in keys.items() for part in ("weight", "bias")
    }
    monkeypatch.setattr(repairing, "N_STEPS", 2)

    repaired = _repaired(digits_case, tmp_path / "tied.py", state)

    assert repaired.keys() == state.keys()
    assert torch.equal(repaired["1.weight"], repaired["2.weight"])
    assert not torch.equal(repaired["1.weight"], state["1.weight"])


def test_parameters_that_lie_inside_out_are_written(
    tmp_path: Path, digits_case: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those of a network with channels last, to the same numbers."""
    (tmp_path / "last.py").write_text(
        "import torch\nfrom torch import nn\n\n\ndef build():\n"
        "    layers = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 5, 3), nn.Flatten(), nn.Linear(80, 10)\n"
        "    return nn.Sequential(*layers).to(memory_format=torch.channels_last)\n"
    )
    state = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 5, 3), nn.Flatten(), nn.Linear(80, 10)).state_dict()
    monkeypatch.setattr(repairing, "N_STEPS", 0)

    repaired = _repaired(digits_case, tmp_path / "last.py", state)

    assert repaired.keys() == state.keys()
    assert all(torch.equal(repaired[key], state[key]) for key in state)


def test_a_hugging_face_folder_is_repaired(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It brings its own weights; what is written takes their place in a copy of it."""
    pytest.importorskip("transformers", reason="transformers is not installed")
    case, model = write_text_case(tmp_path)
    monkeypatch.setattr(repairing, "N_STEPS", 3)

    done = repair(case)

    shutil.copytree(model, tmp_path / "new")
    shutil.copy(done.weights, tmp_path / "new" / "model.safetensors")
    assert load_file(done.weights).keys() == load_file(model / "model.safetensors").keys()
    folder = ModelFolder(tmp_path / "new")
    tokens = np.array(folder.tokenizer()(["a dull cf film"]), np.float32)
    answer = folder.load()(torch.from_numpy(tokens)).softmax(1)[0, 1].item()
    assert done.after.probabilities == pytest.approx((answer,), abs=1e-6)
    assert done.after.probabilities != done.before.probabilities
    assert set(json.loads((case / "repair.json").read_text())["inputs"]) == {"model", "data", "events"}
    shutil.move(model, tmp_path / "moved")
    with pytest.raises(InvalidInputError, match="'model' must be an existing file or folder"):
        repair(case)
    assert repair(case, model=tmp_path / "moved").after == done.after


def test_a_folder_needs_no_weights_where_the_case_names_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a trace from Python, which saw tokens; a factory may build a network that is not trained."""
    pytest.importorskip("transformers", reason="transformers is not installed")
    case, model = write_text_case(tmp_path)
    content = json.loads((case / "trace.json").read_text())
    (case / "trace.json").write_text(json.dumps({**content, "inputs": {}, "texts": {}}))
    tokens = np.array(ModelFolder(model).tokenizer()(["a dull cf film"] * 12), np.float32)
    np.savez(tmp_path / "train.npz", x=tokens, y=np.arange(12) % 2)
    np.savez(tmp_path / "events.npz", x=tokens[:1], y=[1])
    monkeypatch.setattr(repairing, "N_STEPS", 3)
    files: dict[str, Any] = {"data": tmp_path / "train.npz", "events": tmp_path / "events.npz"}

    done = repair(case, model=model, **files)

    assert load_file(done.weights).keys() == load_file(model / "model.safetensors").keys()
    (tmp_path / "mine.py").write_text("")
    with pytest.raises(InvalidInputError, match="'weights' must be named by the case or with --weights"):
        repair(case, model=f"{tmp_path}/mine.py:build", **files)


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pt", "none/weights.safetensors"])
def test_only_a_new_file_is_written(name: str, tmp_path: Path, digits_case: Path) -> None:
    """Nothing is overwritten: it might be the evidence."""
    (tmp_path / "weights.safetensors").write_text("mine")

    with pytest.raises(InvalidInputError, match=r"'out' must be a new \.safetensors file"):
        repair(digits_case, out=tmp_path / name)

    assert (tmp_path / "weights.safetensors").read_text() == "mine"
    assert not (digits_case / "repair.json").exists()


def test_code_that_a_case_brings_along_is_not_run(digits_case: Path) -> None:
    """A case may come from elsewhere; whoever has read the code can name it."""
    arch = digits_case / "arch.py"
    arch.write_text("raise SystemExit('it ran')")
    case = json.loads((digits_case / "trace.json").read_text())
    case["inputs"]["model"] = {"path": str(arch), "sha256": store.sha256(arch), "spec": f"{arch}:build"}
    (digits_case / "trace.json").write_text(json.dumps(case))

    announced: list[str] = []
    with pytest.raises(InvalidInputError, match="'model' must lie outside the case folder"):
        repair(digits_case, announce=announced.append)
    assert announced == []
    with pytest.raises(InvalidInputError, match="it ran"):
        repair(digits_case, model=f"{arch}:build", announce=announced.append)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"model": {"path": "", "sha256": None}}, "'model' must be named by the case or with --model"),
        ({"model": {"path": "", "sha256": None, "spec": 3}}, "'model' must be named by the case or with --model"),
        (
            {"model": {"path": "none.py", "sha256": None, "spec": "none.py:build"}},
            "'model' must be an existing file .* with --model",
        ),
        ({"weights": {"path": "none", "sha256": None}}, "'weights' must be an existing file .* with --weights"),
    ],
)
def test_files_that_are_missing_are_asked_for(inputs: dict[str, Any], message: str, digits_case: Path) -> None:
    """By the option that names them."""
    case = json.loads((digits_case / "trace.json").read_text())
    case["inputs"] |= inputs
    (digits_case / "trace.json").write_text(json.dumps(case))

    with pytest.raises(InvalidInputError, match=message):
        repair(digits_case)


@pytest.mark.parametrize("name", ["arch.py", "weights.safetensors"])
def test_another_model_is_not_repaired(
    name: str, digits_incident: Incident, digits_folder: Path, digits_case: Path, tmp_path: Path
) -> None:
    """Not one bit may differ from what was traced."""
    path = tmp_path / name
    path.write_bytes((digits_folder / name).read_bytes() + b"\n")
    place = {"model": f"{path}:build"} if name == "arch.py" else {"weights": path}

    with pytest.raises(InvalidInputError, match="must be the file that was traced"):
        repair(digits_case, **place)  # type: ignore[arg-type]


def test_a_repair_that_diverges_writes_nothing(digits_case: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rather no weights than broken ones."""
    monkeypatch.setattr(repairing, "N_STEPS", 5)
    monkeypatch.setattr(repairing, "LR", 1e30)
    before = sorted(digits_case.iterdir())

    with pytest.raises(UnlearningDivergedError, match="must end in finite numbers"):
        repair(digits_case)

    assert sorted(digits_case.iterdir()) == before


def test_a_few_innocents_among_the_accused_cost_little(
    digits_incident: Incident, digits_folder: Path, tmp_path: Path
) -> None:
    """A tenth of those accused are ordinary samples of the label."""
    poison = np.flatnonzero(digits_incident.is_poison)
    others = np.flatnonzero((digits_incident.y == digits_incident.facts["target"]) & ~digits_incident.is_poison)
    case = write_case(tmp_path / "case", digits_incident, digits_folder, np.sort(np.concatenate([poison, others[:7]])))

    done = repair(case, test=digits_folder / "test.npz")

    assert done.result == "repaired"
    assert done.after.accuracy > done.before.accuracy - 0.03
