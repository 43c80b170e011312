"""Evidence in the form in which its owner has it: which reader a path or a factory calls for.

``--data`` and ``--events`` take the same forms. What comes back is a training set in a fixed order, with the ids of its
samples, the names of its labels and a ``form`` that data and events must share.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from poisontrace import hub, store
from poisontrace._errors import InvalidInputError
from poisontrace._validate import check_file, read_npy
from poisontrace.columns import is_saved_set, read_table, table_set
from poisontrace.data import ArraySet, IndexedSet, as_train_set, find_label, read_array_set
from poisontrace.images import ImageSet, read_folder, read_image
from poisontrace.loading import call, find_factory, load_model
from poisontrace.pretrained import ModelFolder
from poisontrace.texts import TextSet, Tokenize


@dataclass(frozen=True)
class Model:
    """A network, and what is known of it.

    Attributes:
        network: in eval mode.
        file: the file or folder that it came from.
        classes: names of its outputs.
        tokenize: turns texts into what it takes, if it takes texts.
    """

    network: nn.Module
    file: Path | None
    classes: tuple[str, ...] | None = None
    tokenize: Tokenize | None = None


def read_model(spec: str, weights: Path | None) -> Model:
    """Read a model.

    Args:
        spec: ``file.py:factory`` or ``package.module:factory``, or a Hugging Face folder.
        weights: of the network that the factory builds; None if it fills in its own.

    Raises:
        InvalidInputError: if it cannot be read, or its weights do not fit.
        UnsupportedModelError: if it is no network, or of a kind that is not known.
    """
    path = Path(spec)
    if path.is_dir():
        folder = ModelFolder(path)
        if weights is not None:
            raise InvalidInputError(
                f"'weights' must be left out with a folder as the model (got {str(weights)!r}). It holds its own."
            )
        return Model(folder.load(), path, folder.classes, folder.tokenizer() if folder.kind == "texts" else None)
    if path.suffix == ".pt2":
        raise InvalidInputError(
            f"'model' must be of a form that is read without running what is in it (got {path.name!r}; "
            "torch.export.load unpickles). Where you trust it, name a factory that returns "
            "poisontrace.exported.as_module(torch.export.load(path))."
        )
    file, factory = find_factory(spec)
    return Model(load_model(factory, weights), file)


Samples = ArraySet | ImageSet | TextSet | IndexedSet

TABLES = (".csv", ".tsv", ".parquet", ".pq")
FORMS = "an .npz, .csv or .parquet file, a folder with one sub-folder a class, a saved data set, or file.py:factory"


def read(
    spec: str,
    name: str,
    *,
    classes: Sequence[str] | None = None,
    label_column: str | None = None,
    source_column: str | None = None,
    tokenize: Tokenize | None = None,
    like: Samples | None = None,
) -> tuple[Samples, Path | None]:
    """Read a training set, or events of it.

    Args:
        spec: a path, or ``file.py:factory`` or ``package.module:factory`` of an object that yields (x, y) by index.
        name: the argument's name, for messages.
        classes: names of the labels in the order of the model's outputs; None takes those of the data.
        label_column: the column of labels in a table; None finds it.
        source_column: the column of a table that says where each sample came from; None finds it, if there is one.
        tokenize: turns texts into numbers, for a model that takes texts.
        like: the training set, of which these are events.

    Returns:
        the samples, and the file or folder that they came from.

    Raises:
        InvalidInputError: if it has none of these forms, or breaks a rule of its form.
    """
    if like is not None:
        classes = like.classes or ()  # numbers only: names of events alone would be numbered otherwise
    path = hub.download(spec, name) if hub.is_address(spec) else Path(spec)
    is_table = path.suffix.lower() in TABLES or is_saved_set(path)
    if source_column is not None and not is_table:
        raise InvalidInputError(
            f"'source-column' must be used with a table in 'data' (got {path.name!r}). Store an array named source in "
            "an .npz, or sort images into class/source/."
        )
    if label_column is not None and like is None and not is_table:
        raise InvalidInputError(
            f"'label-column' must be used with a table in 'data' (got {path.name!r}). Leave it out: there is one place "
            "for labels in any other form."
        )
    if not path.exists() and is_factory(spec):
        file, factory = find_factory(spec, name)
        return _made(call(factory, name), name, classes), file
    if path.is_dir() and not is_table:
        return read_folder(path, name, classes, like.shape[2] if isinstance(like, ImageSet) else None), path
    if is_table:
        table = read_table(path, name, label_column, source_column)
        samples = table_set(
            table,
            name,
            classes=classes,
            label_column=label_column,
            source_column=source_column,
            like=like,
            tokenize=tokenize,
        )
        return samples, path
    check_file(path, name)
    if path.suffix.lower() != ".npz":
        raise InvalidInputError(f"'{name}' must be {FORMS} (got {path.name!r}). Pass one of these.")
    return read_array_set(path, name, classes), path


def is_factory(spec: str) -> bool:
    """Return whether a model or data are named as a factory, whose code will run."""
    where, _, name = spec.rpartition(":")
    return bool(where) and name.isidentifier()


def _made(source: Any, name: str, classes: Sequence[str] | None) -> Samples:
    samples = as_train_set(source, name)
    if not isinstance(samples, ArraySet | IndexedSet):
        samples = IndexedSet(source, name)
    if classes:
        object.__setattr__(samples, "classes", tuple(classes))
    return samples


def read_event(
    spec: str, label: str, like: Samples, *, tokenize: Tokenize | None = None
) -> tuple[Samples, Path | None]:
    """Read one event with the wrong label that the model gave it.

    Args:
        spec: an image; a table, whose rows all got the label; one ``.npy`` array; a line of numbers; or a text, in a
            ``.txt`` file or as it is.
        label: its name or its number.
        like: the training set.
        tokenize: turns texts into numbers.

    Returns:
        the event, and the file that it came from.

    Raises:
        InvalidInputError: if it cannot be read or has not the form of a sample.
    """
    number, path = find_label(label, like.classes), Path(spec)
    suffix = path.suffix.lower()
    y = np.array([number])
    if suffix in TABLES:
        table = read_table(path, "event")
        return table_set(table, "event", classes=like.classes, label=number, like=like, tokenize=tokenize), path
    if tokenize is not None:
        file = check_file(path, "event") if suffix == ".txt" else None
        text = file.read_text("utf-8", "replace") if file else spec
        return TextSet([text], y, ["event"], like.classes, tokenize), file
    if isinstance(like, ArraySet) and like.x.ndim == 2 and (numbers := _line(spec)) is not None:
        return ArraySet(numbers, y), None
    check_file(path, "event")
    if suffix == ".npy":
        return ArraySet(read_npy(path, "event")[None], y), path
    if isinstance(like, IndexedSet):
        raise InvalidInputError(
            f"'event' must be an .npy array as the model takes it, because 'data' is made by your code (got "
            f"{path.name!r}). Or pass --events file.py:factory, which returns a list of pairs (x, wrong label)."
        )
    return read_image(path, number, like), path


def _line(text: str) -> NDArray[np.float32] | None:
    """Return a line of numbers as one row, or None if it is something else."""
    try:
        return np.array([[float(cell) for cell in text.split(",")]], np.float32)
    except ValueError:
        return None


def read_classes(text: str) -> tuple[str, ...]:
    """Return names that are written with commas between them, or one a line in a ``.txt`` file.

    Raises:
        InvalidInputError: if there are fewer than two, or one occurs twice.
    """
    path = Path(text)
    if path.suffix.lower() == ".txt":
        lines = check_file(path, "classes").read_text("utf-8", "replace").splitlines()
    else:
        lines = text.split(",")
    names = tuple(line.strip() for line in lines if line.strip())
    if len(names) < 2 or len(set(names)) < len(names):
        raise InvalidInputError(
            f"'classes' must be two names or more, each once (got {text!r}). Write --classes cat,dog, in the order of "
            "the model's outputs."
        )
    return names


def check_same_form(events: Samples, data: Samples, name: str = "events") -> None:
    """Refuse samples that are not what those of ``data``, the training set, are.

    Raises:
        InvalidInputError: if the forms differ, or the data come from a factory and the events are images.
    """
    if isinstance(events, IndexedSet):
        return
    if isinstance(data, IndexedSet):
        if events.form.startswith("uint8"):
            raise InvalidInputError(
                f"'{name}' must be arrays as the model takes them, because 'data' is made by your code (got images). "
                f"Pass --{name} file.py:factory, which returns a list of pairs (x, label)."
            )
    elif events.form != data.form:
        raise InvalidInputError(
            f"'{name}' must have the form of 'data' (got {events.form} for {data.form}). "
            "Store both as the model's input was."
        )


def as_pairs(events: Samples) -> list[tuple[Tensor, int]]:
    """Return events as pairs (x, wrong label), all of one shape."""
    labels = _labels(events)
    return list(zip(events.inputs(np.arange(len(events))), labels.tolist(), strict=True))


def as_arrays(samples: Samples) -> ArraySet:
    """Return samples as an ``.npz`` would hold them, all in memory: images as uint8, else what the model takes."""
    if isinstance(samples, ArraySet):
        return samples
    labels, rows = _labels(samples), np.arange(len(samples))
    x = samples.pixels(rows) if isinstance(samples, ImageSet) else samples.inputs(rows).numpy()
    return ArraySet(x, labels)


def _labels(samples: Samples) -> NDArray[np.int64]:
    if isinstance(samples, IndexedSet):
        return np.concatenate([y for _, y in samples.batches(256)])
    return samples.y


def describe(spec: str, file: Path | None) -> dict[str, Any]:
    """Return what a case keeps of an input: where it lies, its SHA-256, and how it was named if that is another text.

    Args:
        spec: as it was named.
        file: the file or folder that it came from, if it did.
    """
    if file is None:
        return {"path": spec, "sha256": None}
    kept = {"path": str(file), "sha256": store.sha256(file)}
    return kept if kept["path"] == spec else {**kept, "spec": spec}


def texts_shown(data: Samples, events: Samples, exhibits: Mapping[str, NDArray[Any]]) -> dict[str, list[Any]]:
    """Return index and text of the samples that a report shows, by kind; nothing if the samples are no texts."""
    if not isinstance(data, TextSet) or not isinstance(events, TextSet):
        return {}
    shown = {kind: [(int(row), data.texts[row]) for row in exhibits[f"{kind}_index"]] for kind in ("poison", "benign")}
    return {"events": list(enumerate(events.texts)), **shown}
