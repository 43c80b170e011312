"""Named data sets, for attacks, demos and benchmarks: read from disk, or downloaded and checked.

A data set is looked for in the folder that ``POISONTRACE_DATA`` names. Nothing here ever reads a pickle.
"""

import io
import os
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from poisontrace._errors import InvalidInputError, StoreError
from poisontrace._rng import numpy_generator
from poisontrace._validate import read_npz

CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
CIFAR10_MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
# In the order of the official numbers.
GTSRB_CLASSES = tuple(
    "speed 20,speed 30,speed 50,speed 60,speed 70,speed 80,end of 80,speed 100,speed 120,no passing,"
    "no passing by lorries,right of way,priority road,yield,stop,no vehicles,no lorries,no entry,danger,"
    "curve left,curve right,double curve,bumpy road,slippery road,narrows right,road work,traffic signals,"
    "pedestrians,children,bicycles,ice or snow,wild animals,end of limits,turn right,turn left,straight,"
    "straight or right,straight or left,keep right,keep left,roundabout,end of no passing,"
    "end of no passing by lorries".split(",")
)
LFW_MIN_IMAGES = 20


@dataclass(frozen=True)
class Dataset:
    """A named data set with its official split.

    Attributes:
        x_train, y_train, x_test, y_test: inputs as stored, (n, ...), and int64 labels, (n,).
        classes: names of the labels, in order.
        x_pretrain, y_pretrain: other samples, with labels of their own, that an extractor is trained on before; empty
            where there are none.
        feature_names: of the columns, for rows of features.
    """

    name: str
    x_train: NDArray[Any]
    y_train: NDArray[np.int64]
    x_test: NDArray[Any]
    y_test: NDArray[np.int64]
    classes: tuple[str, ...]
    x_pretrain: NDArray[Any] | None = None
    y_pretrain: NDArray[np.int64] | None = None
    feature_names: tuple[str, ...] = ()

    def subset(self, n_train: int | None, seed: int, *, n_pretrain: int = 0) -> "Dataset":
        """Return the same data set with ``n_train`` training samples drawn by ``seed`` (None: all that are left).

        Args:
            n_train: training samples.
            seed: decides which.
            n_pretrain: as many other training samples, drawn before, become the ones to pre-train on.
        """
        n = len(self.x_train)
        if n_train is not None and n_train < 1:
            raise InvalidInputError(f"'n_train' must be at least 1 (got {n_train}). Leave it out to take all samples.")
        if n_pretrain >= n:
            raise InvalidInputError(f"'n_pretrain' must leave a sample to train on (got {n_pretrain} of {n}).")
        if not n_pretrain and (n_train is None or n_train >= n):
            return self
        shuffled = numpy_generator(seed, f"subset/{self.name}").permutation(n)
        before, chosen = np.sort(shuffled[:n_pretrain]), np.sort(shuffled[n_pretrain:][:n_train])
        drawn = replace(self, x_train=self.x_train[chosen], y_train=self.y_train[chosen])
        if n_pretrain:
            drawn = replace(drawn, x_pretrain=self.x_train[before], y_pretrain=self.y_train[before])
        return drawn

    def mislabelled(self, share: float, seed: int) -> "Dataset":
        """Return the same data set with a share of the training labels wrong, as nobody planned it.

        Args:
            share: of the training samples, in [0, 1); each gets one of the other labels, all as likely.
            seed: decides which.
        """
        if not 0 <= share < 1:
            raise InvalidInputError(
                f"'wrong_labels' must be a fraction in [0, 1) (got {share}). Leave it out for none."
            )
        rng = numpy_generator(seed, f"wrong labels/{self.name}")
        wrong = rng.choice(len(self.y_train), round(share * len(self.y_train)), replace=False)
        y, n = self.y_train.copy(), len(self.classes)
        y[wrong] = (y[wrong] + rng.integers(1, n, len(wrong))) % n
        return replace(self, y_train=y)


