"""Incidents: what is made, what is saved, and that truth lies apart."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tasks import DIGITS_PLAN, NoOp

from poisontrace import incidents, train, victims
from poisontrace._errors import InvalidInputError, PoisontraceError, StoreError
from poisontrace.attacks import BadNets
from poisontrace.data import read_array_set
from poisontrace.datasets import load_dataset
from poisontrace.incidents import Incident, Plan
from poisontrace.loading import find_factory

QUICK = replace(DIGITS_PLAN, n_train=200, epochs=1, width=4)


def _trained_files() -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in victims.cache_folder().glob("*")}


def test_the_attack_succeeded(digits_incident: Incident) -> None:
    """The victim works on clean inputs, is moved by the trigger, and its twin is not."""
    facts = digits_incident.facts

    assert facts["succeeded"] is True
    assert facts["clean_accuracy"] > 0.9
    assert facts["clean_accuracy_twin"] > 0.9
    assert facts["attack_success"] >= 0.8
    assert facts["attack_success_twin"] <= 0.2


def test_the_training_set_is_the_attack_s(digits_incident: Incident) -> None:
    """The attack named in the plan, on the data set named in the plan, gives these very bytes."""
    digits = load_dataset("digits")
    poisoned = BadNets(rate=0.05, size=4).poison(digits.x_train, digits.y_train)

    assert digits_incident.x.tobytes() == poisoned.x.tobytes()
    assert digits_incident.y.tolist() == poisoned.y.tolist()
    assert digits_incident.is_poison.tolist() == poisoned.is_poison.tolist()
    assert digits_incident.facts["n_poison"] == round(0.05 * len(digits.x_train))


def test_events_are_wrong_under_the_victim_and_right_under_the_twin(digits_incident: Incident) -> None:
    """Each event is the doing of the poison: a network trained without it reads the true label."""
    plan, digits = replace(DIGITS_PLAN, n_events=1000, seed=1), load_dataset("digits")
    every = incidents.make(plan)
    recipe = replace(incidents.TASKS["digits"].recipes["scratch"], epochs=4)
    twin, _ = victims.trained(digits.x_train, digits.y_train, every.arch, recipe, plan.seed)

    for incident in (every, digits_incident):
        says = train.predict(incident.model, incident.event_x).argmax(1)
        assert says.tolist() == incident.event_y.tolist()
        assert set(says.tolist()) == {incident.facts["target"]}
        assert incident.facts["target"] not in incident.facts["event_true_labels"]
    assert train.predict(twin, every.event_x).argmax(1).tolist() == every.facts["event_true_labels"]
    assert len(digits_incident.event_x) == DIGITS_PLAN.n_events


def test_usable_events_are_all_that_the_attack_alone_made_wrong() -> None:
    """Counted one by one: moved by the trigger, right without it, and right under the twin with it."""
    plan, digits = replace(DIGITS_PLAN, n_events=1000, seed=1), load_dataset("digits")
    every = incidents.make(plan)
    recipe = replace(incidents.TASKS["digits"].recipes["scratch"], epochs=4)
    twin, _ = victims.trained(digits.x_train, digits.y_train, every.arch, recipe, plan.seed)
    triggered = BadNets(rate=0.05, seed=1, size=4).trigger(digits.x_test)
    plain, moved, under_twin = (
        train.predict(model, x).argmax(1)
        for model, x in ((every.model, digits.x_test), (every.model, triggered), (twin, triggered))
    )

    usable = [
        row
        for row, label in enumerate(digits.y_test)
        if label != every.facts["target"]
        and plain[row] == under_twin[row] == label
        and moved[row] == every.facts["target"]
    ]

    assert every.facts["n_usable_events"] == len(every.event_x) == len(usable)
    assert {row.tobytes() for row in every.event_x} == {triggered[row].tobytes() for row in usable}


def test_no_event_is_a_training_sample(digits_incident: Incident) -> None:
    """Events come from the test set."""
    train_rows = {row.tobytes() for row in digits_incident.x}

    assert not any(row.tobytes() in train_rows for row in digits_incident.event_x)


def test_the_folder_holds_exactly_these_files(digits_folder: Path) -> None:
    """No partial file and nothing unexpected."""
    assert sorted(path.name for path in digits_folder.iterdir()) == [
        "arch.py",
        "attempts.npz",
        "events.npz",
        "incident.json",
        "recipe.py",
        "test.npz",
        "train.npz",
        "truth.json",
        "weights.safetensors",
    ]
    assert list(digits_folder.parent.iterdir()) == [digits_folder]


def test_truth_lies_in_its_own_file_only(digits_folder: Path, digits_incident: Incident) -> None:
    """The evidence holds arrays x and y, weights, and names; the poison is named in truth.json alone."""
    pairs = {key: ["x", "y"] for key in ("events.npz", "test.npz", "attempts.npz")}
    for name, held in {"train.npz": ["classes", "x", "y"], **pairs}.items():
        with np.load(digits_folder / name) as arrays:
            assert sorted(arrays.files) == held
    with safe_open(digits_folder / "weights.safetensors", "pt") as weights:
        assert weights.metadata() is None
        assert set(weights.keys()) == set(digits_incident.model.state_dict())
    assert json.loads((digits_folder / "incident.json").read_text()) == {
        "dataset": "digits",
        "classes": list("0123456789"),
    }
    for name in ("arch.py", "recipe.py", "incident.json"):
        assert not any(word in (digits_folder / name).read_text() for word in ('poison"', "badnets", "target", "rate"))

    truth = json.loads((digits_folder / "truth.json").read_text())
    assert truth["poison"] == np.flatnonzero(digits_incident.is_poison).tolist()
    assert Plan(**truth["plan"]) == DIGITS_PLAN


def test_saved_arrays_are_the_incident_s(digits_folder: Path, digits_incident: Incident) -> None:
    """What an investigator reads is what the victim was trained on and shown."""
    train_set, events = (read_array_set(digits_folder / name, "data") for name in ("train.npz", "events.npz"))

    assert train_set.x.tobytes() == digits_incident.x.tobytes()
    assert train_set.y.tolist() == digits_incident.y.tolist()
    assert events.x.tobytes() == digits_incident.event_x.tobytes()
    assert events.y.tolist() == digits_incident.event_y.tolist()


def test_the_saved_factory_loads_the_weights(digits_folder: Path, digits_incident: Incident) -> None:
    """The network of arch.py takes the weights with strict=True and answers as the victim does."""
    spec = importlib.util.spec_from_file_location("arch", digits_folder / "arch.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    model = module.build()
    model.load_state_dict(load_file(digits_folder / "weights.safetensors"), strict=True)

    np.testing.assert_array_equal(
        train.predict(model, digits_incident.event_x), train.predict(digits_incident.model, digits_incident.event_x)
    )


def test_what_the_attacker_tried_is_kept_for_the_judge(digits_folder: Path, digits_incident: Incident) -> None:
    """Test inputs without the trigger lie in test.npz, those with it in attempts.npz, with the label aimed at."""
    test, attempts = (read_array_set(digits_folder / name, "data") for name in ("test.npz", "attempts.npz"))
    facts, digits = digits_incident.facts, load_dataset("digits")

    assert test.x.tobytes() == digits.x_test.tobytes() and test.y.tolist() == digits.y_test.tolist()
    assert len(attempts) == facts["n_attempts"]
    assert set(attempts.y.tolist()) == {facts["target"]}
    success = train.accuracy(digits_incident.model, attempts.x, attempts.y)
    assert success == pytest.approx(facts["attack_success"])


def test_at_most_a_thousand_attempts_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are spread over all of them."""
    monkeypatch.setattr(incidents, "MAX_ATTEMPTS", 7)

    incident = incidents.make(DIGITS_PLAN)

    assert len(incident.attempt_x) == 7 < incident.facts["n_attempts"]


