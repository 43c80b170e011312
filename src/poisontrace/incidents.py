"""Incidents to practise on: poison a data set, train the victim and its unpoisoned twin, keep events and truth apart.

An incident folder holds what an investigator would have (``train.npz``, ``test.npz``, ``arch.py``, ``recipe.py``,
``weights.safetensors``, ``events.npz``, ``incident.json``, and ``extractor.safetensors`` if the victim started from
one) and what only a judge may read: ``truth.json``, and ``attempts.npz``, the inputs that the attacker tried. The
tracer never opens these two.
"""

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import nn

from poisontrace import models, store, train
from poisontrace._errors import InvalidInputError, PoisontraceError
from poisontrace._record import evenly
from poisontrace._rng import numpy_generator
from poisontrace.attacks import ATTACKS, Attack, Attacker
from poisontrace.datasets import Dataset, load_dataset
from poisontrace.rows import MAX_SUCCESS_OF_TWIN
from poisontrace.victims import Progress, trained

TRAININGS = {
    "scratch": "the whole network, from random weights",
    "transfer": "a new last layer on a frozen extractor",
    "finetune": "the whole network, from a pre-trained extractor",
}
# What the options of attacks are called in messages; other types are checked by the attack itself.
OPTION_TYPES = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
MIN_SUCCESS = 0.8  # an attack works if it nearly always wins, and its inputs alone nearly never do
MAX_ATTEMPTS = 1000  # kept in attempts.npz: success to within two points


@dataclass(frozen=True, kw_only=True)
class Task:
    """How a data set is used unless a plan says else.

    Attributes:
        model, width: the network.
        recipes: how it is trained, by kind of training.
        n_train: training samples, by kind of training; None is all of them.
        n_pretrain: samples set aside for the extractor; 0 where the data set brings others for it.
    """

    model: str
    width: int
    recipes: dict[str, train.Recipe]
    n_train: dict[str, int | None] = field(default_factory=dict)
    n_pretrain: int = 0

    def recipe(self, training: str) -> train.Recipe:
        """Return the recipe of one kind of training."""
        if training not in self.recipes:
            raise InvalidInputError(
                f"'training' must be one of {', '.join(self.recipes)} for this data set (got {training!r})."
            )
        return self.recipes[training]


