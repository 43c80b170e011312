"""What each sample does to each layer: closed forms against autograd, one pass that leaves no trace on the model."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
import torch
from reference import ATOL, RTOL
from tasks import Pairs
from torch import Tensor, nn

from poisontrace import models
from poisontrace._errors import InvalidInputError, OutOfMemoryError, StoreError, UnsupportedModelError
from poisontrace._rng import global_seed, torch_generator
from poisontrace._words import unpack
from poisontrace.data import ArraySet, as_train_set
from poisontrace.embedding import (
    MAX_LAYERS,
    Embedding,
    Features,
    collect,
    embed,
    evaluating,
    find_layers,
    find_table,
    noise,
    pool,
    recorded,
    residual,
)


def _noise(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch_generator(0, "test/noise"), dtype=dtype)


class _Tokens(nn.Module):
    """Linear layers over tokens, then a head on their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 6))
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean(1))


class _Norms(nn.Module):
    """Batch normalisation, in-place ReLU, max pooling and dropout around two convolutions."""

    def __init__(self) -> None:
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
        return self.classifier(self.features(x))


def _mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(4, 8), nn.ReLU(inplace=True), nn.Linear(8, 6), nn.ReLU(inplace=True), nn.Linear(6, 3)
    )


TASKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "rows": (_mlp, (4,)),
    "images": (_Norms, (1, 8, 8)),
    "tokens": (_Tokens, (5, 3)),
    "residual network": (lambda: models.resnet9(3, n_channels=1, width=2), (1, 8, 8)),
}


def _made(build: Callable[[], nn.Module]) -> nn.Module:
    with global_seed(0, "test/init"):
        model = build()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):  # statistics as after a training
                nn.init.uniform_(module.running_mean, -0.5, 0.5)
                nn.init.uniform_(module.running_var, 0.5, 2)
    return model


def _answer(model: nn.Module, x: Tensor) -> int:
    with evaluating(model), torch.no_grad():
        return int(model(x[None])[0].argmax())


def _collected(
    task: str, *, n: int = 13, batch_size: int = 256, model: nn.Module | None = None
) -> tuple[nn.Module, Tensor, Tensor, Features]:
    build, shape = TASKS[task]
    model = model or _made(build)
    x = _noise(n + 2, *shape)
    events = [(sample, _answer(model, sample)) for sample in x[n:]]
    data = ArraySet(x[:n].numpy(), np.arange(n) % 3)
    return model, x[:n], x[n:], collect(model, data, events, batch_size=batch_size)


@pytest.mark.parametrize("is_uniform", [True, False], ids=["uniform", "label"])
def test_residual_times_activation_is_the_gradient(is_uniform: bool) -> None:
    """Each written-out row equals autograd's gradient of that sample's loss for the last layer's weights."""
    hidden, weight, bias = _noise(7, 5, dtype=torch.float64), _noise(4, 5, dtype=torch.float64), torch.arange(4.0)
    labels = [row % 4 for row in range(7)]
    logits = hidden @ weight.T + bias.double()
    r = residual(logits, None if is_uniform else torch.tensor(labels))

    rows = Embedding(r, hidden).dense()

    expected = reference.last_layer_gradients(weight, bias, hidden, [None] * 7 if is_uniform else labels)
    torch.testing.assert_close(rows, expected, rtol=1e-10, atol=1e-12)


def test_rows_have_length_one() -> None:
    """The embedding is normalised, whatever the number of layers."""
    r = residual(_noise(6, 3, dtype=torch.float64))
    layers = [_noise(6, d, dtype=torch.float64) * d for d in (2, 5, 3)]

    for number in (1, 3):
        lengths = embed(layers[:number], r).dense().norm(dim=1)
        torch.testing.assert_close(lengths, torch.ones(6, dtype=torch.float64))


def test_similarity_and_mean_equal_the_written_out_ones() -> None:
    """Neither needs the rows, both give what the rows give."""
    embedding = embed([_noise(9, 4, dtype=torch.float64)], residual(_noise(9, 3, dtype=torch.float64)))
    centroid = _noise(3, 4, dtype=torch.float64)

    torch.testing.assert_close(embedding.mean().flatten(), embedding.dense().mean(0))
    torch.testing.assert_close(embedding.similarity(centroid), embedding.dense() @ centroid.flatten())