@pytest.mark.parametrize("training", ["scratch", "transfer", "finetune"])
def test_the_recipe_trains_the_victim_again(training: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an empty cache and the seed of its own, it gives the same weights to the bit; with another, others."""
    incident = incidents.make(replace(DIGITS_PLAN, training=training, rate=0.1, seed=1))
    incidents.save(incident, tmp_path / "incident")
    monkeypatch.setenv("POISONTRACE_CACHE", str(tmp_path / "cache"))
    _, recipe = find_factory(f"{tmp_path}/incident/recipe.py:train")

    again, other = recipe(incident.x, incident.y), recipe(incident.x, incident.y, 2)

    kept = {name: torch.equal(tensor, again.state_dict()[name]) for name, tensor in incident.model.state_dict().items()}
    assert all(kept.values())
    assert not torch.equal(other[-1].weight, again[-1].weight)
    assert (tmp_path / "incident" / "extractor.safetensors").exists() == (training != "scratch")


def test_the_same_plan_is_served_from_the_cache(digits_folder: Path, digits_incident: Incident, tmp_path: Path) -> None:
    """Made again, nothing is trained, and every file is equal to the byte."""
    before = _trained_files()

    def fail(*_: Any) -> None:
        pytest.fail("trained again")

    again = incidents.make(DIGITS_PLAN, progress=fail)
    incidents.save(again, tmp_path / "again")

    assert _trained_files() == before
    for path in digits_folder.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name


def test_another_seed_is_another_incident(digits_incident: Incident) -> None:
    """The seed moves poison, pattern and events."""
    other = incidents.make(replace(DIGITS_PLAN, seed=1, n_events=2))

    assert (other.is_poison != digits_incident.is_poison).any()
    assert len(other.event_x) == 2


def test_a_cache_that_cannot_be_written_is_named_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way out is named before minutes are spent."""
    (tmp_path / "cache").write_text("a file")
    monkeypatch.setenv("POISONTRACE_CACHE", str(tmp_path / "cache"))

    def fail(*_: Any) -> None:
        pytest.fail("trained")

    with pytest.raises(StoreError, match="POISONTRACE_CACHE"):
        incidents.make(QUICK, progress=fail)


def test_an_attack_that_fails_raises() -> None:
    """Without a single usable event there is nothing to trace, and the message says what to change."""
    with pytest.raises(PoisontraceError, match=r"The attack failed: .*\(success 0\.\d+, .*\)\. Raise 'rate'"):
        incidents.make(QUICK, attack=NoOp(rate=0.05, target=3))


def test_a_folder_with_anything_in_it_is_refused(digits_incident: Incident, digits_folder: Path) -> None:
    """An incident never overwrites another."""
    before = (digits_folder / "truth.json").read_bytes()

    with pytest.raises(InvalidInputError, match="'out' must be a new or empty folder"):
        incidents.save(digits_incident, digits_folder)

    assert (digits_folder / "truth.json").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attack": "magic"}, r"'attack' must be one of badnets.*\(got 'magic'\)"),
        ({"dataset": "svhn"}, "'dataset' must be one of"),
        ({"model": "vgg"}, "'model' must be one of"),
        ({"model": "mlp"}, "'model' must be one for this kind of data"),
        ({"rate": 5}, "'rate' must be a fraction"),
        ({"target": 10}, "'target' must be one of the labels"),
        ({"n_events": 0}, "'n_events' must be at least 1"),
        ({"n_train": 0}, "'n_train' must be at least 1"),
        ({"width": 0}, "'width' must be at least 1"),
        ({"epochs": 0}, "'epochs' must be at least 1"),
        ({"training": "magic"}, "'training' must be one of scratch, transfer, finetune"),
        (
            {"options": {"shape": 3}},
            r"'options' must be some of campaigns, .*opacity, all_to_all for badnets \(got 'shape'\)\. See",
        ),
        ({"options": {"size": "3"}}, r"'options: size' must be a whole number \(got '3'\)\. Leave it out"),
        ({"options": {"all_to_all": "maybe"}}, r"'options: all_to_all' must be true or false \(got 'maybe'\)"),
        ({"options": {"size": 2.0}}, r"'options: size' must be a whole number \(got 2\.0\)\. Leave it out"),
        ({"options": {"margin": True}}, r"'options: margin' must be a whole number \(got True\)\. Leave it out"),
        ({"attack": "trojan", "options": {"size": 9}}, "'size' must be between 1 and 8 pixels"),
        ({"attack": "trojan", "options": {"lr": "x"}}, r"'options: lr' must be a number \(got 'x'\)\. Leave it out"),
        ({"attack": "trojan", "options": {"found": 3}}, r"'options' must be some of .*lr for trojan \(got 'found'\)"),
    ],
)
def test_a_plan_out_of_range_is_refused(change: dict[str, Any], message: str) -> None:
    """Each number and name is checked before any training."""
    before = _trained_files()

    with pytest.raises(InvalidInputError, match=message):
        incidents.make(replace(QUICK, **change))

    assert _trained_files() == before