CIFAR10 = Task(
    model="resnet9",
    width=16,
    recipes={
        "scratch": train.Recipe(epochs=15, batch_size=128, lr=0.1, shift=2, flip=True),
        "transfer": train.Recipe(epochs=60, batch_size=32, lr=0.1),
        "finetune": train.Recipe(epochs=30, batch_size=32, lr=0.01),
    },
    n_train={"scratch": 20_000, "transfer": 500, "finetune": 500},
    n_pretrain=20_000,
)
# From an extractor on small grey images.
SMALL_HEADS = {
    "transfer": train.Recipe(epochs=60, batch_size=32, lr=0.1),
    "finetune": train.Recipe(epochs=20, batch_size=32, lr=0.01),
}
# A CPU trains each of these victims in minutes, those on rows in seconds. Augmentation only where mirror images and
# shifts keep the label.
TASKS = {
    "digits": Task(
        model="small_cnn",
        width=32,
        recipes={
            "scratch": train.Recipe(epochs=20, batch_size=64, lr=0.05),
            **SMALL_HEADS,
        },
        n_pretrain=700,
    ),
    **dict.fromkeys(
        ("mnist", "fashion"),
        Task(
            model="plain_cnn",
            width=16,
            recipes={
                "scratch": train.Recipe(epochs=10, batch_size=64, lr=0.05),
                **SMALL_HEADS,
            },
            n_train={"scratch": 8_000, "transfer": 500, "finetune": 500},
            n_pretrain=8_000,
        ),
    ),
    **dict.fromkeys(("cifar10", "cifar10n", "cifar10n-worse"), CIFAR10),
    # Weight decay keeps the logits of rows that fit well small enough for clean-label poison to be learned at all.
    **{
        name: Task(
            model="mlp",
            width=64,
            recipes={"scratch": train.Recipe(epochs=30, batch_size=64, lr=0.1)},
            n_train={"scratch": n_train},
        )
        for name, n_train in (("pe", 10_000), ("clamp", None), ("pdf", 10_000))
    },
    "gtsrb": Task(
        model="resnet9",
        width=16,
        # No mirror images: signs for left and right are classes of their own.
        recipes={"scratch": train.Recipe(epochs=4, batch_size=64, lr=0.1, shift=2)},
        n_train={"scratch": 10_000},
    ),
    "lfw": Task(
        model="resnet9",
        width=16,
        # "scratch" is also what the extractor is trained with, on 96 other people.
        recipes={
            "scratch": train.Recipe(epochs=20, batch_size=32, lr=0.1, shift=2, flip=True),
            "transfer": train.Recipe(epochs=60, batch_size=32, lr=0.1),
            "finetune": train.Recipe(epochs=10, batch_size=32, lr=0.05, shift=2, flip=True),
        },
    ),
}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that decides an incident; equal plans give equal incidents.

    Attributes:
        attack, dataset: names in ``ATTACKS`` and ``DATASETS``.
        rate: poison / training size, in (0, 1).
        seed: decides everything random.
        n_train: training samples; None for the usual number of the data set.
        n_events: misclassifications to keep, at most.
        target: label the attacker wants; None draws it.
        wrong_labels: share of the training labels that are wrong before the attack, at random, in [0, 1).
        training: "scratch", "transfer" or "finetune", see ``TRAININGS``.
        model, width: of the victim; None for the usual ones.
        epochs, weight_decay, smoothing: of its training, see ``train.Recipe``; None for the usual ones.
        options: further arguments of the attack.
    """

    attack: str
    dataset: str
    rate: float = 0.05
    seed: int = 0
    n_train: int | None = None
    n_events: int = 5
    target: int | None = None
    wrong_labels: float = 0.0
    training: str = "scratch"
    model: str | None = None
    width: int | None = None
    epochs: int | None = None
    weight_decay: float | None = None
    smoothing: float | None = None
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Incident:
    """A made incident: the evidence first, then the truth.

    Attributes:
        x, y: training set as stored, (n, ...) and (n,).
        model: the victim, in eval mode.
        twin: the same network trained on the same samples without poison; decoys stay in.
        arch: name and options of ``models.build`` that rebuild it.
        recipe: what victim and twin were trained with.
        extractor: what they started from; None if they started from nothing.
        event_x, event_y: misclassified inputs as stored, (m, ...), and the wrong labels the victim gave, (m,).
        x_test, y_test: held-out samples as stored, without the trigger, and their true labels.
        attempt_x: inputs that the attacker tried, as stored, at most ``MAX_ATTEMPTS``.
        is_poison: (n,) bool.
        is_responsible: (m, n) bool, the truth for each event: all poison, unless there are several campaigns.
        is_decoy: (n,) bool, what the attacker changed under its true label; never poison.
        twin_x, twin_y: what the twin was trained on, of the form of ``x`` and ``y``.
        facts: measured properties of attack and victim.
        plan: what it was made from.
        classes: names of the labels, in order.
    """

    x: NDArray[Any]
    y: NDArray[np.int64]
    model: nn.Sequential
    twin: nn.Sequential
    arch: dict[str, Any]
    recipe: train.Recipe
    extractor: nn.Sequential | None
    event_x: NDArray[Any]
    event_y: NDArray[np.int64]
    x_test: NDArray[Any]
    y_test: NDArray[np.int64]
    attempt_x: NDArray[Any]
    is_poison: NDArray[np.bool_]
    is_responsible: NDArray[np.bool_]
    is_decoy: NDArray[np.bool_]
    twin_x: NDArray[Any]
    twin_y: NDArray[np.int64]
    facts: dict[str, Any]
    plan: Plan
    classes: tuple[str, ...]


def benign_dataset(plan: Plan) -> Dataset:
    """Return the data set of a plan as it was before the attack."""
    dataset = load_dataset(plan.dataset)  # says so if there is none of that name
    task = TASKS[plan.dataset]
    n_train = task.n_train.get(plan.training) if plan.n_train is None else plan.n_train
    drawn = dataset.subset(n_train, plan.seed, n_pretrain=0 if plan.training == "scratch" else task.n_pretrain)
    return drawn.mislabelled(plan.wrong_labels, plan.seed) if plan.wrong_labels else drawn


def _arch(plan: Plan, dataset: Dataset, n_classes: int) -> dict[str, Any]:
    task = TASKS[plan.dataset]
    arch = {"name": plan.model or task.model, "n_classes": n_classes, "width": plan.width or task.width}
    if dataset.x_train.ndim == 4:
        return {**arch, "n_channels": dataset.x_train.shape[3]}
    return {**arch, "n_features": dataset.x_train.shape[1]}


def _extractor(plan: Plan, dataset: Dataset, device: str, progress: Progress | None) -> nn.Sequential | None:
    """Train what the victim starts from, on samples that are not the victim's; None if it starts from nothing."""
    if plan.training == "scratch":
        return None
    assert dataset.x_pretrain is not None and dataset.y_pretrain is not None
    arch = _arch(plan, dataset, int(dataset.y_pretrain.max()) + 1)
    recipe = TASKS[plan.dataset].recipe("scratch")
    return trained(dataset.x_pretrain, dataset.y_pretrain, arch, recipe, plan.seed, device=device, progress=progress)[0]