def test_rows_can_be_chosen() -> None:
    """A choice of rows is the embedding of those samples."""
    embedding = embed([_noise(9, 4)], residual(_noise(9, 3)))
    rows = torch.tensor([7, 2])

    assert len(embedding[rows]) == 2
    assert torch.equal(embedding[rows].dense(), embedding.dense()[rows])


def test_inner_products_of_several_layers_are_the_mean_of_each_ones() -> None:
    """Layers side by side add up, each with the same weight."""
    r, layers = residual(_noise(6, 3, dtype=torch.float64)), [_noise(6, d, dtype=torch.float64) for d in (2, 5)]
    rows = embed(layers, r).dense()
    each = [embed([layer], r).dense() for layer in layers]

    torch.testing.assert_close(rows @ rows.T, sum(one @ one.T for one in each) / 2)


def test_pooling_is_mean_and_maximum_of_each_channel() -> None:
    """Images have channels first, tokens last, rows are returned as they are."""
    image, tokens, rows = _noise(2, 3, 4, 5), _noise(2, 7, 3), _noise(2, 3)

    expected = torch.cat([image.mean((2, 3)), image.amax((2, 3))], 1)
    assert torch.equal(pool(image, channels_last=False), expected)
    inside_out = image.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(pool(inside_out, channels_last=False), expected, rtol=RTOL, atol=ATOL)
    assert torch.equal(pool(tokens, channels_last=True), torch.cat([tokens.mean(1), tokens.amax(1)], 1))
    assert pool(rows, channels_last=True) is rows


def test_noise_is_what_the_mask_leaves() -> None:
    """As a convolution with the written-out mask, one channel at a time; the mean of its size, and of the roots."""
    x = _noise(4, 2, 7, 6)
    mask = torch.tensor([[1.0, -2, 1], [-2, 4, -2], [1, -2, 1]])[None, None]

    got = noise(x)

    residuals = [torch.nn.functional.conv2d(x[:, c : c + 1], mask).abs().flatten(1) for c in range(2)]
    expected = torch.stack([r.mean(1) for r in residuals] + [r.sqrt().mean(1) for r in residuals], 1)
    torch.testing.assert_close(got, expected, rtol=RTOL, atol=ATOL)


def test_noise_is_blind_to_slopes_and_straight_edges() -> None:
    """Only what differs in both directions counts."""
    rows, columns = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")

    assert not noise(torch.stack([rows, columns, rows + 3 * columns, (rows > 3).float()])[None]).any()
    assert float(noise((rows + columns == 5).float()[None, None])[0, 0]) > 0


@pytest.mark.parametrize("shape", [(5, 3), (5, 4, 8), (5, 3, 2, 8)])
def test_only_images_have_noise(shape: tuple[int, ...]) -> None:
    """Rows, tokens and images of fewer than three pixels a side have none."""
    assert noise(torch.ones(shape)).shape == (5, 0)


@pytest.mark.parametrize("task", TASKS)
def test_activations_equal_a_plain_loop(task: str) -> None:
    """One pass in batches gives what a hook on one layer and one sample at a time gives."""
    model, x, events, features = _collected(task)
    model.eval()

    expected = reference.pooled_inputs(model, features.layers, x)
    expected_events = reference.pooled_inputs(model, features.layers, events)

    for got, want in zip(features.activations + features.event_activations, expected + expected_events, strict=True):
        torch.testing.assert_close(got, want, rtol=RTOL, atol=ATOL)


