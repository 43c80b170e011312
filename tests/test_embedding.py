"""What each sample does to each layer: closed forms against autograd, one pass that leaves no trace on the model."""

import copy
from typing import Any

import numpy as np
import pytest
import reference
import torch
from networks import TASKS, TOKENS, Branches, Reader, answer, made, mlp, noisy
from reference import ATOL, RTOL
from tasks import Pairs
from torch import Tensor, nn

from poisontrace._errors import InvalidInputError, OutOfMemoryError, UnsupportedModelError
from poisontrace.data import ArraySet, as_train_set
from poisontrace.embedding import Embedding, Features, collect, embed, residual
from poisontrace.watching import noise


def _collected(
    task: str, *, n: int = 13, batch_size: int = 256, model: nn.Module | None = None
) -> tuple[nn.Module, Tensor, Tensor, Features]:
    build, shape = TASKS[task]
    model = model or made(build)
    x = noisy(n + 2, *shape)
    events = [(sample, answer(model, sample)) for sample in x[n:]]
    data = ArraySet(x[:n].numpy(), np.arange(n) % 3)
    return model, x[:n], x[n:], collect(model, data, events, batch_size=batch_size)


@pytest.mark.parametrize("is_uniform", [True, False], ids=["uniform", "label"])
def test_residual_times_activation_is_the_gradient(is_uniform: bool) -> None:
    """Each written-out row equals autograd's gradient of that sample's loss for the last layer's weights."""
    hidden, weight, bias = noisy(7, 5, dtype=torch.float64), noisy(4, 5, dtype=torch.float64), torch.arange(4.0)
    labels = [row % 4 for row in range(7)]
    logits = hidden @ weight.T + bias.double()
    r = residual(logits, None if is_uniform else torch.tensor(labels))

    rows = Embedding(r, hidden).dense()

    expected = reference.last_layer_gradients(weight, bias, hidden, [None] * 7 if is_uniform else labels)
    torch.testing.assert_close(rows, expected, rtol=1e-10, atol=1e-12)


def test_rows_have_length_one() -> None:
    """The embedding is normalised, whatever the number of layers."""
    r = residual(noisy(6, 3, dtype=torch.float64))
    layers = [noisy(6, d, dtype=torch.float64) * d for d in (2, 5, 3)]

    for number in (1, 3):
        lengths = embed(layers[:number], r).dense().norm(dim=1)
        torch.testing.assert_close(lengths, torch.ones(6, dtype=torch.float64))


def test_similarity_and_mean_equal_the_written_out_ones() -> None:
    """Neither needs the rows, both give what the rows give."""
    embedding = embed([noisy(9, 4, dtype=torch.float64)], residual(noisy(9, 3, dtype=torch.float64)))
    centroid = noisy(3, 4, dtype=torch.float64)

    torch.testing.assert_close(embedding.mean().flatten(), embedding.dense().mean(0))
    torch.testing.assert_close(embedding.similarity(centroid), embedding.dense() @ centroid.flatten())


def test_rows_can_be_chosen() -> None:
    """A choice of rows is the embedding of those samples."""
    embedding = embed([noisy(9, 4)], residual(noisy(9, 3)))
    rows = torch.tensor([7, 2])

    assert len(embedding[rows]) == 2
    assert torch.equal(embedding[rows].dense(), embedding.dense()[rows])


def test_inner_products_of_several_layers_are_the_mean_of_each_ones() -> None:
    """Layers side by side add up, each with the same weight."""
    r, layers = residual(noisy(6, 3, dtype=torch.float64)), [noisy(6, d, dtype=torch.float64) for d in (2, 5)]
    rows = embed(layers, r).dense()
    each = [embed([layer], r).dense() for layer in layers]

    torch.testing.assert_close(rows @ rows.T, sum(one @ one.T for one in each) / 2)


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
    whole = made(TASKS["images"][0])
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
    model = made(TASKS["images"][0]).train()
    model.features[1].eval()
    model.features[0].weight.requires_grad_(False)
    model.classifier[2].bias.grad = torch.ones(3)
    model.features[4].register_forward_hook(lambda *_: None)
    before = _state(model)

    _collected("images", model=model)

    assert _state(model) == before