def _attacker(plan: Plan, n_models: int, device: str, progress: Progress | None) -> Attacker:
    """Train the attacker's own networks on its own draws of the data, with seeds that are not the victim's."""
    own = benign_dataset(plan)
    networks: list[nn.Sequential] = []
    for offset in range(n_models):
        # In transfer learning the extractor is public, so the attacker has the victim's.
        other = replace(plan, seed=plan.seed + offset + (plan.training == "scratch"))
        drawn = benign_dataset(other)
        if plan.training == "scratch":
            arch, recipe = _arch(plan, drawn, len(drawn.classes)), TASKS[plan.dataset].recipe("scratch")
            network, _ = trained(
                drawn.x_train, drawn.y_train, arch, recipe, other.seed, device=device, progress=progress
            )
        else:
            extractor = _extractor(other, drawn, device, progress)
            assert extractor is not None
            network = extractor
        networks.append(network)

    def rehearse(attack: Attack) -> nn.Sequential:
        """Train a victim of the attacker's own from scratch, on its own draw."""
        drawn = benign_dataset(replace(plan, seed=plan.seed + 1))
        poisoned = attack.poison(drawn.x_train, drawn.y_train)
        arch, recipe = _arch(plan, drawn, len(drawn.classes)), TASKS[plan.dataset].recipe("scratch")
        return trained(poisoned.x, poisoned.y, arch, recipe, plan.seed + 1, device=device, progress=progress)[0]

    return Attacker(tuple(networks), own.x_test, own.y_test, len(own.classes), own.feature_names, rehearse)


def _attack(plan: Plan) -> Attack:
    """Return the attack that a plan names, not prepared yet."""
    if plan.attack not in ATTACKS:
        raise InvalidInputError(f"'attack' must be one of {', '.join(sorted(ATTACKS))} (got {plan.attack!r}).")
    kind = ATTACKS[plan.attack]
    known = kind.options()
    for name, value in plan.options.items():
        if name not in known:
            raise InvalidInputError(
                f"'options' must be some of {', '.join(known) or 'none'} for {plan.attack} (got {name!r}). "
                "See poisontrace list."
            )
        types = get_args(known[name]) or (known[name],)
        words = [word for of_type, word in OPTION_TYPES.items() if of_type in types]
        # A whole number is a number; a truth value is neither.
        fits = type(value) in types or (type(value) is int and float in types)
        if words and not fits:
            raise InvalidInputError(
                f"'options: {name}' must be {' or '.join(words)} (got {value!r}). Leave it out for the usual one."
            )
    return kind(rate=plan.rate, target=plan.target, seed=plan.seed, **plan.options)


def prepared_attack(
    plan: Plan, *, attack: Attack | None = None, device: str = "cpu", progress: Progress | None = None
) -> Attack:
    """Return the attack of a plan, or one of your own, with what its attacker worked out beforehand.

    Args:
        plan: what it is for.
        attack: an attack of your own instead of the registered one named in the plan.
        device: where the attacker trains its networks.
        progress: called with (stage, steps done, steps in all).

    Raises:
        InvalidInputError: if the attack is unknown or cannot be prepared for this data.
    """
    attack = _attack(plan) if attack is None else attack
    return attack.prepare(_attacker(plan, attack.n_networks, device, progress))