@pytest.mark.parametrize("task", TASKS)
def test_logits_and_labels_equal_a_plain_loop(task: str) -> None:
    """The outputs are the model's in eval mode, the labels are those of the set, the head gives the logits."""
    model, x, events, features = _collected(task)
    model.eval()
    with torch.no_grad():
        expected, expected_events = (torch.cat([model(sample[None]) for sample in part]) for part in (x, events))

    torch.testing.assert_close(features.logits, expected, rtol=RTOL, atol=ATOL)
    torch.testing.assert_close(features.event_logits, expected_events, rtol=RTOL, atol=ATOL)
    assert features.labels.tolist() == [row % 3 for row in range(13)]
    torch.testing.assert_close(features.noise, noise(x), rtol=RTOL, atol=ATOL)
    torch.testing.assert_close(
        features.hidden @ features.weight.T + features.bias, features.logits, rtol=RTOL, atol=ATOL
    )


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("batch_size", [1, 7])
def test_the_batch_size_does_not_matter(task: str, batch_size: int) -> None:
    """One, seven or all samples at a time: the same features."""
    *_, one = _collected(task, batch_size=batch_size)
    *_, other = _collected(task)

    assert one.layers == other.layers
    for got, want in zip(
        (*one.activations, one.logits, *one.saliency), (*other.activations, other.logits, *other.saliency), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=RTOL, atol=ATOL)


def _above(model: nn.Sequential, position: int) -> nn.Module:
    return copy.deepcopy(model[position:]).double()


def test_saliency_of_rows_equals_a_float64_twin() -> None:
    """Also behind ReLUs that work in place: the share is taken of what the layer received."""
    model, _, _, features = _collected("rows")

    for layer, position in enumerate((0, 2, 4)):
        for row in range(2):
            got = features.saliency[layer][row]
            want = reference.saliency(
                _above(model, position), features.event_activations[layer][row], features.activations[layer].mean(0), 0
            )
            torch.testing.assert_close(got.double(), want, rtol=RTOL, atol=ATOL)


def test_saliency_of_images_equals_a_float64_twin() -> None:
    """A channel's share is summed over space and stands for its mean and its maximum alike."""
    whole = _made(TASKS["images"][0])
    model = nn.Sequential(*whole.features, *whole.classifier).eval()
    _, x, events, features = _collected("images", model=model)

    for layer, position in enumerate((0, 4)):
        with torch.no_grad():
            below, train = (model[:position](part) if position else part for part in (events, x))
        for row in range(2):
            want = reference.saliency(_above(model, position), below[row], train.mean((0, 2, 3)), 0)
            torch.testing.assert_close(features.saliency[layer][row].double(), want.repeat(2), rtol=RTOL, atol=ATOL)


def test_saliency_of_tokens_equals_a_float64_twin() -> None:
    """Channels of tokens are on the last axis."""
    model, x, events, features = _collected("tokens")
    above = copy.deepcopy(model).double()

    want = reference.saliency(above, events[0], x.mean((0, 1)), 1)

    torch.testing.assert_close(features.saliency[0][0].double(), want.repeat(2), rtol=RTOL, atol=ATOL)


def _state(model: nn.Module) -> dict[str, Any]:
    return {
        "modes": [module.training for module in model.modules()],
        "hooks": [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()],
        "needs gradient": [p.requires_grad for p in model.parameters()],
        "gradients": [None if p.grad is None else p.grad.tolist() for p in model.parameters()],
        "values": {key: tensor.tolist() for key, tensor in model.state_dict().items()},
        "torch": torch.get_rng_state().tolist(),
        "numpy": np.random.get_state()[1].tolist(),
        "gradient mode": torch.is_grad_enabled(),
    }


def test_the_model_is_left_as_found() -> None:
    """Each module's mode, hooks, gradients, weights, batch statistics and the global generators stay as they were."""
    model = _made(TASKS["images"][0]).train()
    model.features[1].eval()
    model.features[0].weight.requires_grad_(False)
    model.classifier[2].bias.grad = torch.ones(3)
    model.features[4].register_forward_hook(lambda *_: None)
    before = _state(model)

    _collected("images", model=model)

    assert _state(model) == before


def test_the_model_is_left_as_found_after_an_error() -> None:
    """Modes and hooks are restored when the pass fails."""
    model = _made(TASKS["images"][0]).train()
    before = _state(model)

    with pytest.raises(InvalidInputError):
        collect(
            model,
            ArraySet(np.zeros((3, 2, 8, 8), np.float32), np.zeros(3, int)),
            [(torch.zeros(1, 8, 8), _answer(model, torch.zeros(1, 8, 8)))],
        )

    assert _state(model) == before


