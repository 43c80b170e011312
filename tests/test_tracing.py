"""The main path end to end: the planted poison and nothing else, the same whatever order or form the data come in."""

import ast
import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tasks import (
    Event,
    Pairs,
    Planted,
    context_of,
    events_of,
    fitted_network,
    noisy_features,
    planted,
    planted_mlp,
)
from torch import nn

import poisontrace
from poisontrace import Trace, doubting, incidents, metrics, models, trace, tracing, train
from poisontrace._errors import InvalidInputError, UnsupportedModelError
from poisontrace._rng import global_seed, numpy_generator
from poisontrace._types import Finding
from poisontrace.clustering import Split
from poisontrace.context import Context
from poisontrace.data import ArraySet, to_inputs
from poisontrace.datasets import load_dataset
from poisontrace.embedding import Features
from poisontrace.incidents import Incident
from poisontrace.judging import Judge, Suspect
from poisontrace.searching import two_kinds
from poisontrace.sights import Sight
from poisontrace.tracing import Config, _as_certain, _follow


@pytest.fixture(scope="module")
def traces(digits_incident: Incident) -> list[Trace]:
    """Each event of the incident, traced alone."""
    data = (digits_incident.x, digits_incident.y)
    return [trace(digits_incident.model, data, [event]) for event in events_of(digits_incident)]


def _numbers(result: Trace) -> list[Any]:
    return [
        result.verdict,
        result.poison.tolist(),
        result.scores.tolist(),
        [(c.id, c.parent, c.event, c.indices.tolist(), c.losses, c.decision, c.reason) for c in result.clusters],
        [dict(finding.statistics) for finding in result.findings],
    ]


def test_each_event_alone_leads_to_the_poison(digits_incident: Incident, traces: list[Trace]) -> None:
    """Every event of a BadNets incident: verdict poison, precision and recall of 0.99 or more."""
    truth = np.flatnonzero(digits_incident.is_poison)

    assert [result.verdict for result in traces] == ["poison"] * 5
    assert min(metrics.precision(result.poison, truth) for result in traces) >= 0.99
    assert min(metrics.recall(result.poison, truth) for result in traces) >= 0.99


def test_a_finding_tells_the_numbers_that_led_to_it(digits_incident: Incident, traces: list[Trace]) -> None:
    """Label, confidence, gap and both rises: the event's is large, the controls' is not."""
    for result in traces:
        (finding,) = result.findings
        assert finding.label == digits_incident.event_y[0]
        assert 0 < finding.probability <= 1
        assert finding.statistics["separation"] >= Config().separation
        assert finding.statistics["event_rise"] > 10 * abs(finding.statistics["control_rise"])


def test_scores_are_certainties_and_agree_with_the_poison(traces: list[Trace]) -> None:
    """float32 in [0, 1], half or more exactly on the poison, zero on other labels."""
    for result in traces:
        assert result.scores.dtype == np.float32
        assert result.scores.shape == result.labels.shape
        assert 0 <= result.scores.min() <= result.scores.max() <= 1
        assert np.flatnonzero(result.scores >= 0.5).tolist() == result.poison.tolist()
        assert not result.scores[result.labels != result.findings[0].label].any()


def _check_tree(result: Trace) -> None:
    assert [cluster.id for cluster in result.clusters] == list(range(len(result.clusters)))
    roots = [cluster for cluster in result.clusters if cluster.parent is None]
    assert [root.event for root in roots] == list(range(len(result.findings)))
    for cluster in result.clusters:
        assert cluster.indices.dtype == np.int64
        assert (np.diff(cluster.indices) > 0).all()
        assert cluster.decision in ("responsible", "pruned", "split")
        assert cluster.reason
        assert (cluster.losses is None) == (cluster.parent is None)
        assert cluster.parent is None or cluster.parent < cluster.id
        children = [child for child in result.clusters if child.parent == cluster.id]
        assert bool(children) == (cluster.decision == "split")
        if children:
            assert {child.event for child in children} == {cluster.event}
            together = np.sort(np.concatenate([child.indices for child in children]))
            assert together.tolist() == cluster.indices.tolist()
    for root, finding in zip(roots, result.findings, strict=True):
        kept = [c.indices for c in result.clusters if c.event == root.event and c.decision == "responsible"]
        assert root.indices.tolist() == list(range(len(result.labels)))
        assert finding.poison.tolist() == (np.sort(np.concatenate(kept)).tolist() if kept else [])


def test_the_tree_is_a_tree(traces: list[Trace]) -> None:
    """Ids are positions, parents come first, children part their parent, the responsible leaves are the poison."""
    for result in traces:
        _check_tree(result)