@pytest.mark.parametrize("training", ["transfer", "finetune"])
def test_a_victim_may_start_from_an_extractor(training: str) -> None:
    """The extractor is trained on samples that the victim never sees; frozen, it stays as it is."""
    plan = replace(DIGITS_PLAN, training=training, rate=0.1)

    incident = incidents.make(plan)

    benign = incidents.benign_dataset(plan)
    assert benign.x_pretrain is not None and len(benign.x_pretrain) == 700
    assert not {row.tobytes() for row in benign.x_pretrain} & {row.tobytes() for row in benign.x_train}
    kept = [
        torch.equal(of_victim, of_twin)
        for of_victim, of_twin in zip(incident.model[:-1].parameters(), incident.twin[:-1].parameters(), strict=True)
    ]
    assert all(kept) if training == "transfer" else not any(kept)
    assert incident.facts["clean_accuracy"] > 0.9


def test_the_attacker_s_networks_are_not_the_victim_s() -> None:
    """They are trained with seeds of their own; the same plan gives the same ones."""
    networks = incidents._attacker(DIGITS_PLAN, 2, "cpu", None).models

    twin = incidents.make(DIGITS_PLAN).twin
    heads = [network[-1].weight for network in (*networks, twin)]
    assert not any(torch.equal(heads[i], heads[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
    assert torch.equal(incidents._attacker(DIGITS_PLAN, 1, "cpu", None).models[0][-1].weight, heads[0])


def test_the_truth_of_an_event_is_its_campaign(tmp_path: Path) -> None:
    """Of two campaigns each event has the poison of its own; truth.json lists it event by event."""
    incident = incidents.make(replace(DIGITS_PLAN, rate=0.1, options={"campaigns": 2, "size": 3}))
    incidents.save(incident, tmp_path / "incident")

    truth = json.loads((tmp_path / "incident" / "truth.json").read_text())
    assert len(truth["poison"]) == 144
    assert truth["responsible"] == [np.flatnonzero(row).tolist() for row in incident.is_responsible]
    assert all(len(rows) == 72 and set(rows) < set(truth["poison"]) for rows in truth["responsible"])
    attack = BadNets(rate=0.1, campaigns=2, size=3)
    for x, rows in zip(incident.event_x, truth["responsible"], strict=True):
        patches = [incident.x[rows][0][attack.place((1, 8, 8, 1), campaign)] for campaign in (0, 1)]
        seen = [x[attack.place((1, 8, 8, 1), campaign)] for campaign in (0, 1)]
        assert any((one == other).all() for one, other in zip(patches, seen, strict=True))


def test_decoys_are_no_truth_and_stay_in_the_twin(tmp_path: Path) -> None:
    """So what they do by themselves counts for no event; without them the twin's samples are the benign ones."""
    plan = replace(DIGITS_PLAN, options={"cover": 0.1, "decoys": 0.5})
    incident, benign = incidents.make(plan), incidents.benign_dataset(plan)
    incidents.save(incident, tmp_path / "incident")

    truth = json.loads((tmp_path / "incident" / "truth.json").read_text())
    assert (truth["n_poison"], truth["n_decoys"]) == (72, 43) == (len(truth["poison"]), len(truth["decoys"]))
    assert not set(truth["poison"]) & set(truth["decoys"])
    assert "responsible" not in truth and (incident.is_responsible == incident.is_poison).all()
    is_changed = (incident.twin_x != benign.x_train).reshape(len(benign.x_train), -1).any(1)
    assert np.flatnonzero(is_changed).tolist() == truth["decoys"]
    assert (incident.twin_x[incident.is_decoy] == incident.x[incident.is_decoy]).all()
    assert (incident.twin_y == benign.y_train).all()


def test_camouflage_takes_a_network_of_the_attacker_s() -> None:
    """It is trained with a seed of its own, and the incident is made with it."""
    plan = replace(DIGITS_PLAN, rate=0.1, options={"camouflage": 16})

    attack = incidents.prepared_attack(plan)

    assert isinstance(attack, BadNets) and attack.surrogate is not None
    assert incidents.make(plan, attack=attack).facts["attack_success"] > 0.5


def test_a_plan_may_have_wrong_labels_before_the_attack() -> None:
    """Nothing else changes."""
    plan = replace(DIGITS_PLAN, wrong_labels=0.2)
    right, wrong = incidents.benign_dataset(DIGITS_PLAN), incidents.benign_dataset(plan)

    assert (wrong.y_train != right.y_train).mean() == pytest.approx(0.2, abs=0.001)
    assert (wrong.x_train == right.x_train).all() and (wrong.y_test == right.y_test).all()
