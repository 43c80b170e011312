"""Looking into a network: pooling and noise against a plain loop, and which layers and tables are found."""

import numpy as np
import pytest
import torch
from networks import TOKENS, Branches, Norms, Reader, made, mlp, noisy
from reference import ATOL, RTOL
from torch import Tensor, nn

from poisontrace._errors import UnsupportedModelError
from poisontrace.watching import MAX_LAYERS, find_layers, find_table, noise, pool


def test_pooling_is_mean_and_maximum_of_each_channel() -> None:
    """Images have channels first, tokens last, rows are returned as they are."""
    image, tokens, rows = noisy(2, 3, 4, 5), noisy(2, 7, 3), noisy(2, 3)

    expected = torch.cat([image.mean((2, 3)), image.amax((2, 3))], 1)
    assert torch.equal(pool(image, channels_last=False), expected)
    inside_out = image.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(pool(inside_out, channels_last=False), expected, rtol=RTOL, atol=ATOL)
    assert torch.equal(pool(tokens, channels_last=True), torch.cat([tokens.mean(1), tokens.amax(1)], 1))
    assert pool(rows, channels_last=True) is rows


def test_noise_is_what_the_mask_leaves() -> None:
    """As a convolution with the written-out mask, one channel at a time; the mean of its size, and of the roots."""
    x = noisy(4, 2, 7, 6)
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


def test_layers_of_a_sequential_are_found_in_the_order_they_run() -> None:
    """Every layer with weights, the last linear one last."""
    assert find_layers(mlp().eval(), noisy(2, 4)) == ("0", "2", "4")


def test_nested_layers_are_found_by_their_dotted_names() -> None:
    """Convolutions inside blocks count, normalisation and pooling do not."""
    assert find_layers(Norms().eval(), noisy(2, 1, 8, 8)) == ("features.0", "features.4", "classifier.2")


def test_a_model_that_ends_in_log_softmax_is_accepted() -> None:
    """It changes neither the probabilities nor the algebra."""
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3), nn.LogSoftmax(1))

    assert find_layers(model, noisy(2, 4)) == ("0", "2")


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float64])
def test_a_model_that_computes_in_another_number_format_is_accepted(kind: torch.dtype) -> None:
    """By its own conversions or by autocast; what it returns is float32."""

    class Converts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp().to(kind)

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x.to(kind)).float()

    class Casts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp()

        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", kind, enabled=kind != torch.float64):
                return self.net(x).float()

    for build in (Converts, Casts):
        assert find_layers(made(build), noisy(2, 4)) == ("net.0", "net.2", "net.4")


@pytest.mark.parametrize("kind", ["bfloat16", "float16", "float64"])
def test_a_model_that_takes_another_number_format_is_refused(kind: str) -> None:
    """Not as a wrong shape: the message names the format and the way out."""
    message = rf"'model' must take float32 inputs \(got parameters of {kind}: .*\)\. Convert it with \.float\(\)\."
    with pytest.raises(UnsupportedModelError, match=message):
        find_layers(mlp().to(getattr(torch, kind)), noisy(2, 4))


def test_many_layers_are_sampled_evenly() -> None:
    """At most ``MAX_LAYERS`` are kept, the first and the last among them, with even gaps."""
    model = nn.Sequential(*[nn.Linear(4, 4) for _ in range(31)])

    names = [int(name) for name in find_layers(model, noisy(2, 4))]

    assert len(names) == MAX_LAYERS
    assert (names[0], names[-2], names[-1]) == (0, 29, 30)
    assert set(np.diff(names[:-1])) <= {3, 4}


def test_layers_fed_by_one_tensor_count_once() -> None:
    """A block and its shortcut receive the same activations."""
    names = find_layers(Branches().eval(), noisy(2, 4))

    assert names == ("side", "side_end", "head")


def test_a_layer_can_be_named() -> None:
    """Where two would do, the caller decides."""
    assert find_layers(made(_TwoHeads), noisy(2, 4), "other")[-1] == "other"
    assert find_layers(made(_TwoHeads), noisy(2, 4), "one")[-1] == "one"