def test_the_trace_says_how_it_was_made(digits_incident: Incident, traces: list[Trace]) -> None:
    """Rule, thresholds, layers, seed, device, seconds of each stage and exhibits for the report."""
    result = traces[0]

    assert (result.rule, result.seed, result.warnings, result.ids) == ("default", 0, (), None)
    assert result.config["separation"] == Config().separation
    assert result.config["layers"][-1] == "5"
    assert (result.config["batch_size"], result.config["memory"]) == (256, 1 << 30)
    assert set(result.seconds) == {"forward pass", "clustering", "unlearning"}
    assert result.labels.tolist() == digits_incident.y.tolist()
    assert result.exhibits["events"].shape == (1, 1, 8, 8)
    assert set(result.exhibits["poison_index"]) <= set(result.poison)
    assert not set(result.exhibits["benign_index"]) & set(result.poison)
    assert len(result.exhibits["benign"]) == len(result.exhibits["benign_index"]) == 24
    nearest = result.exhibits["nearest_index"]
    assert nearest.shape == (1, 6) and set(nearest[0]) <= set(result.exhibits["poison_index"])
    (coordinates,) = result.coordinates
    assert (result.labels[coordinates.indices] == result.findings[0].label).all()
    assert len(coordinates.indices) == (result.labels == result.findings[0].label).sum()
    is_poison = np.isin(coordinates.indices, result.poison)
    assert coordinates.x.dtype == coordinates.plane.dtype == np.float32 and coordinates.x.shape[1] <= 128
    assert coordinates.plane[is_poison, 0].min() > coordinates.plane[~is_poison, 0].max()


def test_a_trace_has_no_room_for_the_truth() -> None:
    """Neither the result nor the modules that make it know of attacks or metrics."""
    assert not [field.name for field in dataclasses.fields(Trace) if "truth" in field.name or "is_poison" in field.name]
    folder = Path(tracing.__file__).parent
    for name in ("tracing", "embedding", "scoring", "clustering", "unlearning"):
        tree = ast.parse((folder / f"{name}.py").read_text())
        imported = {
            alias
            for node in ast.walk(tree)
            if isinstance(node, ast.Import | ast.ImportFrom)
            for alias in [getattr(node, "module", "") or "", *(alias.name for alias in node.names)]
        }
        assert not [alias for alias in imported if alias.split(".")[-1] in ("attacks", "metrics", "incidents", "bench")]


def test_the_same_call_gives_the_same_trace(digits_incident: Incident, traces: list[Trace]) -> None:
    """Indices, scores, tree and statistics are equal to the bit."""
    again = trace(digits_incident.model, (digits_incident.x, digits_incident.y), events_of(digits_incident)[:1])

    assert _numbers(again) == _numbers(traces[0])


def test_the_seed_does_not_matter_to_the_default_rule(digits_incident: Incident, traces: list[Trace]) -> None:
    """It only draws the benign samples shown in the report."""
    other = trace(digits_incident.model, (digits_incident.x, digits_incident.y), events_of(digits_incident)[:1], seed=7)

    assert _numbers(other) == _numbers(traces[0])
    assert other.exhibits["benign_index"].tolist() != traces[0].exhibits["benign_index"].tolist()


def test_a_pass_of_another_precision_finds_the_same_poison(digits_incident: Incident, traces: list[Trace]) -> None:
    """Its numbers are a little others, and kept as float32; what it was run in is written down."""
    data, event = (digits_incident.x, digits_incident.y), events_of(digits_incident)[:1]
    result = trace(digits_incident.model, data, event, precision="bfloat16")
    assert np.array_equal(result.poison, traces[0].poison)
    assert (result.config["precision"], traces[0].config["precision"]) == ("bfloat16", "float32")


def test_the_batch_size_does_not_matter(digits_incident: Incident, traces: list[Trace]) -> None:
    """Another step through the training set: the same samples."""
    other = trace(
        digits_incident.model, (digits_incident.x, digits_incident.y), events_of(digits_incident)[:1], batch_size=37
    )

    assert other.poison.tolist() == traces[0].poison.tolist()
    np.testing.assert_allclose(other.scores, traces[0].scores, atol=1e-2)


def test_a_permuted_training_set_gives_permuted_indices(digits_incident: Incident, traces: list[Trace]) -> None:
    """A sample is responsible wherever it stands."""
    order = numpy_generator(0, "test/order").permutation(len(digits_incident.x))

    other = trace(
        digits_incident.model, (digits_incident.x[order], digits_incident.y[order]), events_of(digits_incident)[:1]
    )

    assert np.sort(order[other.poison]).tolist() == traces[0].poison.tolist()


def test_a_torch_data_set_and_arrays_give_the_same(digits_incident: Incident, traces: list[Trace]) -> None:
    """Pairs by index, an array set and a pair of arrays are three forms of one thing."""
    x, y = digits_incident.x, digits_incident.y
    sets = (torch.utils.data.TensorDataset(to_inputs(x), torch.from_numpy(y)), ArraySet(x, y), Pairs(to_inputs(x), y))

    for data in sets:
        other = trace(digits_incident.model, data, events_of(digits_incident)[:1])
        assert other.poison.tolist() == traces[0].poison.tolist()
        np.testing.assert_allclose(other.scores, traces[0].scores, atol=1e-2)