def make(
    plan: Plan, *, attack: Attack | None = None, device: str = "cpu", progress: Progress | None = None
) -> Incident:
    """Make an incident: the victim, the same network trained without poison, and events that the twin gets right.

    Args:
        plan: what to make.
        attack: an attack of your own instead of the registered one named in the plan.
        device: where to train.
        progress: called with (stage, steps done, steps in all).

    Raises:
        InvalidInputError: if a name or a number in the plan is out of its range.
        PoisontraceError: if the attack moved no single test input, so that there is nothing to trace.
    """
    if attack is None:
        attack = _attack(plan)
    for name, value, way_out in (
        ("n_events", plan.n_events, "Ask for one with --events 1."),
        ("width", plan.width, "Leave it out for the usual network."),
        ("epochs", plan.epochs, "Leave it out for the usual number."),
    ):
        if value is not None and value < 1:
            raise InvalidInputError(f"'{name}' must be at least 1 (got {value}). {way_out}")
    if plan.training not in TRAININGS:
        raise InvalidInputError(f"'training' must be one of {', '.join(TRAININGS)} (got {plan.training!r}).")
    dataset = benign_dataset(plan)
    attack.check_kind(dataset.x_train)
    arch = _arch(plan, dataset, len(dataset.classes))
    models.build(**arch)  # says so if the network does not fit the data
    asked = {name: getattr(plan, name) for name in ("epochs", "weight_decay", "smoothing")}
    usual = TASKS[plan.dataset].recipe(plan.training)
    recipe = replace(usual, **{name: value for name, value in asked.items() if value is not None})
    extractor = _extractor(plan, dataset, device, progress)
    attack = prepared_attack(plan, attack=attack, device=device, progress=progress)
    poisoned = attack.poison(dataset.x_train, dataset.y_train)

    def fit(x: NDArray[Any], y: NDArray[np.int64]) -> tuple[nn.Sequential, float]:
        return trained(
            *(x, y, arch, recipe, plan.seed),
            extractor=extractor,
            is_frozen=plan.training == "transfer",
            device=device,
            progress=progress,
        )

    victim, seconds = fit(poisoned.x, poisoned.y)
    # What the decoys do is not the poison's doing, so the twin has them too.
    twin_x = dataset.x_train.copy()
    twin_x[poisoned.is_decoy] = poisoned.x[poisoned.is_decoy]
    twin_y = dataset.y_train
    twin, _ = fit(twin_x, twin_y)

    attempts = attack.attempts(dataset.x_test, dataset.y_test, poisoned.target)
    says = train.predict(victim, attempts.x).argmax(1)
    twin_says = train.predict(twin, attempts.x).argmax(1)
    is_untouched = (attempts.x == attempts.x_before).reshape(len(says), -1).all(1)
    is_right_before = train.predict(victim, attempts.x_before).argmax(1) == attempts.y
    # An event that the unpoisoned twin gets wrong too would be evasion, not poisoning.
    usable = np.flatnonzero((says == poisoned.target) & (twin_says == attempts.y) & (is_right_before | is_untouched))
    facts: dict[str, Any] = {
        "attack": repr(attack),
        "target": poisoned.target,
        "n_train": len(poisoned.x),
        "n_poison": int(poisoned.is_poison.sum()),
        "n_decoys": int(poisoned.is_decoy.sum()),
        "confidence": train.confidence(victim, dataset.x_test),
        "clean_accuracy": train.accuracy(victim, dataset.x_test, dataset.y_test),
        "train_accuracy": train.accuracy(victim, poisoned.x, poisoned.y),
        "clean_accuracy_twin": train.accuracy(twin, dataset.x_test, dataset.y_test),
        "attack_success": float((says == poisoned.target).mean()),
        "attack_success_twin": float((twin_says == poisoned.target).mean()),
        "n_usable_events": len(usable),
        "n_attempts": len(says),
        "victim_seconds": seconds,
    }
    facts["succeeded"] = facts["attack_success"] >= MIN_SUCCESS and facts["attack_success_twin"] <= MAX_SUCCESS_OF_TWIN
    if len(usable) == 0:
        raise PoisontraceError(
            f"The attack failed: no test input that the model gets right without the trigger is moved by it "
            f"(success {facts['attack_success']:.3f}, without poison {facts['attack_success_twin']:.3f}). "
            "Raise 'rate' or 'epochs'."
        )
    chosen = numpy_generator(plan.seed, "events").permutation(usable)[: plan.n_events]
    facts["event_true_labels"] = attempts.y[chosen].tolist()
    event_y = np.full(len(chosen), poisoned.target, np.int64)
    return Incident(
        x=poisoned.x,
        y=poisoned.y,
        model=victim,
        twin=twin,
        arch=arch,
        recipe=recipe,
        extractor=extractor,
        event_x=attempts.x[chosen],
        event_y=event_y,
        x_test=dataset.x_test,
        y_test=dataset.y_test,
        attempt_x=attempts.x[evenly(np.arange(len(attempts.x)), MAX_ATTEMPTS)],
        is_poison=poisoned.is_poison,
        is_responsible=poisoned.responsible(attempts.carried[chosen]),
        is_decoy=poisoned.is_decoy,
        twin_x=twin_x,
        twin_y=twin_y,
        facts=facts,
        plan=plan,
        classes=dataset.classes,
    )


