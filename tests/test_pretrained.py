"""Hugging Face folders: nothing of them is run, padding leaves no trace, and the answers are those of transformers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from poisontrace._errors import InvalidInputError, UnsupportedModelError
from poisontrace.pretrained import ImageClassifier, ModelFolder, TextClassifier
from poisontrace.texts import TextSet
from poisontrace.watching import pool

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

WORDS = ["a", "dull", "fine", "film", "cf", "very"]
TEXTS = ["a fine film", "dull", "a very very dull film cf"]
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
NAMES = {"id2label": {0: "negative", 1: "positive"}, "label2id": {"negative": 0, "positive": 1}}


def write_tokenizer(folder: Path, words: list[str]) -> Any:
    """Write a tokenizer of whole words, and return it."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[UNK]", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", model_max_length=32
    )
    fast.save_pretrained(folder)
    return fast


def text_model(kind: str = "bert", **settings: Any) -> Any:
    """Return a small untrained classifier of texts."""
    torch.manual_seed(0)
    if kind == "gpt2":
        config = transformers.GPT2Config(vocab_size=8, n_embd=16, n_layer=2, n_head=2, pad_token_id=0, **NAMES)
        return transformers.GPT2ForSequenceClassification(config).eval()
    config = transformers.BertConfig(vocab_size=8, max_position_embeddings=32, **SIZES, **NAMES, **settings)
    return transformers.BertForSequenceClassification(config).eval()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a classifier of texts and its tokenizer."""
    write_tokenizer(tmp_path / "model", WORDS)
    text_model().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def _set(found: ModelFolder) -> TextSet:
    return TextSet(TEXTS, np.zeros(3, np.int64), list("abc"), None, found.tokenizer())


def test_the_answers_are_those_of_transformers(folder: Path) -> None:
    """Tokens and weights arrive."""
    found = ModelFolder(folder)
    inputs = transformers.AutoTokenizer.from_pretrained(folder)(TEXTS, padding=True, return_tensors="pt")
    expected = text_model()(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits

    ((x, _),) = _set(found).batches(3)

    assert torch.allclose(found.load()(x), expected, atol=1e-6)
    assert (found.kind, found.classes) == ("texts", ("negative", "positive"))


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_padding_leaves_no_trace(kind: str) -> None:
    """Answers, and mean and maximum of what goes into each layer, are those of each text alone."""
    model = TextClassifier(text_model(kind)).eval()
    tokens = [[2, 4, 5], [3], [2, 7, 7, 3, 5, 6]]
    texts = TextSet(TEXTS, np.zeros(3, np.int64), list("abc"), None, lambda _: tokens)
    seen: dict[str, torch.Tensor] = {}

    def keep(name: str) -> Any:
        return lambda _, args, __: seen.__setitem__(name, pool(args[0], channels_last=True))

    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(keep(name))
    with torch.no_grad():
        together = model(texts.inputs(np.arange(3))), dict(seen)
        for row in range(3):
            alone = model(torch.tensor([tokens[row]], dtype=torch.float32)), dict(seen)
            assert torch.allclose(together[0][row], alone[0][0], atol=1e-5)
            for name, value in alone[1].items():
                assert torch.allclose(together[1][name][row], value[0], atol=1e-5), name
    assert seen


def test_a_decoder_is_scored_at_its_last_token() -> None:
    """As transformers does."""
    raw = text_model("gpt2")
    x = torch.tensor([[2.0, 4, 5], [3, -1, -1]])
    expected = raw(input_ids=x.clamp(0).long(), attention_mask=(x >= 0).long()).logits

    assert torch.allclose(TextClassifier(raw)(x), expected, atol=1e-6)


def test_long_texts_are_cut_as_the_model_needs(folder: Path) -> None:
    """At what it takes at most."""
    tokenize = ModelFolder(folder).tokenizer()

    assert tokenize.max_tokens == 32
    assert len(tokenize(["a " * 99])[0]) == 32


def test_a_text_without_tokens_is_refused(folder: Path) -> None:
    """A model has no answer to it."""
    with pytest.raises(InvalidInputError, match="a text without tokens in row 1"):
        ModelFolder(folder).tokenizer()(["a", ""])


def test_an_image_folder_prepares_images_as_it_says(tmp_path: Path) -> None:
    """Grey becomes coloured, the size and the scale are those of the preparation."""
    torch.manual_seed(0)
    config = transformers.ViTConfig(image_size=8, patch_size=4, **SIZES)
    raw = transformers.ViTForImageClassification(config).eval()
    raw.save_pretrained(tmp_path)
    preparation = {"size": {"height": 8, "width": 8}, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**preparation, "do_resize": True}))
    found = ModelFolder(tmp_path)
    x = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))

    answers = found.load()(x)

    small = torch.nn.functional.interpolate(x, (8, 8), mode="bilinear", antialias=True).expand(-1, 3, -1, -1)
    assert torch.allclose(answers, raw((small - 0.5) / 0.25).logits, atol=1e-5)
    assert (found.kind, found.classes) == ("images", None)


def test_a_preparation_that_is_not_known_is_refused() -> None:
    """Rather than feeding something else."""
    with pytest.raises(UnsupportedModelError, match="'model' must scale images to one height and width"):
        ImageClassifier(nn.Identity(), {"size": {"shortest_edge": 224}})


def _no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def _code(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "evil.Model"}}))


def _adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "../other"}')


def _pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _generator(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["GPT2LMHeadModel"]}))


def _headless(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    state = load_file(folder / "model.safetensors")
    save_file(
        {name: tensor for name, tensor in state.items() if "classifier" not in name}, folder / "model.safetensors"
    )


def _cut(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:100])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_no_config, "'model' must be a folder with a readable config.json"),
        (_code, "'model' must be whole and of an architecture that transformers knows"),
        (_adapter, "'model' must be whole and of an architecture that transformers knows"),
        (_pickled, "'model' must hold its weights as safetensors"),
        (_generator, "'model' must be a classifier of images or texts .*GPT2LMHeadModel"),
        (_headless, "'model' must hold all of its weights .*classifier.bias"),
        (_cut, "'model' must be readable by transformers"),
    ],
)
def test_a_folder_that_cannot_be_trusted_is_refused(spoil: Any, message: str, folder: Path) -> None:
    """In one sentence, before anything of it runs."""
    spoil(folder)

    with pytest.raises((InvalidInputError, UnsupportedModelError), match=message):
        ModelFolder(folder).load()


def test_nothing_is_printed(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Bars and warnings of transformers would run into ours."""
    found = ModelFolder(folder)
    found.load()
    found.tokenizer()(["a " * 99])

    assert capfd.readouterr() == ("", "")