def test_ids_of_the_training_set_are_handed_on() -> None:
    """A named sample keeps its name, unless that is too long for one: it would be in each file of the case."""
    task = planted()
    ids = (*(f"row-{row}" for row in range(len(task.y) - 1)), "x" * 200_000)

    result = trace(fitted_network(task, planted_mlp), ArraySet(task.x.numpy(), task.y.numpy(), ids), [(task.event, 0)])

    assert result.ids == (*ids[:-1], "x" * 1_000)


def test_two_events_give_the_union_and_a_finding_each(digits_incident: Incident, traces: list[Trace]) -> None:
    """Each event is traced on its own; the trace puts them together."""
    both = trace(digits_incident.model, (digits_incident.x, digits_incident.y), events_of(digits_incident)[1:3])

    assert [f.poison.tolist() for f in both.findings] == [t.poison.tolist() for t in traces[1:3]]
    assert both.poison.tolist() == np.union1d(traces[1].poison, traces[2].poison).tolist()
    assert np.flatnonzero(both.scores >= 0.5).tolist() == both.poison.tolist()
    np.testing.assert_array_equal(both.scores, np.maximum(traces[1].scores, traces[2].scores))
    _check_tree(both)


def test_the_model_is_left_as_found(digits_incident: Incident) -> None:
    """Mode of each module, hooks, gradients, weights, batch statistics and the global generators."""
    model = copy.deepcopy(digits_incident.model).train()
    model[1].eval()

    def state() -> dict[str, Any]:
        return {
            "modes": [module.training for module in model.modules()],
            "hooks": [len(module._forward_hooks) for module in model.modules()],
            "gradients": [(p.grad, p.requires_grad) for p in model.parameters()],
            "values": [tensor.tolist() for tensor in model.state_dict().values()],
            "torch": torch.get_rng_state().tolist(),
            "numpy": np.random.get_state()[1].tolist(),
        }

    before = state()
    for rule in tracing.RULES:
        trace(model, (digits_incident.x, digits_incident.y), events_of(digits_incident)[:1], rule=rule)

    assert state() == before


def test_gradients_may_be_switched_off_by_the_caller(digits_incident: Incident, traces: list[Trace]) -> None:
    """Inside ``no_grad`` or ``inference_mode`` the trace is the same."""
    for switch in (torch.no_grad, torch.inference_mode):
        with switch():
            result = trace(
                digits_incident.model, (digits_incident.x, digits_incident.y), events_of(digits_incident)[:1]
            )
        assert result.poison.tolist() == traces[0].poison.tolist()


@pytest.mark.parametrize("rule", tracing.RULES)
def test_the_default_number_format_of_the_caller_does_not_matter(rule: str) -> None:
    """All that a trace makes says what it is; the default is left as found."""
    task = planted()
    model = fitted_network(task, planted_mlp)
    inputs = model, (task.x.numpy(), task.y.numpy()), [(task.event, 0)]
    expected = trace(*inputs, rule=rule)

    torch.set_default_dtype(torch.float64)
    try:
        got = trace(*inputs, rule=rule)
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)

    assert len(expected.poison)
    assert repr(_numbers(got)) == repr(_numbers(expected))  # NaN stands for what the paper does not ask


def test_events_that_carry_gradients_are_accepted() -> None:
    """An input crafted by optimisation is as good as any."""
    task = planted()

    result = trace(
        fitted_network(task, planted_mlp),
        list(zip(task.x.clone().requires_grad_(), task.y.tolist(), strict=True)),
        [(task.event.clone().requires_grad_(), 0)],
    )

    assert result.poison.tolist() == task.poison.tolist()


def test_progress_is_reported(digits_incident: Incident) -> None:
    """The forward pass by samples, the rest by events."""
    calls: list[tuple[str, int, int]] = []

    trace(
        digits_incident.model,
        (digits_incident.x, digits_incident.y),
        events_of(digits_incident)[:1],
        batch_size=1000,
        progress=lambda *call: calls.append(call),
    )

    assert calls == [("forward pass", 1000, 1437), ("forward pass", 1437, 1437), ("events traced", 1, 1)]