def test_the_training_set_is_left_as_found() -> None:
    """A model that works in place on its input changes neither the caller's arrays nor its events."""

    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x.sub_(1))

    model, x = _made(InPlace), _noise(6, 4)
    event, kept = _noise(4), x.clone()
    label = _answer(model, event.clone())

    features = collect(model, ArraySet(x.numpy(), np.zeros(6, int)), [(event, label)])

    assert torch.equal(x, kept)
    assert torch.equal(event, _noise(4))
    torch.testing.assert_close(features.hidden, kept - 1)


def test_dropout_is_off() -> None:
    """A model left in train mode gives the same features twice."""
    model = _made(TASKS["images"][0]).train()

    *_, one = _collected("images", model=model)
    *_, other = _collected("images", model=model)

    assert torch.equal(one.logits, other.logits)
    assert all(torch.equal(a, b) for a, b in zip(one.saliency, other.saliency, strict=True))


def test_progress_is_reported() -> None:
    """Each step says how many samples are done."""
    model, calls = _made(_mlp), []
    x = _noise(5, 4)

    collect(
        model,
        as_train_set(Pairs(x, [0, 1, 2, 0, 1])),
        [(x[0], _answer(model, x[0]))],
        batch_size=2,
        progress=lambda *call: calls.append(call),
    )

    assert calls == [("forward pass", 2, 5), ("forward pass", 4, 5), ("forward pass", 5, 5)]


class _TwoHeads(nn.Module):
    """Two layers with the same weights give the same logits; the output is one of them, a third is thrown away."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 6)
        self.one, self.other = nn.Linear(6, 3), nn.Linear(6, 3)
        self.other.load_state_dict(self.one.state_dict())

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x).relu()
        self.other(h)
        return self.one(h)


class _Branches(nn.Module):
    """A side branch that runs for nothing, a layer fed by a constant, and one that never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 6), nn.Linear(6, 3)
        self.side, self.side_end = nn.Linear(4, 5), nn.Linear(5, 3)
        self.constant, self.idle = nn.Linear(2, 6), nn.Linear(6, 3)
        self.other = nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        self.side_end(self.side(x).relu())
        return self.head(self.body(x) + self.other(x) + self.constant(torch.ones(1, 2)))


def test_layers_of_a_sequential_are_found_in_the_order_they_run() -> None:
    """Every layer with weights, the last linear one last."""
    assert find_layers(_mlp().eval(), _noise(2, 4)) == ("0", "2", "4")


def test_nested_layers_are_found_by_their_dotted_names() -> None:
    """Convolutions inside blocks count, normalisation and pooling do not."""
    assert find_layers(_Norms().eval(), _noise(2, 1, 8, 8)) == ("features.0", "features.4", "classifier.2")


def test_a_model_that_ends_in_log_softmax_is_accepted() -> None:
    """It changes neither the probabilities nor the algebra."""
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3), nn.LogSoftmax(1))

    assert find_layers(model, _noise(2, 4)) == ("0", "2")


def test_many_layers_are_sampled_evenly() -> None:
    """At most ``MAX_LAYERS`` are kept, the first and the last among them, with even gaps."""
    model = nn.Sequential(*[nn.Linear(4, 4) for _ in range(31)])

    names = [int(name) for name in find_layers(model, _noise(2, 4))]

    assert len(names) == MAX_LAYERS
    assert (names[0], names[-2], names[-1]) == (0, 29, 30)
    assert set(np.diff(names[:-1])) <= {3, 4}


def test_layers_fed_by_one_tensor_count_once() -> None:
    """A block and its shortcut receive the same activations."""
    names = find_layers(_Branches().eval(), _noise(2, 4))

    assert names == ("side", "side_end", "head")


