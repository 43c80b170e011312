"""Adapters: what other libraries expect is kept, and what they report is what the trace found."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone
from tasks import Planted, fitted_network, planted, planted_mlp
from torch import nn

import poisontrace
from poisontrace._errors import InvalidInputError
from poisontrace.adapters import PoisonTracer, TraceDefence


@pytest.fixture(scope="module")
def task() -> Planted:
    """Rows with poison of class 0."""
    return planted()


@pytest.fixture(scope="module")
def model(task: Planted) -> nn.Module:
    """A network that learnt them, poison too."""
    return fitted_network(task, planted_mlp)


@pytest.fixture(scope="module")
def trace(task: Planted, model: nn.Module) -> poisontrace.Trace:
    """What the library itself finds."""
    return poisontrace.trace(model, (task.x.numpy(), task.y.numpy()), [(task.event, 0)])


def test_an_estimator_finds_what_the_library_finds(task: Planted, model: nn.Module, trace: poisontrace.Trace) -> None:
    """-1 for poison, as scikit-learn's outlier detectors say; float64 and tables are taken too."""
    tracer = PoisonTracer(model)

    labels = tracer.fit_predict(task.x.double().numpy(), task.y.numpy(), events=[(task.event, 0)])

    assert trace.verdict == tracer.verdict_ == "poison"
    assert np.flatnonzero(labels == -1).tolist() == tracer.poison_.tolist() == trace.poison.tolist()
    assert set(labels.tolist()) == {-1, 1} and labels is tracer.labels_
    np.testing.assert_array_equal(tracer.scores_, trace.scores)
    assert tracer.n_features_in_ == 8


def test_an_estimator_keeps_the_conventions(model: nn.Module, task: Planted) -> None:
    """Parameters are read, set, cloned and shown; fit returns the estimator, and nothing of fit survives a clone."""
    tracer = PoisonTracer(model, seed=3, rule="paper")

    assert set(tracer.get_params()) == {"model", "rule", "layer", "seed", "device", "batch_size"}
    assert tracer.set_params(rule="default").rule == "default"
    assert "seed=3" in repr(tracer)
    assert tracer.fit(task.x.numpy(), task.y.numpy(), events=[(task.event, 0)]) is tracer
    copied = clone(tracer)
    assert copied.seed == 3 and not hasattr(copied, "labels_")
    assert copied.model is not model
    assert all(torch.equal(a, b) for a, b in zip(copied.model.parameters(), model.parameters(), strict=True))
    with pytest.raises(ValueError, match="Invalid parameter 'colour'"):
        tracer.set_params(colour="red")


def test_an_estimator_takes_tables_of_pandas(task: Planted, model: nn.Module, trace: poisontrace.Trace) -> None:
    """As scikit-learn's do."""
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    table = pandas.DataFrame(task.x.numpy(), columns=list("abcdefgh"))

    tracer = PoisonTracer(model).fit(table, pandas.Series(task.y.numpy()), events=[(task.event.tolist(), 0)])

    assert tracer.poison_.tolist() == trace.poison.tolist()


@pytest.mark.parametrize("network", [None, "model.pt", 7])
def test_an_estimator_without_a_network_is_refused(network: Any, task: Planted) -> None:
    """When it is fitted, as the convention is."""
    with pytest.raises(InvalidInputError, match=r"'model' must be a torch\.nn\.Module"):
        PoisonTracer(network).fit(task.x.numpy(), task.y.numpy(), events=[(task.event, 0)])


@pytest.mark.parametrize("is_one_hot", [False, True])
def test_a_defence_says_who_is_clean(
    is_one_hot: bool, task: Planted, model: nn.Module, trace: poisontrace.Trace
) -> None:
    """A report that JSON can hold and a list of 0 and 1, whether labels are numbers or one-hot."""
    y = np.eye(3, dtype=np.float32)[task.y.numpy()] if is_one_hot else task.y.numpy()
    wrong: Any = np.eye(3)[0] if is_one_hot else 0
    defence = TraceDefence(model, task.x.numpy(), y, [(task.event, wrong)])

    report, is_clean = defence.detect_poison()

    assert type(is_clean) is list and set(map(type, is_clean)) == {int}
    assert [index for index, clean in enumerate(is_clean) if not clean] == trace.poison.tolist() == report["poison"]
    assert json.loads(json.dumps(report))["verdict"] == "poison"


def test_a_defence_keeps_the_contract_of_art(task: Planted, model: nn.Module, trace: poisontrace.Trace) -> None:
    """With ART's own classifier, the methods of its base class, and the confusion matrix of its own evaluator."""
    pytest.importorskip("art", reason="adversarial-robustness-toolbox is not installed")
    from art.defences.detector.poison import PoisonFilteringDefence
    from art.defences.detector.poison.ground_truth_evaluator import GroundTruthEvaluator
    from art.estimators.classification import PyTorchClassifier

    classifier = PyTorchClassifier(model, nn.CrossEntropyLoss(), (8,), 3, device_type="cpu")
    defence = TraceDefence(classifier, task.x.numpy(), np.eye(3)[task.y.numpy()], [(task.event.numpy(), 0)])

    _, is_clean = defence.detect_poison()
    truth = (~task.is_poison).astype(int)
    truth[:5] = 0
    matrix = json.loads(defence.evaluate_defence(truth))

    public = {name for name in dir(PoisonFilteringDefence) if not name.startswith("_")}
    assert public <= set(dir(defence)) and set(defence.get_params()) == set(defence.defence_params)
    assert [index for index, clean in enumerate(is_clean) if not clean] == trace.poison.tolist()
    by_class = [[np.array(flags)[task.y.numpy() == label] for label in range(3)] for flags in (is_clean, truth)]
    assert matrix == json.loads(GroundTruthEvaluator().analyze_correctness(*by_class)[1])


def test_a_defence_is_told_otherwise(task: Planted, model: nn.Module) -> None:
    """Settings may be changed, and are used; others are refused."""
    defence = TraceDefence(model, task.x.numpy(), task.y.numpy(), [(task.event, 0)], batch_size=64)

    defence.detect_poison(rule="paper")

    assert defence.trace is not None
    assert (defence.trace.rule, defence.trace.config["batch_size"]) == ("paper", 64)
    assert defence.get_params()["rule"] == "paper"
    with pytest.raises(InvalidInputError, match=r"'settings' must be some of classifier, events, rule, .*got nb_dims"):
        defence.detect_poison(nb_dims=2)


def test_a_defence_saves_its_case(task: Planted, model: nn.Module, tmp_path: Any) -> None:
    """Once there is one; the truth must have a flag for each sample."""
    defence = TraceDefence(model, task.x.numpy(), task.y.numpy(), [(task.event, 0)])
    with pytest.raises(InvalidInputError, match="'trace' must have been made"):
        defence.save(tmp_path / "case")

    with pytest.raises(InvalidInputError, match=r"'is_clean' must have shape \(240,\)"):
        defence.evaluate_defence(np.ones(3))

    assert (defence.save(tmp_path / "case") / "report.html").is_file()