@pytest.fixture(scope="module")
def clean_victim() -> tuple[nn.Module, NDArray[Any], NDArray[np.int64], list[Event]]:
    """The unpoisoned twin of the incident's victim, its training set, and noisy test digits that it gets wrong."""
    digits = load_dataset("digits")
    with global_seed(0, "victim/init"):
        model = models.small_cnn(width=16)
    train.fit(model, digits.x_train, digits.y_train, train.Recipe(epochs=4, batch_size=64, lr=0.05), seed=0)
    rng = numpy_generator(0, "test/noise")
    noisy = np.clip(digits.x_test + rng.normal(0, 40, digits.x_test.shape), 0, 255).astype(np.uint8)
    says = train.predict(model, noisy).argmax(1)
    wrong = rng.permutation(np.flatnonzero(says != digits.y_test))[:8]
    return model, digits.x_train, digits.y_train, [(to_inputs(noisy[[row]])[0], int(says[row])) for row in wrong]


@pytest.fixture(scope="module")
def natural_mistakes(clean_victim: tuple[Any, ...]) -> list[Trace]:
    """Each natural mistake, traced alone."""
    model, x, y, events = clean_victim
    return [trace(model, (x, y), [event]) for event in events]


def test_most_natural_mistakes_of_a_clean_victim_accuse_nobody(natural_mistakes: list[Trace]) -> None:
    """At most one of eight noisy digits ends in "poison", and samples are accused exactly then.

    Zero is the aim; of 13 mistakes on unaltered digits, 2 end in "poison" (decision 0008).
    """
    verdicts = [result.verdict for result in natural_mistakes]

    assert verdicts.count("poison") <= 1
    for result in natural_mistakes:
        assert (result.verdict == "poison") == bool(len(result.poison)) == bool((result.scores >= 0.5).any())
        _check_tree(result)


def test_a_poisoned_and_an_ordinary_event_are_told_apart() -> None:
    """One event of each kind in one call: only the poisoned one accuses."""
    task = planted()
    ordinary = task.x[int(task.benign(2)[0])]

    result = trace(
        fitted_network(task, planted_mlp), (task.x.numpy(), task.y.numpy()), [(ordinary, 2), (task.event, 0)]
    )

    assert [finding.verdict for finding in result.findings] == ["no-poison", "poison"]
    assert result.verdict == "poison"
    assert result.poison.tolist() == task.poison.tolist()
    assert np.flatnonzero(result.scores >= 0.5).tolist() == result.poison.tolist()
    _check_tree(result)


@pytest.mark.parametrize(
    ("certainty", "may_join", "poison"),
    [
        ([0.95, 0.05, 0.5, 0.95, 0.5], True, [10, 14, 16]),  # one clearly is, one clearly not; doubt changes nothing
        ([0.95, 0.05, 0.5, 0.95, 0.5], False, [10, 14]),
        ([0.05, 0.05, 0.05, 0.95, 0.95], True, [10, 12, 14]),  # what speaks against all of them knows another cluster
    ],
)
def test_a_clear_posterior_overrules_the_tree(certainty: list[float], may_join: bool, poison: list[int]) -> None:
    """Of samples 10, 12 and 14, accused of five of a label, or of the other two."""
    own, accused = np.arange(10, 20, 2), np.array([10, 12, 14])

    kept = _as_certain(own, accused, np.array(certainty, np.float32), may_join=may_join)

    assert kept.tolist() == poison


def test_noisy_images_of_one_label_are_found_without_the_event() -> None:
    """Exactly they, where no other label holds the like; a few, none, or some in every label accuse nobody."""

    def follow(features: Features) -> tuple[Finding, NDArray[np.float32]]:
        return _follow(context_of(features))

    finding, scores = follow(noisy_features(n_noisy=40))

    assert finding.verdict == "poison"
    assert finding.poison.tolist() == list(range(40))
    assert np.flatnonzero(scores >= 0.5).tolist() == list(range(40))
    few = Config().min_cluster - 5
    for features in (
        noisy_features(n_noisy=0),
        noisy_features(n_noisy=few),
        noisy_features(n_noisy=40, of_each=True),
    ):
        assert follow(features)[0].verdict == "no-poison"


@pytest.mark.parametrize(("harm", "verdict"), [(0.8, "poison"), (1.6, "inconclusive")])
def test_a_doubtful_accusation_that_harms_ordinary_samples_is_dropped(
    digits_incident: Incident, monkeypatch: pytest.MonkeyPatch, harm: float, verdict: str
) -> None:
    """The margin says how nearly; without doubt nobody asks, nor of what hardly another sample is like."""
    data, event = (digits_incident.x, digits_incident.y), events_of(digits_incident)[:1]
    monkeypatch.setattr(Sight, "share_elsewhere", lambda sight, cluster: (0.2, 0.0))
    monkeypatch.setattr(Sight, "told_from_others", lambda sight, cluster, **options: 2.6)
    monkeypatch.setattr(Sight, "told_in_pixels", lambda sight, cluster: 6.0)
    monkeypatch.setattr(Suspect, "harm", lambda suspect: harm)
    monkeypatch.setattr(doubting, "DOUBTFUL", 0.0)
    assert trace(digits_incident.model, data, event).verdict == "poison"

    monkeypatch.setattr(doubting, "DOUBTFUL", np.inf)
    result = trace(digits_incident.model, data, event)

    assert result.verdict == verdict
    assert result.findings[0].statistics["margin"] <= 1 / harm
    assert any("suffer" in cluster.reason for cluster in result.clusters) == (verdict == "inconclusive")
    assert (len(result.poison) > 0) == (verdict == "poison")
    suspects, found = result.findings[0].suspects, np.flatnonzero(digits_incident.is_poison)
    assert suspects.tolist() == ([] if verdict == "poison" else found.tolist())
    assert ("suffer" in result.findings[0].doubt) == (verdict == "inconclusive")
    assert result.exhibits["suspects_index"].tolist() == suspects.tolist()