def test_branches_that_do_not_matter_do_no_harm() -> None:
    """A layer that never runs, one fed by a constant and a branch thrown away: the features are those of the rest."""
    model, x = _made(_Branches), _noise(8, 4)
    label = _answer(model, x[7])

    features = collect(model, ArraySet(x[:7].numpy(), np.zeros(7, int)), [(x[7], label)])

    assert features.layers == ("side", "side_end", "head")
    assert all(len(activation) == 7 for activation in features.activations)
    assert not features.saliency[1].any()
    assert features.saliency[2].any()


def test_a_layer_that_runs_twice_counts_once() -> None:
    """Its first run is what is kept."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(self.body(x)))

    model, x = _made(Twice), _noise(5, 4)

    features = collect(model, ArraySet(x.numpy(), np.zeros(5, int)), [(x[0], _answer(model, x[0]))], batch_size=2)

    assert features.layers == ("body", "head")
    assert torch.equal(features.activations[0], x)


def test_a_layer_can_be_named() -> None:
    """Where two would do, the caller decides."""
    assert find_layers(_made(_TwoHeads), _noise(2, 4), "other")[-1] == "other"
    assert find_layers(_made(_TwoHeads), _noise(2, 4), "one")[-1] == "one"


def test_two_heads_are_refused_by_name() -> None:
    """The message names both and the way out."""
    with pytest.raises(
        UnsupportedModelError, match=r"exactly one linear layer .*'other', 'one'.*Name one of them with 'layer'"
    ):
        find_layers(_made(_TwoHeads), _noise(2, 4))


def test_a_model_without_a_linear_layer_is_refused() -> None:
    """The message says what to wrap."""
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    with pytest.raises(UnsupportedModelError, match=r"ran: none\).*Wrap the model so that it ends in torch.nn.Linear"):
        find_layers(model, _noise(2, 1, 8, 8))


def test_a_model_that_does_not_end_in_its_linear_layer_is_refused() -> None:
    """Probabilities are no logits; an operation in place after the layer does not hide that."""
    for end in (nn.Softmax(1), nn.ReLU(inplace=True)):
        with pytest.raises(UnsupportedModelError, match=r"'layer' must be a linear layer.*ran: '0'\)"):
            find_layers(_made(lambda end=end: nn.Sequential(nn.Linear(4, 3), end)), _noise(5, 4))


@pytest.mark.parametrize("layer", ["nonsense", "0", "1"])
def test_a_layer_that_cannot_be_the_last_is_refused(layer: str) -> None:
    """Unknown names, hidden layers of another width and layers of another kind."""
    with pytest.raises(
        UnsupportedModelError, match=rf"'layer' must be .*got '{layer}'; linear layers that ran: '0', '2', '4'"
    ):
        find_layers(_mlp(), _noise(2, 4), layer)


@pytest.mark.parametrize(
    ("model", "got"),
    [
        (nn.Sequential(nn.Linear(4, 3), nn.Flatten(0)), r"\(9,\)"),
        (nn.Linear(4, 1), r"\(3, 1\)"),
        (nn.LSTM(4, 3), "tuple"),
    ],
    ids=["flat", "one output", "no tensor"],
)
def test_outputs_that_are_no_logits_are_refused(model: nn.Module, got: str) -> None:
    """One row a sample, two classes or more."""
    with pytest.raises(UnsupportedModelError, match=rf"'model' must return logits of shape \(n, classes\).*got {got}"):
        find_layers(model, _noise(3, 4))


def _collect(
    *,
    x: Any = None,
    y: Any = None,
    event: Tensor | None = None,
    label: int | None = None,
    model: nn.Module | None = None,
) -> Features:
    model = model or _made(_mlp)
    x = _noise(6, 4).numpy() if x is None else x
    event = _noise(4) if event is None else event
    label = _answer(model, _noise(4)) if label is None else label
    return collect(model, ArraySet(x, np.zeros(len(x), int) if y is None else y), [(event, label)], batch_size=2)


def test_inputs_of_another_shape_are_refused() -> None:
    """The message says what the model was given and how data are fed."""
    with pytest.raises(
        InvalidInputError, match=r"'data' must have the shape the model takes \(got \(2, 5\).*as they are"
    ):
        _collect(x=np.zeros((6, 5), np.float32))
    with pytest.raises(InvalidInputError, match=r"'events' must have the shape the model takes"):
        _collect(event=torch.zeros(5))


def test_labels_beyond_the_outputs_are_refused() -> None:
    """The row is counted over the whole set."""
    with pytest.raises(InvalidInputError, match=r"'data: y' must hold labels below 3.*\(got 3 at row 5\)"):
        _collect(y=np.array([0, 1, 2, 0, 1, 3]))


def test_events_must_carry_the_label_that_the_model_gave() -> None:
    """Else weights or preprocessing are not those of the incident."""
    given = _answer(_made(_mlp), _noise(4))

    with pytest.raises(
        InvalidInputError, match=rf"'events: y' .*\(got {(given + 1) % 3}, but the model answers {given}\)"
    ):
        _collect(label=(given + 1) % 3)


@pytest.mark.parametrize("label", [-1, 3])
def test_event_labels_out_of_range_are_refused(label: int) -> None:
    """There is no such output."""
    with pytest.raises(InvalidInputError, match=rf"'events: y' must hold labels below 3 \(got {label}\)"):
        _collect(label=label)


def test_broken_weights_are_refused() -> None:
    """NaN in any layer shows in the outputs of the first event."""
    for position in (0, 4):
        model = _made(_mlp)
        with torch.no_grad():
            model[position].weight[0, 0] = torch.nan

        with pytest.raises(
            InvalidInputError, match=r"'weights' must give finite outputs \(got NaN or infinity for event 0\)"
        ):
            _collect(model=model, label=0)


def _loud() -> nn.Module:
    model = _made(_mlp)
    with torch.no_grad():
        model[0].weight.mul_(100)
    return model


def test_infinite_outputs_on_a_training_sample_are_refused() -> None:
    """The message says which one, counted over the whole set."""
    x = _noise(6, 4).numpy()
    x[4] = 3e38

    with pytest.raises(InvalidInputError, match=r"'weights' must give finite outputs .* training sample 4\)"):
        _collect(x=x, model=_loud())


def test_infinite_outputs_on_a_later_event_are_refused() -> None:
    """The message says which one."""
    model = _loud()
    events = [(_noise(4), _answer(model, _noise(4))), (torch.full((4,), 3e38), 0)]

    with pytest.raises(InvalidInputError, match=r"'weights' must give finite outputs .* event 1\)"):
        collect(model, ArraySet(_noise(6, 4).numpy(), np.zeros(6, int)), events)


def test_infinite_activations_behind_finite_outputs_are_refused() -> None:
    """A saturating unit may hide an overflow."""
    x = _noise(6, 4).numpy()
    x[5] = 3e38
    model = _made(lambda: nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 4), nn.Sigmoid(), nn.Linear(4, 3)))
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        model[1].weight.fill_(1.0)

    with pytest.raises(InvalidInputError, match=r"infinity for the input of '1' at training sample 5\)"):
        _collect(x=x, model=model)


def test_a_model_that_cuts_gradients_is_refused() -> None:
    """The message names the layer and the way out."""

    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                h = self.body(x)
            return self.head(h)

    with pytest.raises(UnsupportedModelError, match=r"'model' must let gradients .*'head'.*Take torch.no_grad\(\)"):
        _collect(model=_made(Frozen))


class _Source:
    """Samples of a user's own, which may change."""

    def __init__(self, x: Tensor, y: list[int]) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.x[index], self.y[index]