def test_the_model_is_left_as_found_after_an_error() -> None:
    """Modes and hooks are restored when the pass fails."""
    model = made(TASKS["images"][0]).train()
    before = _state(model)

    with pytest.raises(InvalidInputError):
        collect(
            model,
            ArraySet(np.zeros((3, 2, 8, 8), np.float32), np.zeros(3, int)),
            [(torch.zeros(1, 8, 8), answer(model, torch.zeros(1, 8, 8)))],
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

    model, x = made(InPlace), noisy(6, 4)
    event, kept = noisy(4), x.clone()
    label = answer(model, event.clone())

    features = collect(model, ArraySet(x.numpy(), np.zeros(6, int)), [(event, label)])

    assert torch.equal(x, kept)
    assert torch.equal(event, noisy(4))
    torch.testing.assert_close(features.hidden, kept - 1)


def test_dropout_is_off() -> None:
    """A model left in train mode gives the same features twice."""
    model = made(TASKS["images"][0]).train()

    *_, one = _collected("images", model=model)
    *_, other = _collected("images", model=model)

    assert torch.equal(one.logits, other.logits)
    assert all(torch.equal(a, b) for a, b in zip(one.saliency, other.saliency, strict=True))


def test_progress_is_reported() -> None:
    """Each step says how many samples are done."""
    model, calls = made(mlp), []
    x = noisy(5, 4)

    collect(
        model,
        as_train_set(Pairs(x, [0, 1, 2, 0, 1])),
        [(x[0], answer(model, x[0]))],
        batch_size=2,
        progress=lambda *call: calls.append(call),
    )

    assert calls == [("forward pass", 2, 5), ("forward pass", 4, 5), ("forward pass", 5, 5)]


def test_branches_that_do_not_matter_do_no_harm() -> None:
    """A layer that never runs, one fed by a constant and a branch thrown away: the features are those of the rest."""
    model, x = made(Branches), noisy(8, 4)
    label = answer(model, x[7])

    features = collect(model, ArraySet(x[:7].numpy(), np.zeros(7, int)), [(x[7], label)])

    assert features.layers == ("side", "side_end", "head")
    assert all(len(activation) == 7 for activation in features.activations)
    assert not features.saliency[1].any()
    assert features.saliency[2].any()


def _collect(
    *,
    x: Any = None,
    y: Any = None,
    event: Tensor | None = None,
    label: int | None = None,
    model: nn.Module | None = None,
) -> Features:
    model = model or made(mlp)
    x = noisy(6, 4).numpy() if x is None else x
    event = noisy(4) if event is None else event
    label = answer(model, noisy(4)) if label is None else label
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
    given = answer(made(mlp), noisy(4))

    with pytest.raises(
        InvalidInputError, match=rf"'events: y' .*\(got {(given + 1) % 3}, but the model answers {given}\)"
    ):
        _collect(label=(given + 1) % 3)


def test_labels_of_events_are_looked_at_before_the_pass() -> None:
    """Of each event; a pass takes hours, and without a store they are lost."""
    model, calls = made(mlp), []
    given = answer(model, noisy(4))
    events = [(noisy(4), given), (noisy(4), (given + 1) % 3)]

    with pytest.raises(InvalidInputError, match="'events: y' must hold the wrong label that the model gave"):
        collect(
            model, ArraySet(noisy(6, 4).numpy(), np.zeros(6, int)), events, progress=lambda *args: calls.append(args)
        )

    assert not calls


@pytest.mark.parametrize("label", [-1, 3])
def test_event_labels_out_of_range_are_refused(label: int) -> None:
    """There is no such output."""
    with pytest.raises(InvalidInputError, match=rf"'events: y' must hold labels below 3 \(got {label}\)"):
        _collect(label=label)


def test_broken_weights_are_refused() -> None:
    """NaN in any layer shows in the outputs of the first event."""
    for position in (0, 4):
        model = made(mlp)
        with torch.no_grad():
            model[position].weight[0, 0] = torch.nan

        with pytest.raises(
            InvalidInputError, match=r"'weights' must give finite outputs \(got NaN or infinity for event 0\)"
        ):
            _collect(model=model, label=0)


def _loud() -> nn.Module:
    model = made(mlp)
    with torch.no_grad():
        model[0].weight.mul_(100)
    return model


def test_infinite_outputs_on_a_training_sample_are_refused() -> None:
    """The message says which one, counted over the whole set."""
    x = noisy(6, 4).numpy()
    x[4] = 3e38

    with pytest.raises(InvalidInputError, match=r"'weights' must give finite outputs .* training sample 4\)"):
        _collect(x=x, model=_loud())


def test_infinite_outputs_on_a_later_event_are_refused() -> None:
    """The message says which one."""
    model = _loud()
    events = [(noisy(4), answer(model, noisy(4))), (torch.full((4,), 3e38), 0)]

    with pytest.raises(InvalidInputError, match=r"'weights' must give finite outputs .* event 1\)"):
        collect(model, ArraySet(noisy(6, 4).numpy(), np.zeros(6, int)), events)


def test_infinite_activations_behind_finite_outputs_are_refused() -> None:
    """A saturating unit may hide an overflow."""
    x = 1e-3 * noisy(6, 4).numpy()
    x[5] = 9e18
    model = made(lambda: nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 4), nn.Sigmoid(), nn.Linear(4, 3)))
    with torch.no_grad():
        model[0].weight.fill_(1e19)
        model[1].weight.fill_(1.0)

    with pytest.raises(InvalidInputError, match=r"infinity for the input of '1' at training sample 5\)"):
        _collect(x=x, model=model)