@pytest.mark.parametrize(
    ("is_larger", "elsewhere", "told", "verdict"),
    [
        (False, 0.2, 0.0, "poison"),
        (False, 0.5, 5.0, "inconclusive"),
        (False, 0.5, 6.0, "poison"),
        (True, 0.4, 0.0, "poison"),
        (True, 0.8, 0.0, "inconclusive"),
    ],
)
def test_what_is_as_common_elsewhere_is_not_accused(
    digits_incident: Incident,
    monkeypatch: pytest.MonkeyPatch,
    is_larger: bool,
    elsewhere: float,
    told: float,
    verdict: str,
) -> None:
    """72 poison samples beside all ordinary ones of the label, or beside 60 of them, with or without doubt.

    What something tells from samples like it, where the network begins, is not as common.
    """
    is_ordinary = (digits_incident.y == digits_incident.event_y[0]) & ~digits_incident.is_poison
    kept = np.ones(len(digits_incident.y), bool)
    kept[np.flatnonzero(is_ordinary)[60 if is_larger else len(kept) :]] = False
    data, event = (digits_incident.x[kept], digits_incident.y[kept]), events_of(digits_incident)[:1]
    monkeypatch.setattr(Sight, "share_elsewhere", lambda sight, cluster: (elsewhere, elsewhere))
    monkeypatch.setattr(Sight, "told_from_others", lambda sight, cluster, **options: told)
    monkeypatch.setattr(Sight, "told_in_pixels", lambda sight, cluster: 6.0)
    monkeypatch.setattr(Suspect, "harm", lambda suspect: 0.0)
    monkeypatch.setattr(Sight, "diversity", lambda sight, cluster: 0.6)

    for doubtful in (0.0, np.inf):
        monkeypatch.setattr(doubting, "DOUBTFUL", doubtful)
        result = trace(digits_incident.model, data, event)
        is_let_go = any("as common in labels" in cluster.reason for cluster in result.clusters)
        assert (result.verdict, is_let_go) == (verdict, verdict != "poison")