def _digits() -> Dataset:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x = np.round(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    y = bunch.target.astype(np.int64)
    # No official split exists; a fixed fifth is held out.
    is_test = np.arange(len(x)) % 5 == 0
    return Dataset("digits", x[~is_test], y[~is_test], x[is_test], y[is_test], tuple("0123456789"))


def data_folders() -> list[Path]:
    """Return the folders searched for data sets: ``POISONTRACE_DATA`` if set, else ``data`` and ``../shared/data``."""
    named = os.environ.get("POISONTRACE_DATA")
    return [Path(named)] if named else [Path("data"), Path("../shared/data")]


def _find(name: str) -> Path | None:
    return next((folder / name for folder in data_folders() if (folder / name).is_file()), None)


def _need(name: str, content: str, source: str) -> Path:
    """Return the path of a file that has no download of its own.

    Raises:
        StoreError: if it is on disk nowhere.
    """
    if found := _find(name):
        return found
    raise StoreError(
        f"'dataset' must be on disk (got no {name}, {content}, in "
        f"{', '.join(str(folder) for folder in data_folders())}). Make it from {source}, put it into a folder and name "
        "that folder in POISONTRACE_DATA."
    )


def _cifar10() -> Dataset:
    if sheets := _find("cifar10.npz"):
        return _cifar10_sheets(sheets)
    archive = _find("cifar-10-binary.tar.gz") or _download(CIFAR10_URL, CIFAR10_MD5)
    return _cifar10_archive(archive)


def _download(url: str, md5: str) -> Path:
    import pooch  # only needed, and only allowed to touch the network, when a data set is not on disk

    url = os.environ.get("POISONTRACE_MIRROR", url.rsplit("/", 1)[0]).rstrip("/") + "/" + url.rsplit("/", 1)[1]
    pooch.get_logger().setLevel("WARNING")
    try:
        return Path(pooch.retrieve(url, known_hash=f"md5:{md5}", path=pooch.os_cache("poisontrace")))
    except (OSError, ValueError) as error:
        raise StoreError(
            f"'dataset' must be on disk or downloadable (got {error} from {url}). "
            "Put the file into a folder and name that folder in POISONTRACE_DATA."
        ) from error


def _cifar10_sheets(path: Path) -> Dataset:
    """Read CIFAR-10 stored as lossless 100x100 sheets of 32x32 tiles, one per official batch."""
    from PIL import Image

    sheets = (*(f"train_{batch}" for batch in range(5)), "test_0")
    arrays = read_npz(path, "dataset", required=("y_train", "y_test", *sheets))

    def decode(key: str) -> NDArray[np.uint8]:
        sheet = np.asarray(Image.open(io.BytesIO(arrays[key].tobytes())).convert("RGB"))
        return sheet.reshape(100, 32, 100, 32, 3).swapaxes(1, 2).reshape(-1, 32, 32, 3)

    try:
        *train, x_test = [decode(key) for key in sheets]
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise StoreError(f"'dataset' must be sheets of 100x100 tiles (got {error} in {path.name!r}).") from error
    y_train, y_test = (arrays[key].astype(np.int64) for key in ("y_train", "y_test"))
    return Dataset("cifar10", np.concatenate(train), y_train, x_test, y_test, CIFAR10_CLASSES)


def _cifar10_archive(path: Path) -> Dataset:
    """Read the official binary version: rows of one label byte and 3,072 pixel bytes in CHW order.

    Nothing is extracted to disk, so that names of members cannot lead anywhere.
    """
    wanted = (*(f"data_batch_{batch}.bin" for batch in range(1, 6)), "test_batch.bin")
    batches = {}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                name = Path(member.name).name
                # The bound keeps a small archive from growing into more than memory holds.
                if name in wanted and member.size <= 10_000 * 3073 and (stream := archive.extractfile(member)):
                    batches[name] = np.frombuffer(stream.read(), np.uint8).reshape(-1, 3073)
        if missing := [name for name in wanted if name not in batches]:
            raise ValueError(f"no readable {', '.join(missing)}")
    except (tarfile.TarError, OSError, EOFError, zlib.error, ValueError, KeyError) as error:
        raise StoreError(
            f"'dataset' must be the whole binary version of CIFAR-10 (got {error} in {str(path)!r}). "
            "Delete the file to have it downloaded again."
        ) from error

    def split(rows: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        return rows[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1).copy(), rows[:, 0].astype(np.int64)

    *train, test = (batches[name] for name in wanted)
    return Dataset("cifar10", *split(np.concatenate(train)), *split(test), CIFAR10_CLASSES)


def _cifar10n(name: str, labels: str) -> Dataset:
    """Read CIFAR-10 with training labels that people gave, mistakes included; the test labels are the official ones.

    J. Wei et al., *Learning with Noisy Labels Revisited: A Study Using Real-World Human Annotations*, ICLR 2022.
    """
    source = "https://github.com/UCSC-REAL/cifar-10-100n"
    path = _need("cifar10n_labels.npz", "label vectors of CIFAR-10N in the order of the official batches", source)
    clean, y = (
        read_npz(path, "dataset", required=("clean", labels))[key].astype(np.int64) for key in ("clean", labels)
    )
    dataset = _cifar10()
    if not np.array_equal(clean, dataset.y_train) or y.shape != clean.shape or not np.isin(y, range(10)).all():
        raise StoreError(
            f"'dataset' must be labels of the 50,000 training images (got others in {path.name!r}). Get the file again."
        )
    return replace(dataset, name=name, y_train=y)


@dataclass(frozen=True)
class _Rows:
    """Where a set of feature rows comes from: the file, and the public source of its contents."""

    file: str
    source: str


# Feature rows of programs and documents; the files hold numbers and names, nothing that could run.
MALWARE_ROWS = {
    "pe": _Rows("pe_header_20306.npz", "dataset_malwares.csv of GitHub jmathur011/Malware_Detection"),
    "clamp": _Rows("clamp_pe.npz", "the integrated set of GitHub urwithajit9/ClaMP"),
    "pdf": _Rows("pdf_malware.npz", "the four data/*.csv of GitHub srndic/mimicus"),
}
MALWARE_CLASSES = ("benign", "malware")


def signed_log1p(x: NDArray[Any]) -> NDArray[np.float32]:
    """Return sign(x) * log(1 + abs(x)) as float32: sizes and addresses reach 1e13, and -1 marks what is missing."""
    scaled: NDArray[np.float32] = (np.sign(x) * np.log1p(np.abs(x.astype(np.float64)))).astype(np.float32)
    return scaled


def _distinct(x: NDArray[np.float32], y: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the ascending indices of the first of each group of equal rows; groups with two labels are left out."""
    _, first, group = np.unique(x, axis=0, return_index=True, return_inverse=True)
    group = group.reshape(-1)  # NumPy 2.0 alone gives it a second axis
    has_benign, has_malware = (np.bincount(group, y == label) > 0 for label in (0, 1))
    return np.sort(first[has_benign != has_malware])


def _malware_rows(name: str) -> Dataset:
    """Read rows of features of benign and malicious files: distinct ones only, every fifth of them held out.

    Equal rows are counted as the model sees them, after the logarithm. Columns of one value throughout are left out.
    """
    rows = MALWARE_ROWS[name]
    path = _need(rows.file, f"arrays X, y (1 for malware) and feature_names of {name!r}", rows.source)
    arrays = read_npz(path, "dataset", required=("X", "y", "feature_names"))
    x, y, names = arrays["X"], arrays["y"], arrays["feature_names"]
    if x.ndim != 2 or y.shape != x.shape[:1] or names.shape != x.shape[1:] or not np.isin(y, (0, 1)).all():
        raise StoreError(
            f"'dataset' must hold X (n, d), y (n,) of 0 and 1 and feature_names (d,) (got {x.shape}, {y.shape} and "
            f"{names.shape} in {path.name!r}). Get the file again."
        )
    x, y = signed_log1p(x), y.astype(np.int64)
    varies = (x != x[:1]).any(0)
    kept = _distinct(x, y)
    x, y = x[kept][:, varies], y[kept]
    is_test = np.arange(len(x)) % 5 == 0
    return Dataset(
        *(name, x[~is_test], y[~is_test], x[is_test], y[is_test], MALWARE_CLASSES),
        feature_names=tuple(str(feature) for feature in names[varies]),
    )


@dataclass(frozen=True)
class _Grey:
    """Where a set of grey images of 28x28 comes from, and what its labels are called."""

    file: str
    source: str
    classes: tuple[str, ...]


GREY = {
    "mnist": _Grey("mnist.npz", "the files of http://yann.lecun.com/exdb/mnist", tuple("0123456789")),
    "fashion": _Grey(
        *("fashion_mnist.npz", "the files of https://github.com/zalandoresearch/fashion-mnist"),
        tuple("T-shirt,trouser,pullover,dress,coat,sandal,shirt,sneaker,bag,ankle boot".split(",")),
    ),
}


def _grey(name: str) -> Dataset:
    """Read MNIST or Fashion-MNIST stored as arrays, in the official order and split."""
    kind = GREY[name]
    keys = ("X_train", "y_train", "X_test", "y_test")
    path = _need(kind.file, f"arrays {', '.join(keys)} of {name!r}", kind.source)
    arrays = read_npz(path, "dataset", required=keys)
    x_train, y_train, x_test, y_test = (arrays[key] for key in keys)
    for x, y in ((x_train, y_train), (x_test, y_test)):
        if x.dtype != np.uint8 or x.shape != (len(y), 28, 28) or y.ndim != 1 or not np.isin(y, range(10)).all():
            raise StoreError(
                f"'dataset' must be uint8 images (n, 28, 28) and labels (n,) from 0 to 9 (got {x.shape} and {y.shape} "
                f"in {path.name!r}). Get the file again."
            )
    y_train, y_test = y_train.astype(np.int64), y_test.astype(np.int64)
    return Dataset(name, x_train[..., None], y_train, x_test[..., None], y_test, kind.classes)


def _gtsrb() -> Dataset:
    """Read GTSRB stored as sheets of 32x32 tiles, 100 a row, at most 10,000 a sheet, the last one padded.

    Training images come as tracks of about 30 near-identical frames; the official test images are of other tracks.
    """
    from PIL import Image

    path = _need("gtsrb32.npz", "German traffic signs", "https://benchmark.ini.rub.de/gtsrb_dataset.html")
    arrays = read_npz(path, "dataset", required=("y_train", "y_test", "train_0", "test_0"))

    def decode(split: str) -> NDArray[np.uint8]:
        n = len(arrays[f"y_{split}"])
        sheets = []
        for key in (f"{split}_{sheet}" for sheet in range(-(-n // 10_000))):
            sheet = np.asarray(Image.open(io.BytesIO(arrays[key].tobytes())).convert("RGB"))
            sheets.append(sheet.reshape(-1, 32, 100, 32, 3).swapaxes(1, 2).reshape(-1, 32, 32, 3))
        tiles = np.concatenate(sheets)[:n]
        if len(tiles) < n:
            raise ValueError(f"{len(tiles)} of {n} tiles of {split}")
        return tiles

    try:
        x_train, x_test = decode("train"), decode("test")
    except (OSError, ValueError, KeyError, Image.DecompressionBombError) as error:
        raise StoreError(f"'dataset' must be sheets 100 tiles wide (got {error} in {path.name!r}).") from error
    y_train, y_test = (arrays[key].astype(np.int64) for key in ("y_train", "y_test"))
    return Dataset("gtsrb", x_train, y_train, x_test, y_test, GTSRB_CLASSES)


def _lfw() -> Dataset:
    """Read aligned faces of 144x144 and reduce them to 48x48 by the mean of 3x3 pixels.

    No official split is for identification: people with at least ``LFW_MIN_IMAGES`` are the task, every fifth image of
    each is held out, and the people with fewer are what an extractor is trained on.
    """
    from PIL import Image

    path = _need("lfw144.npz", "aligned faces", "https://vis-www.cs.umass.edu/lfw (deep-funneled)")
    arrays = read_npz(path, "dataset", required=("data", "offsets", "y", "identities"))
    data, offsets, people = arrays["data"].tobytes(), arrays["offsets"].tolist(), arrays["y"].astype(np.int64)

    def face(content: bytes) -> NDArray[np.uint8]:
        image = Image.open(io.BytesIO(content)).convert("RGB")
        if image.size != (144, 144):
            raise ValueError(f"one of {image.width}x{image.height}")
        return np.asarray(image.reduce(3))

    try:
        faces = np.stack([face(data[start:end]) for start, end in pairwise(offsets)])
        if len(faces) != len(people):
            raise ValueError(f"{len(faces)} images and {len(people)} labels")
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise StoreError(f"'dataset' must be images of 144x144 (got {error} in {path.name!r}).") from error

    counts = np.bincount(people)
    is_task, is_test = counts[people] >= LFW_MIN_IMAGES, np.zeros(len(people), bool)
    number = np.empty_like(counts)  # of each person, among the task's or among the others
    for group in (counts >= LFW_MIN_IMAGES, counts < LFW_MIN_IMAGES):
        number[group] = np.arange(group.sum())
    for person in np.flatnonzero(counts >= LFW_MIN_IMAGES):
        is_test[np.flatnonzero(people == person)[::5]] = True
    is_train, y = is_task & ~is_test, number[people]
    names = arrays["identities"][counts >= LFW_MIN_IMAGES].tolist()
    return Dataset(
        *("lfw", faces[is_train], y[is_train], faces[is_test], y[is_test], tuple(map(str, names))),
        x_pretrain=faces[~is_task],
        y_pretrain=y[~is_task],
    )


DATASETS: dict[str, tuple[Callable[[], Dataset], str]] = {
    "digits": (_digits, "1,797 handwritten digits, 8x8 grey, 10 classes; embedded in scikit-learn"),
    "mnist": (partial(_grey, "mnist"), "63,000 handwritten digits, 28x28 grey, 10 classes"),
    "fashion": (partial(_grey, "fashion"), "70,000 pieces of clothing, 28x28 grey, 10 classes"),
    "cifar10": (_cifar10, "60,000 photographs, 32x32 colour, 10 classes"),
    "cifar10n": (
        partial(_cifar10n, "cifar10n", "random_1"),
        "CIFAR-10 as one person labelled it: 17 % of training labels wrong",
    ),
    "cifar10n-worse": (partial(_cifar10n, "cifar10n-worse", "worse"), "CIFAR-10 as the worst of three did: 40 % wrong"),
    "pe": (partial(_malware_rows, "pe"), "16,421 Windows programs, 49 header fields, benign or malware"),
    "clamp": (
        partial(_malware_rows, "clamp"),
        "5,174 Windows programs, 60 header and derived fields, benign or malware",
    ),
    "pdf": (partial(_malware_rows, "pdf"), "17,218 PDF documents, 130 features of structure, benign or malware"),
    "gtsrb": (_gtsrb, "51,839 German traffic signs, 32x32 colour, 43 classes"),
    "lfw": (_lfw, "3,023 aligned faces, 48x48 colour, 62 people, and 1,301 of 96 others to pre-train on"),
}


def load_dataset(name: str) -> Dataset:
    """Load a data set by its name in ``DATASETS``.

    Raises:
        InvalidInputError: if no data set has that name.
        StoreError: if its files are neither on disk nor downloadable, or are damaged.
    """
    if name not in DATASETS:
        raise InvalidInputError(f"'dataset' must be one of {', '.join(sorted(DATASETS))} (got {name!r}).")
    return DATASETS[name][0]()