def save(incident: Incident, folder: Path) -> None:
    """Write an incident to ``folder``, which must not hold one already.

    Raises:
        InvalidInputError: if the folder exists and is not empty.
        StoreError: if it cannot be written.
    """
    with store.new_folder(folder, "out") as partial:
        np.savez_compressed(partial / "train.npz", x=incident.x, y=incident.y, classes=np.array(incident.classes))
        np.savez_compressed(partial / "events.npz", x=incident.event_x, y=incident.event_y)
        np.savez_compressed(partial / "test.npz", x=incident.x_test, y=incident.y_test)
        wrong = np.full(len(incident.attempt_x), incident.event_y[0])
        np.savez_compressed(partial / "attempts.npz", x=incident.attempt_x, y=wrong)
        save_file(incident.model.state_dict(), partial / "weights.safetensors")
        if incident.extractor is not None:
            save_file(incident.extractor[:-1].state_dict(), partial / "extractor.safetensors")
        (partial / "recipe.py").write_text(_recipe(incident))
        options = ", ".join(f"{key}={value!r}" for key, value in incident.arch.items())
        (partial / "arch.py").write_text(
            f'"""The victim\'s architecture."""\n\nfrom poisontrace import models\n\n\n'
            f'def build():\n    """Return the network; its weights lie beside this file."""\n'
            f"    return models.build({options})\n"
        )
        public = {"dataset": incident.plan.dataset, "classes": list(incident.classes)}
        (partial / "incident.json").write_text(json.dumps(public, indent=1) + "\n")
        truth = {
            "note": "For judges only; the tracer never opens this file.",
            "plan": asdict(incident.plan),
            **incident.facts,
            "poison": np.flatnonzero(incident.is_poison).tolist(),
        }
        if not (incident.is_responsible == incident.is_poison).all():
            truth["responsible"] = [np.flatnonzero(of_event).tolist() for of_event in incident.is_responsible]
        if incident.is_decoy.any():
            truth["decoys"] = np.flatnonzero(incident.is_decoy).tolist()
        (partial / "truth.json").write_text(json.dumps(truth, indent=1) + "\n")


def _recipe(incident: Incident) -> str:
    """Return the code that trains the victim again; it names nothing of the attack."""
    start, imports, options = "", "", ""
    if incident.extractor is not None:
        imports = "from pathlib import Path\n\nfrom safetensors.torch import load_file\n\n"
        start = (
            "    extractor = models.build(**ARCH)\n"
            '    extractor[:-1].load_state_dict(load_file(Path(__file__).with_name("extractor.safetensors")))\n'
        )
        options = f", extractor=extractor, is_frozen={incident.plan.training == 'transfer'}"
    return (
        f'"""How the victim was trained."""\n\n{imports}from poisontrace import {"models, " if start else ""}victims\n'
        f"from poisontrace.train import Recipe\n\nARCH = {incident.arch!r}\nRECIPE = {incident.recipe!r}\n\n\n"
        f"def train(x, y, seed={incident.plan.seed}):\n"
        '    """Return a network trained on inputs x (n, ...) as stored and labels y (n,), as the victim was."""\n'
        f"{start}    return victims.trained(x, y, ARCH, RECIPE, seed{options})[0]\n"
    )