def test_relabelled_samples_are_never_the_ordinary_ones(
    digits_incident: Incident, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even where they are most of their label: which of two kinds is ordinary is not asked then."""
    ordinary = np.flatnonzero((digits_incident.y == digits_incident.event_y[0]) & ~digits_incident.is_poison)
    kept = np.ones(len(digits_incident.y), bool)
    kept[ordinary[60:]] = False
    controls: list[NDArray[np.int64]] = []
    take_controls = Judge.take_controls

    def noted(judge: Judge, cluster: NDArray[np.int64]) -> None:
        controls.append(cluster)
        take_controls(judge, cluster)

    def of_many_labels(*asked: Any, **by: Any) -> Split:
        return dataclasses.replace(two_kinds(*asked, **by), diversity=2.0)

    monkeypatch.setattr(tracing, "two_kinds", of_many_labels)
    monkeypatch.setattr(Judge, "take_controls", noted)
    monkeypatch.setattr(Judge, "compare", lambda *_: pytest.fail("asked which kind is ordinary"))
    result = trace(
        digits_incident.model, (digits_incident.x[kept], digits_incident.y[kept]), events_of(digits_incident)[:1]
    )

    assert result.poison.tolist() == np.flatnonzero(digits_incident.is_poison[kept]).tolist()
    assert not digits_incident.is_poison[kept][controls[-1]].any()


def test_a_natural_kind_within_a_label_is_not_accused() -> None:
    """A label of two natural kinds and a mistake that resembles both: no sample was planted, none should be accused."""
    rng = numpy_generator(0, "toy/modes")
    y = np.arange(300) % 3
    x = rng.standard_normal((300, 8)).astype(np.float32) * 0.7
    x[np.arange(300), y] += 4
    own = np.flatnonzero(y == 0)
    x[own, 4 + np.arange(100) % 2] += 5
    task = Planted(torch.from_numpy(x), torch.from_numpy(y), torch.zeros(8), np.zeros(300, bool))
    mistake = torch.tensor([2.2, 2.0, 0, 0, 2.5, 2.5, 0, 0])

    result = trace(fitted_network(task, planted_mlp), (x, y), [(mistake, 0)])

    assert result.verdict != "poison"


def test_events_of_two_campaigns_are_traced_apart_and_a_faint_one_joins_its_own(
    digits_incident: Incident, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second trigger for the same label, and an event that alone leads nowhere but needs the first one's samples."""
    rng = numpy_generator(0, "toy/campaigns")
    y = np.arange(900) % 3
    x = rng.standard_normal((900, 9)).astype(np.float32) * 0.7
    x[np.arange(900), y] += 4
    chosen = [np.flatnonzero(y == 1)[:40], np.flatnonzero(y == 2)[:40]]
    for trigger, poison in zip((7, 8), chosen, strict=True):
        x[poison, trigger] += 6
    y[np.concatenate(chosen)] = 0
    task = Planted(torch.from_numpy(x), torch.from_numpy(y), torch.zeros(9), np.zeros(900, bool))
    model = fitted_network(task, lambda: nn.Sequential(nn.Linear(9, 16), nn.ReLU(), nn.Linear(16, 3)))
    events = [(torch.tensor([0, 4, 0, 0, 0, 0, 0, 6.0, 0]), 0), (torch.tensor([0, 0, 4, 0, 0, 0, 0, 0, 6.0]), 0)]
    faint = (torch.tensor([0, 4, 0, 0, 0, 0, 0, 5.8, 0.1]), 0)
    alone = _follow

    def blind(case: Context) -> Any:
        finding, scores = alone(case)
        if case.event < 2:
            return finding, scores
        return dataclasses.replace(finding, verdict="no-poison", poison=np.array([], np.int64)), scores * 0

    monkeypatch.setattr(tracing, "_follow", blind)
    result = trace(model, (x, y), [*events, faint])

    assert [campaign.events for campaign in result.campaigns] == [(0, 2), (1,)]
    for campaign, poison in zip(result.campaigns, chosen, strict=True):
        assert campaign.poison.tolist() == poison.tolist()
    assert [finding.verdict for finding in result.findings] == ["poison"] * 3
    assert [finding.error is None for finding in result.findings] == [False, False, True]
    assert result.poison.tolist() == np.sort(np.concatenate(chosen)).tolist()
    assert np.flatnonzero(result.scores >= 0.5).tolist() == result.poison.tolist()


def test_an_event_is_owed_to_its_own_campaign_alone(two_campaigns: Incident) -> None:
    """Poison with the other patch, for the same label, is not responsible for it; each campaign has its own events."""
    data, events = (two_campaigns.x, two_campaigns.y), events_of(two_campaigns)
    own = [np.flatnonzero(mask) for mask in two_campaigns.is_responsible]

    together = trace(two_campaigns.model, data, events)

    exact = [finding.poison.tolist() == truth.tolist() for finding, truth in zip(together.findings, own, strict=True)]
    assert sum(exact) >= 4  # in some victims one event leans on both
    assert min(metrics.recall(f.poison, truth) for f, truth in zip(together.findings, own, strict=True)) == 1
    for campaign in together.campaigns:
        assert len({tuple(own[event]) for event in campaign.events}) == 1


def test_a_trigger_that_can_hardly_be_seen_is_traced_by_what_its_poison_was() -> None:
    """A patch of two pixels, mostly transparent: the event is nearly as much like the other samples of the label."""
    plan = incidents.Plan(attack="badnets", dataset="digits", rate=0.1, n_events=2, seed=2, options={"opacity": 0.4})
    incident = incidents.make(plan)

    for event, truth in zip(events_of(incident), incident.is_responsible, strict=True):
        result = trace(incident.model, (incident.x, incident.y), [event])
        assert metrics.precision(result.poison, np.flatnonzero(truth)) >= 0.98
        assert metrics.recall(result.poison, np.flatnonzero(truth)) >= 0.98
        assert result.findings[0].statistics["diversity"] >= 1


def test_ordinary_samples_beside_poison_are_not_accused_of_an_ordinary_event(two_campaigns: Incident) -> None:
    """Of the label that the attacker aims at, what is not poison is ordinary, though ordinary events lean on it."""
    dataset, label = incidents.benign_dataset(two_campaigns.plan), int(two_campaigns.event_y[0])
    said = train.predict(two_campaigns.model, dataset.x_test).argmax(1)
    ordinary = np.flatnonzero((said == label) & (dataset.y_test == label))[:3]
    events = ArraySet(dataset.x_test[ordinary], said[ordinary])

    result = trace(two_campaigns.model, (two_campaigns.x, two_campaigns.y), [events[0], events[1], events[2]])

    assert not len(result.poison)


def test_what_is_accused_moves_the_event_and_spares_the_controls(natural_mistakes: list[Trace]) -> None:
    """Every responsible cluster shows the two-sided signature that its reason states, natural mistakes included."""
    config = Config()
    for result in natural_mistakes:
        for cluster in result.clusters:
            if cluster.decision == "responsible":
                assert cluster.losses is not None
                assert cluster.losses.event_rise >= config.faint_rise
                assert cluster.losses.control_rise <= config.control_share * cluster.losses.event_rise


def test_a_weak_split_is_inconclusive() -> None:
    """Between the two bars there is something, but not enough to accuse."""
    task = planted()

    result = trace(
        fitted_network(task, planted_mlp),
        (task.x.numpy(), task.y.numpy()),
        [(task.event, 0)],
        config=Config(separation=1000.0),
    )

    assert result.verdict == "inconclusive"
    assert len(result.poison) == 0
    assert not result.scores.any()


def test_a_table_of_two_classes_works() -> None:
    """Rows of features, an MLP, a trigger on one feature: exact."""
    rng = numpy_generator(0, "test/table")
    y = np.arange(300) % 2
    x = (rng.standard_normal((300, 6)) + 4 * y[:, None] * (np.arange(6) < 3)).astype(np.float32)
    poison = np.arange(280, 300)
    x[poison] = rng.standard_normal((20, 6)).astype(np.float32)
    x[poison, 5] = 8
    y[poison] = 1
    with global_seed(0, "test/init"):
        model = models.mlp(2, n_features=6, width=16)
    train.fit(model, x, y, train.Recipe(epochs=30, batch_size=32, lr=0.05), seed=0)
    event = torch.tensor([0.0, 0, 0, 0, 0, 8])

    result = trace(model, (x, y), [(event, 1)])

    assert result.verdict == "poison"
    assert result.poison.tolist() == poison.tolist()


def _untrained(n_classes: int = 3) -> nn.Module:
    with global_seed(0, "test/init"):
        return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, n_classes))