def _stored(source: _Source, model: nn.Module, store: Path) -> Features:
    event = torch.ones(4)
    return collect(model, as_train_set(source), [(event, _answer(model, event))], batch_size=2, store=store)


def test_samples_that_changed_since_the_store_was_written_are_named(tmp_path: Path) -> None:
    """A data set of the user's own is read again and compared, sample by sample; labels count as well."""
    model, source = _made(_mlp), _Source(_noise(7, 4), [0, 1, 2, 0, 1, 2, 0])
    before = _stored(source, model, tmp_path)
    after = _stored(source, model, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(before.activations, after.activations, strict=True))

    source.x[5, 0] += 1
    with pytest.raises(InvalidInputError, match=r"'train_set' must be the same each time .* another sample 5 than"):
        _stored(source, model, tmp_path)
    source.x[5, 0] -= 1
    source.y[4] = 0
    with pytest.raises(InvalidInputError, match=r"another sample 4 than"):
        _stored(source, model, tmp_path)


def test_a_pass_of_another_precision_is_another_pass(tmp_path: Path) -> None:
    """Each has its place in the store and is found again; what is kept is float32, and the event is untouched."""
    model, data = _made(_mlp), ArraySet(_noise(300, 4).numpy(), np.zeros(300, int))
    events = [(torch.ones(4), _answer(model, torch.ones(4)))]
    full, half, again = (
        collect(model, data, events, store=tmp_path, precision=precision)
        for precision in ("float32", "bfloat16", "bfloat16")
    )
    assert len(list(tmp_path.iterdir())) == 2
    assert full.folder != half.folder == again.folder
    assert torch.equal(half.hidden, again.hidden)
    assert half.hidden.dtype == torch.float32
    assert not torch.equal(full.hidden, half.hidden)
    torch.testing.assert_close(full.hidden, half.hidden, rtol=2e-2, atol=2e-2)
    assert torch.equal(full.event_logits, half.event_logits)
    counts = [recorded(model, data, events[0][0], tmp_path, precision=p)[0] for p in ("float32", "bfloat16", "float16")]
    assert counts == [300, 300, 0]


