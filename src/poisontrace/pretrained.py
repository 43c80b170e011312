"""A Hugging Face model folder as a network for the tracer: local files, safetensors, no code of the folder.

Two kinds are known: image classifiers, which get the preparation that the folder states, and text classifiers, which
get tokens. Where texts of one batch differ in length, padding must not leave a trace in what is kept of a layer (mean
and maximum over the tokens), so a linear layer finds at each padded place the mean of the text's own tokens: neither
the mean nor the maximum then differs from that of the text alone, and the answer does not, because attention skips
these places.
"""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from poisontrace._errors import InvalidInputError, UnsupportedModelError

MAX_TOKENS = 512
KINDS = {"ImageClassification": "images", "SequenceClassification": "texts"}
WAY_OUT = "Write the folder again with model.save_pretrained(folder), and for texts tokenizer.save_pretrained(folder)."


class TextClassifier(nn.Module):
    """Takes numbers of tokens (n, length) as float32, negative where padded, and returns logits (n, k)."""

    def __init__(self, model: Any) -> None:
        """Wrap a ``...ForSequenceClassification``."""
        super().__init__()
        self.model = model
        self._is_token: Tensor | None = None
        model.get_input_embeddings().padding_idx = model.config.pad_token_id or 0  # so that it counts for no word
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module.register_forward_pre_hook(self._fill)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        self._is_token = x >= 0
        # Whatever number a padded place gets, attention skips it; some models find the last token by it.
        padding = self.model.config.pad_token_id or 0
        given = {"input_ids": x.long().where(self._is_token, padding), "attention_mask": self._is_token.long()}
        try:
            score = getattr(self.model, "score", None)
            if not isinstance(score, nn.Linear):
                logits: Tensor = self.model(**given).logits
                return logits
            # A decoder scores every token and then picks the last one; the tracer needs one row a text.
            hidden = self.model.base_model(**given)[0]
            last = self._is_token.sum(1) - 1
            logits = score(hidden[torch.arange(len(x), device=x.device), last])
            return logits
        finally:
            self._is_token = None

    def _fill(self, _: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        is_token = self._is_token
        if is_token is None or bool(is_token.all()) or not args or args[0].shape[:-1] != is_token.shape:
            return None
        below, kept = args[0], is_token[..., None]
        mean = (below * kept).sum(1, keepdim=True) / kept.sum(1, keepdim=True)
        return (below.where(kept, mean), *args[1:])


class ImageClassifier(nn.Module):
    """Takes images (n, c, h, w) in [0, 1], prepares them as the folder says, and returns logits (n, k)."""

    def __init__(self, model: Any, preparation: dict[str, Any]) -> None:
        """Wrap a ``...ForImageClassification``.

        Args:
            model: the network.
            preparation: what ``preprocessor_config.json`` holds.
        """
        super().__init__()
        self.model = model
        known = preparation if preparation.get("do_normalize", bool(preparation)) else {}
        self.register_buffer("mean", torch.tensor(known.get("image_mean", [0.0])).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(known.get("image_std", [1.0])).view(1, -1, 1, 1), persistent=False)
        self.mean: Tensor
        self.std: Tensor
        self._scale = 255 * preparation.get("rescale_factor", 1 / 255) if preparation.get("do_rescale", True) else 255
        size = preparation.get("size") or {}
        self._size = (size["height"], size["width"]) if "height" in size else None
        self._mode = "bicubic" if preparation.get("resample") == 3 else "bilinear"
        if not preparation.get("do_resize", bool(size)):
            self._size = None
        elif self._size is None:
            raise UnsupportedModelError(
                f"'model' must scale images to one height and width (got size {size}). Scale the images beforehand and "
                "set do_resize to false in preprocessor_config.json, or pass a factory."
            )

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        if x.shape[1] == 1 and self.model.config.num_channels == 3:
            x = x.expand(-1, 3, -1, -1)
        if self._size not in (None, tuple(x.shape[2:])):
            x = functional.interpolate(x, self._size, mode=self._mode, antialias=True).clamp(0, 1)
        logits: Tensor = self.model((self._scale * x - self.mean) / self.std).logits
        return logits


class ModelFolder:
    """What ``save_pretrained`` wrote.

    Attributes:
        kind: "images" or "texts".
        classes: the names of the model's outputs, or None if it has none.
    """

    def __init__(self, folder: Path) -> None:
        """Read the configuration; weights are not touched yet.

        Raises:
            InvalidInputError: if it is no such folder, wants code or pickles, or transformers is not installed.
            UnsupportedModelError: if the model is no classifier of images or texts.
        """
        self.folder = folder
        try:
            config = json.loads((folder / "config.json").read_text("utf-8"))
            architecture = str((config.get("architectures") or ["none"])[0])
            names = config.get("id2label") or {}
            ordered = tuple(str(names[key]) for key in sorted(names, key=int))
        except (OSError, ValueError, AttributeError, TypeError, LookupError) as error:
            raise InvalidInputError(
                f"'model' must be a folder with a readable config.json (got {error} in {folder.name!r}). {WAY_OUT}"
            ) from error
        if "auto_map" in config or (folder / "adapter_config.json").exists():
            raise InvalidInputError(
                f"'model' must be whole and of an architecture that transformers knows (got {folder.name!r}, which "
                "brings code or is an adapter). Merge the adapter, or pass a factory as --model file.py:factory."
            )
        if not any(folder.glob("*.safetensors")):
            raise InvalidInputError(
                f"'model' must hold its weights as safetensors (got none in {folder.name!r}; a pickle can run code "
                f"when it is opened). {WAY_OUT}"
            )
        kind = next((kind for suffix, kind in KINDS.items() if architecture.endswith("For" + suffix)), None)
        if kind is None:
            raise UnsupportedModelError(
                f"'model' must be a classifier of images or texts (got {architecture!r}). "
                "Pass another architecture as --model file.py:factory."
            )
        self.kind = kind
        self.classes = None if all(name.startswith("LABEL_") for name in ordered) else ordered

    def load(self) -> nn.Module:
        """Return the network in eval mode.

        Raises:
            InvalidInputError: if the weights cannot be read, or do not fill the network.
        """
        with _quiet("model") as transformers:
            auto = "AutoModelForImageClassification" if self.kind == "images" else "AutoModelForSequenceClassification"
            model, facts = getattr(transformers, auto).from_pretrained(
                self.folder, use_safetensors=True, output_loading_info=True, **SAFE
            )
        problems = [*facts["missing_keys"], *facts["mismatched_keys"]]
        if problems:
            raise InvalidInputError(
                f"'model' must hold all of its weights (got none for {str(sorted(map(str, problems))[0])!r} in "
                f"{self.folder.name!r}). {WAY_OUT}"
            )
        model = model.float().eval().requires_grad_(True)
        if self.kind == "texts":
            return TextClassifier(model).eval()
        file = self.folder / "preprocessor_config.json"
        try:
            preparation = json.loads(file.read_text("utf-8")) if file.exists() else {}
            return ImageClassifier(model, preparation).eval()
        except (OSError, ValueError, AttributeError, TypeError, LookupError) as error:
            if isinstance(error, UnsupportedModelError):
                raise
            raise InvalidInputError(
                f"'model' must have a readable preprocessor_config.json (got {error} in {self.folder.name!r}). "
                f"{WAY_OUT}"
            ) from error

    def tokenizer(self) -> "Tokenizer":
        """Return what turns texts into tokens.

        Raises:
            InvalidInputError: if the folder holds none.
        """
        return Tokenizer(self.folder)


class Tokenizer:
    """Turns texts into the numbers of their tokens, as many as the model takes."""

    def __init__(self, folder: Path) -> None:
        """Read the tokenizer of a folder."""
        with _quiet("model") as transformers:
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **SAFE)
            config = transformers.AutoConfig.from_pretrained(folder, **SAFE)
        limits = (self._tokenizer.model_max_length, getattr(config, "max_position_embeddings", None), MAX_TOKENS)
        self.max_tokens = min(limit for limit in limits if limit)

    def name_of(self, token: int) -> str:
        """Return how a token is written."""
        return str(self._tokenizer.convert_ids_to_tokens(token))

    def __call__(self, texts: list[str]) -> list[list[int]]:
        """Return the numbers of the tokens of each text, the first ``max_tokens``."""
        with _quiet("data"):
            found = self._tokenizer(texts, truncation=True, max_length=self.max_tokens)["input_ids"]
            if empty := [row for row, tokens in enumerate(found) if not tokens]:
                raise ValueError(f"a text without tokens in row {empty[0]}")
        tokens: list[list[int]] = found
        return tokens


SAFE: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}


@contextmanager
def _quiet(argument: str) -> Iterator[Any]:
    """Yield transformers, which prints nothing inside the block; what it raises becomes one sentence."""
    try:
        import transformers
    except ImportError as error:
        raise InvalidInputError(
            "'model' must be of a form that can be read here (got a Hugging Face folder, which needs transformers). "
            "Install it: pip install 'poisontrace[text]'."
        ) from error
    level = transformers.logging.get_verbosity()
    bars: Any = transformers.utils.logging
    is_bar_on = bars.is_progress_bar_enabled()
    transformers.logging.set_verbosity(logging.CRITICAL)
    bars.disable_progress_bar()
    try:
        yield transformers
    except InvalidInputError:
        raise
    except Exception as error:  # files from outside may raise anything
        reason = (str(error).splitlines() or [""])[0]
        raise InvalidInputError(
            f"'{argument}' must be readable by transformers (got {type(error).__name__}: {reason}). {WAY_OUT}"
        ) from error
    finally:
        transformers.logging.set_verbosity(level)
        if is_bar_on:
            bars.enable_progress_bar()