def _rows(n: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    return numpy_generator(0, "test/rows").standard_normal((n, 4)).astype(np.float32), np.arange(n) % 3


def _answer(model: nn.Module, x: Any) -> Event:
    with torch.no_grad():
        return torch.as_tensor(x), int(model(torch.as_tensor(x)[None])[0].argmax())


@pytest.mark.parametrize("rule", tracing.RULES)
@pytest.mark.parametrize("n", [1, 2, 3, 12])
def test_tiny_training_sets_do_not_crash(n: int, rule: str) -> None:
    """Too few samples to tell anything apart is an answer."""
    model, (x, y) = _untrained(), _rows(n)

    result = trace(model, (x, y), [_answer(model, x[0])], rule=rule)

    assert len(result.scores) == n
    if rule == "default":
        assert result.verdict == "no-poison"
        _check_tree(result)


@pytest.mark.parametrize("rule", tracing.RULES)
def test_features_without_life_do_not_crash(rule: str) -> None:
    """A dead layer, a dead head and a training set of copies tell nothing apart and accuse nobody by default."""
    dead_layer, dead_head, (x, y) = _untrained(), _untrained(), _rows(200)
    nn.init.constant_(dead_layer[0].bias, -100)
    nn.init.zeros_(dead_head[2].weight)

    for model, data in ((dead_layer, x), (dead_head, x), (_untrained(), np.ones_like(x))):
        found = trace(model, (data, y), [_answer(model, data[0])], rule=rule).poison
        assert len(found) in ((0,) if rule == "default" else (0, len(data)))  # the release keeps what it cannot split


@pytest.mark.parametrize("scale", [1e-20, 1e15])
def test_extreme_scales_do_not_crash(scale: float) -> None:
    """Features far from unit size are standardised like any others."""
    model, (x, y) = _untrained(), _rows(200)
    x *= np.float32(scale)

    assert trace(model, (x, y), [_answer(model, x[0])]).verdict == "no-poison"


def test_a_label_that_no_training_sample_carries_is_no_poison() -> None:
    """A model with an output to spare: nothing can be responsible, and a warning says so."""
    task = planted()
    model = fitted_network(task, lambda: nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)))
    with torch.no_grad():
        model[2].bias[3] = 100.0

    result = trace(model, (task.x.numpy(), task.y.numpy()), [(task.event, 3)])

    assert result.verdict == "no-poison"
    assert result.warnings[-1] == "No training sample carries label 3, which the model gave event 1."
    assert len(result.exhibits["benign_index"]) == 0
    _check_tree(result)


