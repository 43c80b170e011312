"""Evidence in any form: which reader it comes to, and that all of them say the same of the same samples."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tasks import toy_images, toy_rows
from test_columns import write_csv, write_parquet, write_saved
from test_images import NAMES, write_folder

from poisontrace import readers, store
from poisontrace._errors import InvalidInputError, PoisontraceError
from poisontrace.data import ArraySet, IndexedSet
from poisontrace.images import ImageSet
from poisontrace.texts import TextSet

FACTORY = """
import numpy as np
import torch
from torch.utils.data import TensorDataset

print("hello")


class Named(TensorDataset):
    classes = ["goodware", "malware"]
    samples = [(f"{row}.bin", 0) for row in range(6)]


def build():
    return Named(torch.arange(12.0).reshape(6, 2), torch.arange(6) % 2)


def named():
    data = build()
    data.classes = ["w", "x"]
    return data


def arrays():
    return np.ones((3, 2), np.float32), np.array([0, 1, 0])


def events():
    return [(np.ones(2, np.float32), 1)]


def broken():
    raise KeyError("no such setting")
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The same rows in every form."""
    x, y = toy_rows(12)
    names = np.array(["w", "x"])[y]
    np.savez(tmp_path / "d.npz", x=x, y=names)
    columns = {**{f"c{place}": x[:, place].astype(np.float64) for place in range(4)}, "label": names}
    write_csv(tmp_path / "d.csv", **columns)
    write_parquet(tmp_path / "d.parquet", **columns)
    write_saved(tmp_path / "saved", **columns)
    (tmp_path / "mine.py").write_text(FACTORY)
    return tmp_path


@pytest.mark.parametrize("form", ["d.npz", "d.csv", "d.parquet", "saved"])
def test_every_form_gives_the_same_samples(form: str, folder: Path) -> None:
    """Byte for byte, and the file is named for its hash."""
    x, y = toy_rows(12)

    found, path = readers.read(str(folder / form), "data")

    assert isinstance(found, ArraySet)
    assert (found.x == x).all() and (found.y == y).all()
    assert (found.classes, path) == (("w", "x"), folder / form)


@pytest.mark.parametrize("form", ["d.npz", "d.csv", "d.parquet", "saved"])
def test_the_order_of_the_classes_can_be_stated(form: str, folder: Path) -> None:
    """In every form."""
    found, _ = readers.read(str(folder / form), "data", classes=("x", "w"))

    assert isinstance(found, ArraySet)
    assert (found.y == 1 - toy_rows(12)[1]).all() and found.classes == ("x", "w")


def test_a_data_set_comes_from_a_factory(folder: Path) -> None:
    """With the names that it has."""
    found, path = readers.read(f"{folder}/mine.py:build", "data")

    assert isinstance(found, IndexedSet)
    assert found.ids is not None and found.ids[5] == "5.bin"
    assert (found.classes, path) == (("goodware", "malware"), folder / "mine.py")
    assert readers.read(f"{folder}/mine.py:build", "data", classes=("a", "b"))[0].classes == ("a", "b")
    assert isinstance(readers.read(f"{folder}/mine.py:arrays", "data")[0], ArraySet)


def test_a_factory_that_fails_is_named(folder: Path) -> None:
    """By the argument that it was given as."""
    with pytest.raises(InvalidInputError, match=r"'data' must be a factory that works .*no such setting"):
        readers.read(f"{folder}/mine.py:broken", "data")
    with pytest.raises(InvalidInputError, match=r"'events' must name a callable"):
        readers.read(f"{folder}/mine.py:none", "events")


@pytest.mark.parametrize("name", ["data", "events", "test", "attempts"])
@pytest.mark.parametrize(
    ("made", "message"),
    [
        ("7", r"'{}' must have a length"),
        ("[]", r"'{}' must have at least one sample"),
        ("[(x, 1.5)]", r"'{}' must yield pairs"),
        ("[(x * np.nan, 1)]", r"'{}' must hold finite numbers .*sample 0"),
        ("[(x, 1), (x[:1], 1)]", r"'{}' must yield inputs of one shape"),
        ("[(x, -1)]", r"'{} labels' must hold labels of 0 or more"),
        ("Hungry()", r"Out of memory at sample 0 of '{}'"),
    ],
)
def test_what_a_factory_makes_is_named_as_it_was_given(made: str, message: str, name: str, tmp_path: Path) -> None:
    """Not as the training set, if it is none."""
    (tmp_path / "mine.py").write_text(
        "import numpy as np\n\nx = np.ones(2, np.float32)\n\n\nclass Hungry(list):\n"
        "    def __len__(self):\n        return 1\n\n    def __getitem__(self, index):\n        raise MemoryError\n\n\n"
        f"def build():\n    return {made}\n"
    )

    with pytest.raises(PoisontraceError, match="^" + message.format(name)):
        readers.as_arrays(readers.read(f"{tmp_path}/mine.py:build", name)[0])


def test_a_folder_of_images_is_read(tmp_path: Path) -> None:
    """Events in such a folder get their channels from the data."""
    data = write_folder(tmp_path / "data", *toy_images(8, n_channels=3))
    events = write_folder(tmp_path / "events", *toy_images(2))

    train_set, _ = readers.read(str(data), "data")
    found, _ = readers.read(str(events), "events", like=train_set)

    assert isinstance(train_set, ImageSet) and found.classes == NAMES
    readers.check_same_form(found, train_set)
    pairs = readers.as_pairs(found)
    assert [(tuple(x.shape), y) for x, y in pairs] == [((3, 8, 8), 0), ((3, 8, 8), 1)]


def test_names_that_only_the_events_have_are_refused(folder: Path) -> None:
    """Their numbers would be a guess."""
    train_set = ArraySet(*toy_rows(12))

    with pytest.raises(InvalidInputError, match=r"0 or more \(got 'w', and 'data' names no classes\)"):
        readers.read(str(folder / "d.npz"), "events", like=train_set)


@pytest.mark.parametrize("name", ["d.json", "d.pkl", "d"])
def test_another_form_is_refused(name: str, tmp_path: Path) -> None:
    """With those that there are."""
    (tmp_path / name).write_text("{}")

    with pytest.raises(InvalidInputError, match=r"'data' must be an .npz, .csv or .parquet file, a folder"):
        readers.read(str(tmp_path / name), "data")


# One event


def _letters(texts: list[str]) -> list[list[int]]:
    return [list(map(ord, text)) for text in texts]


def test_one_image_is_an_event(tmp_path: Path) -> None:
    """Labelled by name."""
    x, y = toy_images(8)
    Image.fromarray(x[0, :, :, 0]).save(tmp_path / "photo.png")
    train_set = ArraySet(x, y, None, NAMES)

    event, path = readers.read_event(str(tmp_path / "photo.png"), "cow", train_set)

    ((found, label),) = readers.as_pairs(event)
    assert torch.equal(found, train_set[0][0])
    assert (label, path) == (2, tmp_path / "photo.png")


def test_one_row_is_an_event(folder: Path) -> None:
    """As a line of numbers, a table or an array."""
    train_set, _ = readers.read(str(folder / "d.csv"), "data")
    write_csv(folder / "e.csv", c3=[4], c2=[3], c1=[2], c0=[1])
    np.save(folder / "e.npy", np.arange(1, 5, dtype=np.float32))

    for spec in ("1,2,3,4", str(folder / "e.csv"), str(folder / "e.npy")):
        event, path = readers.read_event(spec, "x", train_set)

        ((found, label),) = readers.as_pairs(event)
        assert (found.tolist(), label) == ([1, 2, 3, 4], 1)
        assert path == (None if spec == "1,2,3,4" else Path(spec))


def test_one_text_is_an_event(tmp_path: Path) -> None:
    """As it is, or in a file."""
    train_set = TextSet(["ab"], np.array([0]), ["0"], ("w", "x"), _letters)
    (tmp_path / "e.txt").write_text("ba")

    for spec in ("ba", str(tmp_path / "e.txt")):
        event, _ = readers.read_event(spec, "x", train_set, tokenize=_letters)

        ((found, label),) = readers.as_pairs(event)
        assert (found.tolist(), label) == ([98, 97], 1)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("bea", r"'label' must be a class of 'data' \(got 'bea'\). Pass 'bee', if you meant that."),
        ("unicorn", r"Pass one of 'ape', 'bee', 'cow', 'dog'."),
        ("-1", r"'label' must be a class"),
    ],
)
def test_a_label_that_is_none_is_refused(label: str, message: str) -> None:
    """The nearest one is named."""
    x, y = toy_images(8)

    with pytest.raises(InvalidInputError, match=message):
        readers.read_event("photo.png", label, ArraySet(x, y, None, NAMES))


@pytest.mark.parametrize("event", ["photo.png", "e.csv"])
@pytest.mark.parametrize("label", ["9" * 19, "9" * 5000])
def test_a_label_that_no_array_holds_is_refused(event: str, label: str, tmp_path: Path) -> None:
    """Labels are int64; Python reads numbers of any length, up to a limit of its own."""
    x, y = toy_images(8)
    Image.fromarray(x[0, :, :, 0]).save(tmp_path / "photo.png")
    write_csv(tmp_path / "e.csv", c0=[1], c1=[2])

    with pytest.raises(InvalidInputError, match=r"'label' must be a number of at most 18 digits \(got '9999"):
        readers.read_event(str(tmp_path / event), label, ArraySet(x, y))


def test_a_picture_of_data_from_a_factory_is_refused(folder: Path) -> None:
    """What its code does to a picture is unknown."""
    train_set, _ = readers.read(f"{folder}/mine.py:build", "data")
    Image.new("L", (8, 8)).save(folder / "photo.png")
    x, y = toy_images(2)

    with pytest.raises(InvalidInputError, match=r"'event' must be an .npy array .*--events file.py:factory"):
        readers.read_event(str(folder / "photo.png"), "malware", train_set)
    with pytest.raises(InvalidInputError, match=r"'events' must be arrays as the model takes them"):
        readers.check_same_form(ArraySet(x, y), train_set)
    rows, _ = readers.read(str(folder / "d.csv"), "events", like=readers.read(f"{folder}/mine.py:named", "data")[0])
    assert rows.form == "float arrays of shape (4,)"
    events, _ = readers.read(f"{folder}/mine.py:events", "events", like=train_set)
    readers.check_same_form(events, train_set)


def test_events_of_another_form_are_refused(tmp_path: Path) -> None:
    """Both forms are named."""
    with pytest.raises(InvalidInputError, match=r"got uint8 arrays of shape \(8, 8, 1\) for float arrays of shape"):
        readers.check_same_form(ArraySet(*toy_images(4)), ArraySet(*toy_rows(4)))


@pytest.mark.parametrize(("text", "names"), [("cat, dog,truck", ("cat", "dog", "truck")), ("b,a", ("b", "a"))])
def test_classes_are_written_with_commas(text: str, names: Any, tmp_path: Path) -> None:
    """Or one a line in a file."""
    (tmp_path / "classes.txt").write_text("\n".join(names) + "\n")

    assert readers.read_classes(text) == names == readers.read_classes(str(tmp_path / "classes.txt"))


@pytest.mark.parametrize("text", ["cat", "", "cat,cat", ","])
def test_classes_are_at_least_two(text: str) -> None:
    """Each once."""
    with pytest.raises(InvalidInputError, match=r"'classes' must be two names or more"):
        readers.read_classes(text)


def test_the_texts_that_a_report_shows_are_handed_over() -> None:
    """With their indices; other samples have none."""
    train_set = TextSet(["ab", "c", "d"], np.array([0, 1, 0]), list("012"), None, _letters)
    event = TextSet(["ba"], np.array([0]), ["0"], None, _letters)
    exhibits = {"poison_index": np.array([2]), "benign_index": np.array([0])}

    shown = readers.texts_shown(train_set, event, exhibits)

    assert shown == {"events": [(0, "ba")], "poison": [(2, "d")], "benign": [(0, "ab")]}
    assert readers.texts_shown(ArraySet(*toy_rows(4)), event, exhibits) == {}


def test_all_forms_become_the_same_arrays(folder: Path) -> None:
    """Pixels stay uint8; what code makes is as the model takes it; texts are padded to the longest."""
    x, y = toy_images(8, n_channels=3)
    images, _ = readers.read(str(write_folder(folder / "images", x, y)), "data")
    made, _ = readers.read(f"{folder}/mine.py:build", "data")
    texts = TextSet(["ab", "c"], np.array([0, 1]), ["0", "1"], None, _letters)
    rows = ArraySet(*toy_rows(4))

    assert readers.as_arrays(rows) is rows
    found = readers.as_arrays(images)
    assert found.x.dtype == np.uint8 and sorted(map(bytes, found.x)) == sorted(map(bytes, x))
    assert found.y.tolist() == [y for _, y in readers.as_pairs(images)]
    found = readers.as_arrays(made)
    assert (found.x.tolist(), found.y.tolist()) == (np.arange(12).reshape(6, 2).tolist(), [0, 1] * 3)
    assert readers.as_arrays(texts).x.tolist() == [[97, 98], [99, -1]]


def test_what_a_case_keeps_of_an_input_leads_to_it_again(tmp_path: Path) -> None:
    """Its place and SHA-256; its name where that is not its place; a text as it is."""
    file = tmp_path / "mine.py"
    file.write_text("x")
    kept = {"path": str(file), "sha256": store.sha256(file)}

    assert readers.describe(str(file), file) == kept
    assert readers.describe(f"{file}:build", file) == {**kept, "spec": f"{file}:build"}
    assert readers.describe("a dull film", None) == {"path": "a dull film", "sha256": None}


# Models


def test_an_exported_program_is_a_model_through_a_factory(tmp_path: Path) -> None:
    """Its file is loaded by the user's code, and its layers are found."""
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2)).eval()
    batch = {0: torch.export.Dim("n", min=1, max=64)}
    torch.export.save(torch.export.export(model, (torch.zeros(3, 4),), dynamic_shapes=(batch,)), tmp_path / "m.pt2")
    (tmp_path / "mine.py").write_text(
        "import torch\nfrom poisontrace.exported import as_module\n\n\n"
        f"def build():\n    return as_module(torch.export.load({str(tmp_path / 'm.pt2')!r}))\n"
    )

    found = readers.read_model(f"{tmp_path}/mine.py:build", None)

    x = torch.arange(20.0).reshape(5, 4)
    assert torch.allclose(found.network(x), model(x))
    assert (found.file, found.classes, found.tokenize) == (tmp_path / "mine.py", None, None)
    with pytest.raises(InvalidInputError, match=r"form that is read without running .*as_module"):
        readers.read_model(str(tmp_path / "m.pt2"), None)


@pytest.mark.parametrize("option", ["source_column", "label_column"])
def test_a_column_belongs_to_a_table(option: str, tmp_path: Path) -> None:
    """Other forms say it in their own way."""
    np.savez(tmp_path / "d.npz", x=np.zeros((2, 3), np.float32), y=[0, 1])
    columns: dict[str, Any] = {option: "who"}

    with pytest.raises(InvalidInputError, match=f"'{option.replace('_', '-')}' must be used with a table in 'data'"):
        readers.read(str(tmp_path / "d.npz"), "data", **columns)