def test_two_heads_are_refused_by_name() -> None:
    """The message names both and the way out."""
    with pytest.raises(
        UnsupportedModelError, match=r"exactly one linear layer .*'other', 'one'.*Name one of them with 'layer'"
    ):
        find_layers(made(_TwoHeads), noisy(2, 4))


class _Auxiliary(nn.Module):
    """The head also answers on another layer's output, before or after it gives the logits."""

    def __init__(self, *, is_first: bool) -> None:
        super().__init__()
        self.body, self.more, self.head, self.is_first = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3), is_first

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        inputs = (h, self.more(h)) if self.is_first else (self.more(h), h)
        first, second = map(self.head, inputs)
        return second if self.is_first else first


class _Scaled(nn.Linear):
    """A head that does more than its weights say."""

    def forward(self, x: Tensor) -> Tensor:
        return 5 * super().forward(x)


def test_a_head_whose_first_run_is_not_the_output_is_refused() -> None:
    """What is kept is the input of the first run; a second run after the logits does no harm."""
    message = (
        r"'model' must answer with the input .* away from those of the first run of 'head'\)\. Run that layer once"
    )
    for layer in (None, "head"):
        with pytest.raises(UnsupportedModelError, match=message):
            find_layers(made(lambda: _Auxiliary(is_first=True)), noisy(2, 4), layer)
    assert find_layers(made(lambda: _Auxiliary(is_first=False)), noisy(2, 4)) == ("body", "more", "head")


def test_a_head_that_does_more_than_its_weights_is_refused() -> None:
    """Its weights are what unlearning changes."""
    with pytest.raises(UnsupportedModelError, match=r"first run of '1'\)\. .* let it do nothing else"):
        find_layers(made(lambda: nn.Sequential(nn.Linear(4, 6), _Scaled(6, 3))), noisy(2, 4))


def test_normalisation_by_the_batch_is_refused() -> None:
    """Without running statistics an answer depends on the other inputs; that of each input by itself is none."""
    layers = nn.Linear(4, 6), nn.BatchNorm1d(6, track_running_stats=False), nn.Linear(6, 3)
    with pytest.raises(
        UnsupportedModelError, match=r"'model' must answer each input on its own \(got '1', .*track_running_stats=True"
    ):
        find_layers(nn.Sequential(*layers).eval(), noisy(2, 4))
    alone = nn.Sequential(nn.Conv2d(1, 4, 3), nn.InstanceNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 3))
    assert find_layers(alone.eval(), noisy(2, 1, 8, 8)) == ("0", "3")


def test_a_model_without_a_linear_layer_is_refused() -> None:
    """The message says what to wrap."""
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    with pytest.raises(UnsupportedModelError, match=r"ran: none\).*Wrap the model so that it ends in torch.nn.Linear"):
        find_layers(model, noisy(2, 1, 8, 8))


def test_a_model_that_does_not_end_in_its_linear_layer_is_refused() -> None:
    """Probabilities are no logits; an operation in place after the layer does not hide that."""
    for end in (nn.Softmax(1), nn.ReLU(inplace=True)):
        with pytest.raises(UnsupportedModelError, match=r"'layer' must be a linear layer.*ran: '0'\)"):
            find_layers(made(lambda end=end: nn.Sequential(nn.Linear(4, 3), end)), noisy(5, 4))


@pytest.mark.parametrize("layer", ["nonsense", "0", "1"])
def test_a_layer_that_cannot_be_the_last_is_refused(layer: str) -> None:
    """Unknown names, hidden layers of another width and layers of another kind."""
    with pytest.raises(
        UnsupportedModelError, match=rf"'layer' must be .*got '{layer}'; linear layers that ran: '0', '2', '4'"
    ):
        find_layers(mlp(), noisy(2, 4), layer)


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
        find_layers(model, noisy(3, 4))


def test_the_largest_table_holds_the_words() -> None:
    """Not that of the places, nor of the kinds; a network without any reads no tokens."""
    assert find_table(made(Reader), torch.tensor(TOKENS).float()) == "words"
    assert find_table(mlp().eval(), noisy(2, 4)) is None