def test_an_under_fitted_model_is_warned_of() -> None:
    """A model that misses most given labels hides the effect of single samples."""
    model, (x, y) = _untrained(), _rows(60)

    result = trace(model, (x, y), [_answer(model, x[0])])

    assert "so loose a fit" in result.warnings[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rule": "guess"}, r"'rule' must be one of default, paper \(got 'guess'\)"),
        ({"batch_size": 0}, r"'batch_size' must be at least 1 \(got 0\)"),
        ({"precision": "half"}, r"'precision' must be one of float32, bfloat16, float16 \(got 'half'\)\. Leave it out"),
        ({"device": "nonsense"}, r"'device' must be usable here \(got 'nonsense'\). Pass 'cpu' or 'auto'"),
        ({"device": "meta"}, r"'device' must be usable here \(got 'meta'\)"),
        ({"events": []}, r"'events' must have at least one row \(got 0\). Pass inputs"),
        ({"events": [torch.zeros(4)]}, r"'events' must be a list of pairs \(x, y_wrong\)"),
        ({"events": torch.zeros(2, 4)}, r"'events' must be a list of pairs \(x, y_wrong\) \(got Tensor\)"),
        ({"events": [(torch.zeros(4), 0), (torch.zeros(5), 0)]}, r"'events' must hold inputs of one shape .* row 1"),
        ({"train_set": (np.zeros((3, 4), np.float32), np.zeros(2, int))}, r"'y' must have shape \(3,\)"),
        ({"train_set": iter([])}, r"'train_set' must have a length"),
    ],
)
def test_bad_arguments_are_refused(options: dict[str, Any], message: str) -> None:
    """The message names the argument, the rule and what was got."""
    model, data = _untrained(), _rows(9)
    arguments = {"train_set": data, "events": [_answer(model, data[0][0])], **options}

    with pytest.raises(InvalidInputError, match=message):
        trace(model, **arguments)


def test_an_unknown_layer_is_refused() -> None:
    """The layer's name goes through to the embedding."""
    model, data = _untrained(), _rows(9)

    with pytest.raises(UnsupportedModelError, match=r"got 'head'; linear layers that ran: '0', '2'"):
        trace(model, data, [_answer(model, data[0][0])], layer="head")


def test_clusters_too_small_to_split_are_refused() -> None:
    """A threshold below what cross-fitting needs would break in the middle of a trace."""
    with pytest.raises(InvalidInputError, match=r"'min_cluster' must be at least 10 \(got 9\)"):
        Config(min_cluster=9)
    with pytest.raises(InvalidInputError, match=r"'faint_rise' must be above 0 \(got 0\.0\)"):
        Config(faint_rise=0.0)


def test_the_front_door_is_the_same_function() -> None:
    """``poisontrace.trace`` is this module's."""
    assert poisontrace.trace is tracing.trace


@pytest.mark.parametrize("rule", ["default", "paper"])
def test_neither_memory_nor_store_changes_the_result(digits_incident: Incident, tmp_path: Path, rule: str) -> None:
    """Kept in memory, streamed from a disk in small blocks, taken up from a store: the same samples and scores."""
    data, events = (digits_incident.x, digits_incident.y), events_of(digits_incident)[:2]
    want = trace(digits_incident.model, data, events, rule=rule)

    for options in ({"memory": 1 << 24}, {"store": tmp_path}, {"store": tmp_path, "batch_size": 100}):
        got = trace(digits_incident.model, data, events, rule=rule, **options)

        assert got.poison.tolist() == want.poison.tolist()
        np.testing.assert_allclose(got.scores, want.scores, atol=1e-4)
        assert [(c.parent, c.decision) for c in got.clusters] == [(c.parent, c.decision) for c in want.clusters]
        assert got.warnings == want.warnings


def test_a_second_event_on_a_store_runs_no_sample_again(digits_incident: Incident, tmp_path: Path) -> None:
    """One batch goes through the model, to see that it is still the same; the same event is not even searched again."""
    data, (first, second, *_) = (digits_incident.x, digits_incident.y), events_of(digits_incident)
    trace(digits_incident.model, data, [first], store=tmp_path)
    sizes: list[int] = []
    hook = digits_incident.model.register_forward_hook(lambda _, args, __: sizes.append(len(args[0])))

    again = trace(digits_incident.model, data, [second], store=tmp_path)
    same = trace(digits_incident.model, data, [second], store=tmp_path)

    hook.remove()
    assert max(sizes) == 256
    assert sizes.count(256) == 2
    assert set(again.seconds) == {"forward pass", "clustering", "unlearning"}
    assert "unlearning" not in same.seconds
    alone = trace(digits_incident.model, data, [second])
    for got in (again, same):
        assert got.poison.tolist() == alone.poison.tolist()
        assert got.scores.tobytes() == alone.scores.tobytes()


def test_memory_must_be_enough_for_anything(digits_incident: Incident) -> None:
    """The message says the least."""
    with pytest.raises(InvalidInputError, match=r"'memory' must be at least 16,777,216 bytes \(got 1,000\)"):
        trace(digits_incident.model, (digits_incident.x, digits_incident.y), events_of(digits_incident), memory=1000)