def test_a_pass_that_was_cut_short_goes_on(tmp_path: Path) -> None:
    """What a failing data set gave before it failed is not run again, and the result is that of one go."""
    model, source = _made(_mlp), _Source(_noise(7, 4), [0, 1, 2, 0, 1, 2, 0])
    whole = _stored(source, model, tmp_path / "whole")
    rows = source.x

    class Failing(_Source):
        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            if index == 5:
                raise OSError("the disk is gone")
            return rows[index], self.y[index]

    with pytest.raises(InvalidInputError, match=r"'train_set' must yield pairs .*the disk is gone at index 5\)"):
        _stored(Failing(rows, source.y), model, tmp_path / "part")
    sizes: list[int] = []
    hook = model.register_forward_hook(lambda _, args, __: sizes.append(len(args[0])))

    continued = _stored(source, model, tmp_path / "part")

    hook.remove()
    # Three events to find the layers, twice; the first batch as a check; what was missing; the event.
    assert sizes[-4:] == [2, 2, 1, 1]
    assert all(torch.equal(a, b) for a, b in zip(whole.activations, continued.activations, strict=True))
    assert torch.equal(whole.logits, continued.logits)


def test_a_model_that_changed_where_nobody_sees_it_is_found_out(tmp_path: Path) -> None:
    """The first batch is compared with what the store holds."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.scale = nn.Linear(4, 3), 1.0

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x * self.scale)

    model, source = _made(Scaled), _Source(_noise(7, 4), [0, 1, 2, 0, 1, 2, 0])
    _stored(source, model, tmp_path)
    model.scale = 3.0

    with pytest.raises(StoreError, match=r"'store' must hold what this model makes of these data"):
        _stored(source, model, tmp_path)


@pytest.mark.parametrize(("claimed", "got"), [(5, "more"), (9, "7")])
def test_a_set_of_another_length_than_it_says_is_refused(claimed: int, got: str) -> None:
    """More or fewer samples than promised would be misnumbered."""
    train_set = ArraySet(_noise(7, 4).numpy(), np.zeros(7, int))

    class Batches:
        def __len__(self) -> int:
            return claimed

        def batches(self, batch_size: int):  # type: ignore[no-untyped-def]
            return train_set.batches(batch_size)

        inputs = train_set.inputs

    model = _made(_mlp)
    with pytest.raises(InvalidInputError, match=rf"'train_set' must yield as many samples .*\({claimed}; got {got}"):
        collect(model, Batches(), [(torch.ones(4), _answer(model, torch.ones(4)))])


def test_a_layer_that_some_inputs_skip_is_refused() -> None:
    """Its rows would belong to other samples."""

    class Sometimes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x) if float(x.sum()) > 0 else x)

    x = torch.cat([torch.ones(2, 4), -torch.ones(2, 4)])
    with pytest.raises(UnsupportedModelError, match=r"'model' must run the same layers .* left out 'body'"):
        model = _made(Sometimes)
        train_set = ArraySet(x.numpy(), np.zeros(4, int))
        collect(model, train_set, [(x[0], _answer(model, x[0]))], batch_size=2)


class _Reader(nn.Module):
    """Looks up words and places, and answers by the mean over both."""

    def __init__(self) -> None:
        super().__init__()
        self.places, self.words, self.kinds = nn.Embedding(8, 4), nn.Embedding(30, 4, padding_idx=0), nn.Embedding(2, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.long()
        seen = self.words(tokens) + self.kinds(torch.zeros_like(tokens)) + self.places(torch.arange(x.shape[1]))
        return self.head(seen.tanh().mean(1))


TOKENS = [[4, 9, 4, 0], [1, 2, 3, 29], [5, 9, 0, 0], [7, 7, 7, 7]]


def test_the_largest_table_holds_the_words() -> None:
    """Not that of the places, nor of the kinds; a network without any reads no tokens."""
    assert find_table(_made(_Reader), torch.tensor(TOKENS).float()) == "words"
    assert find_table(_mlp().eval(), _noise(2, 4)) is None


def test_the_pass_keeps_which_words_each_text_holds(tmp_path: Path) -> None:
    """With a store and without one; padding is no word."""
    model, x = _made(_Reader), np.array(TOKENS, np.float32)
    event = torch.tensor(TOKENS[1]).float(), int(model(torch.tensor(TOKENS[1])[None]).argmax())

    for store in (None, tmp_path):
        found = collect(model, ArraySet(x, np.array([0, 1, 2, 0])), [event], store=store)

        assert [set(row.nonzero()[:, 0].tolist()) for row in unpack(found.words)] == [set(t) - {0} for t in TOKENS]


def test_the_fall_of_an_event_without_a_word_is_that_of_a_slow_twin() -> None:
    """One forward pass a word, with the mean of the table written into it."""
    model = _made(_Reader)
    text = torch.tensor(TOKENS[0])
    logits = model(text[None])[0].detach()
    label, rival = logits.topk(2).indices.tolist()

    found = collect(model, ArraySet(np.array(TOKENS, np.float32), np.zeros(4, np.int64)), [(text.float(), label)])

    tokens, falls = found.event_words[0]
    assert tokens.tolist() == [4, 9]
    for token, fall in zip(tokens.tolist(), falls.tolist(), strict=True):
        changed = copy.deepcopy(model)
        with torch.no_grad():
            changed.words.weight[token] = model.words.weight.mean(0)
            without = changed(text[None])[0]
        expected = (logits[label] - logits[rival]) - (without[label] - without[rival])
        assert fall == pytest.approx(float(expected), abs=1e-5)


class _Greedy(nn.Module):
    """Cannot hold a batch with a large number in it."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        if x.max() > 100:
            raise torch.OutOfMemoryError("out of memory")
        return self.head(x)


def test_memory_that_runs_out_names_the_samples() -> None:
    """Those of the batch where the network is what takes it, and the sample where the data set is."""
    model, x = _made(_Greedy), np.zeros((10, 4), np.float32)
    event = torch.zeros(4), int(model(torch.zeros(1, 4)).argmax())
    x[5] = 1000

    class Hungry:
        def __len__(self) -> int:
            return 10

        def __getitem__(self, row: int) -> tuple[np.ndarray, int]:
            if row == 7:
                raise MemoryError
            return np.zeros(4, np.float32), 0

    with pytest.raises(
        OutOfMemoryError, match=r"^Out of memory at samples 4 to 7 of the training set\. Pass a smaller"
    ):
        collect(model, ArraySet(x, np.zeros(10, np.int64)), [event], batch_size=4)
    with pytest.raises(OutOfMemoryError, match=r"^Out of memory at sample 7 of the training set\. Pass a smaller"):
        collect(model, as_train_set(Hungry()), [event], batch_size=4)