def test_activations_without_a_finite_square_are_refused() -> None:
    """They have no variance in float32; of a training sample or an event, which are named."""
    x, large = noisy(6, 4).numpy(), torch.full((4,), 2e19)
    x[5] = 2e19
    model = made(lambda: nn.Sequential(nn.Linear(4, 6), nn.Sigmoid(), nn.Linear(6, 3)))

    message = r"'weights' must give finite outputs \(got a number beyond 1e19 for the input of '0' at "
    with pytest.raises(InvalidInputError, match=message + r"training sample 5\)"):
        _collect(x=x, model=model)
    with pytest.raises(InvalidInputError, match=message + r"event 0\)"):
        _collect(event=large, label=answer(model, large), model=model)


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
        _collect(model=made(Frozen))


def test_a_frozen_reader_of_tokens_is_traced_as_a_free_one() -> None:
    """Its parameters are frozen again afterwards, and have no gradients."""
    free, x = made(Reader), np.array(TOKENS, np.float32)
    frozen = made(Reader).requires_grad_(False)
    text = torch.from_numpy(x[0]), int(free(torch.tensor(TOKENS[:1])).argmax())

    expected, got = (collect(model, ArraySet(x, np.zeros(4, np.int64)), [text]) for model in (free, frozen))

    assert all(torch.equal(a, b) for a, b in zip(expected.saliency, got.saliency, strict=True))
    assert got.saliency[0].any()
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in frozen.parameters())


def test_the_fall_of_an_event_without_a_word_is_that_of_a_slow_twin() -> None:
    """One forward pass a word, with the mean of the table written into it."""
    model = made(Reader)
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
    model, x = made(_Greedy), np.zeros((10, 4), np.float32)
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
    with pytest.raises(OutOfMemoryError, match=r"^Out of memory at sample 7 of 'train_set'\. Pass a smaller"):
        collect(model, as_train_set(Hungry()), [event], batch_size=4)
