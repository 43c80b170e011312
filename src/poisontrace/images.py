"""Images on disk or in a table as a training set: read when they are needed, in a fixed order.

Files come from outside and may be hostile. Only common formats are opened, none that runs a program; images that
unpack to more than Pillow's limit, links and files that are not what their names say are refused.
"""

import hashlib
import io
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from poisontrace._errors import InvalidInputError
from poisontrace.data import ArraySet, batches_of, digest_of, folders_at, number_labels, to_inputs

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}
MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
EIGHT_BIT = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"}


class ImageSet:
    """A training set of images of one size, in files or as the bytes of such files.

    Attributes:
        ids: the name of each image.
        classes: names of the labels.
        sources: where each came from, if that is known.
        shape: (height, width, channels) of every image: one channel if all are grey, else three.
    """

    columns: tuple[str, ...] | None = None

    def __init__(
        self,
        sources: Sequence[Path | bytes],
        y: NDArray[np.int64],
        ids: Sequence[str],
        classes: Sequence[str] | None,
        name: str,
        n_channels: int | None = None,
        sources_of: Sequence[str] | None = None,
    ) -> None:
        """Look at the header of each image.

        Args:
            sources: files, or their bytes.
            y: int64 (n,).
            ids: names (n,).
            classes: names of the labels.
            name: the argument's name, for messages.
            n_channels: what the images are converted to; None decides.
            sources_of: where each image came from (n,).

        Raises:
            InvalidInputError: if one cannot be read or is of another size than the first.
        """
        self._sources, self._name, self.y = sources, name, y
        self.ids, self.classes = tuple(ids), None if classes is None else tuple(classes)
        self.sources = None if sources_of is None else tuple(sources_of)
        is_grey = True
        size = (0, 0)
        for row in range(len(sources)):
            with _opened(sources[row], name, ids[row]) as image:
                size = size if row else image.size
                is_grey = is_grey and image.mode in ("1", "L")
                if image.size != size:
                    raise InvalidInputError(
                        f"'{name}' must hold images of one size (got {size[0]}x{size[1]} pixels in {ids[0]!r} and "
                        f"{image.size[0]}x{image.size[1]} in {ids[row]!r}). Scale them as the model's inputs were, or "
                        f"pass your own data set as --{name} file.py:factory."
                    )
        self.shape = (size[1], size[0], n_channels or (1 if is_grey else 3))

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self._sources)

    @property
    def form(self) -> str:
        """What one sample is; events must be the same."""
        return f"uint8 arrays of shape {self.shape}"

    def pixels(self, rows: Sequence[int] | NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return some images, uint8 (len(rows), height, width, channels)."""
        x = np.empty((len(rows), *self.shape), np.uint8)
        for place, row in enumerate(rows):
            with _opened(self._sources[int(row)], self._name, self.ids[int(row)], is_whole=True) as image:
                x[place] = np.asarray(image.convert(MODES[self.shape[2]])).reshape(self.shape)
        return x

    def batches(
        self, batch_size: int, start: int = 0, stop: int | None = None
    ) -> Iterator[tuple[Tensor, NDArray[np.int64]]]:
        """Yield inputs and labels of a run of samples in order."""
        for rows in batches_of(len(self), batch_size, start, stop):
            yield to_inputs(self.pixels(range(rows.start, rows.stop))), self.y[rows]

    def inputs(self, indices: NDArray[np.int64]) -> Tensor:
        """Return the inputs of some samples."""
        return to_inputs(self.pixels(indices))

    def fingerprint(self) -> str:
        """Return the SHA-256 of the images as they are stored, of their form and labels."""
        digest = hashlib.sha256(digest_of(self.y).encode())
        for source in self._sources:
            content = source if isinstance(source, bytes) else source.read_bytes()
            digest.update(hashlib.sha256(content).digest())
        digest.update(repr(self.shape).encode())
        return digest.hexdigest()


class _opened:
    """The image of a source inside the block; whatever is wrong with it becomes one sentence."""

    def __init__(self, source: Path | bytes, name: str, where: str, *, is_whole: bool = False) -> None:
        self._source, self._name, self._where, self._is_whole = source, name, where, is_whole

    def __enter__(self) -> Any:
        from PIL import Image, UnidentifiedImageError

        source = io.BytesIO(self._source) if isinstance(self._source, bytes) else self._source
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                self._image = Image.open(source, formats=FORMATS)
                if self._image.mode not in EIGHT_BIT:
                    raise ValueError(f"{self._image.mode!r} pixels, not 8 bits a channel")
                if self._is_whole:
                    self._image.load()
        except Exception as error:  # bytes from outside may raise anything
            self.__exit__()
            reason = "an image of another format" if isinstance(error, UnidentifiedImageError) else error
            raise InvalidInputError(
                f"'{self._name}' must be readable images of 8 bits a channel (got {self._where!r}: {reason}). "
                "Pass PNG or JPEG."
            ) from error
        return self._image

    def __exit__(self, *_: object) -> None:
        if hasattr(self, "_image"):
            self._image.close()


def read_folder(
    folder: Path, name: str, classes: Sequence[str] | None = None, n_channels: int | None = None
) -> ImageSet:
    """Read a folder with one sub-folder a class; classes and files are sorted by name.

    Args:
        folder: holds ``class/.../image.png``; ids are these paths, and a folder below the class is the source.
        name: the argument's name, for messages.
        classes: names of the sub-folders in the order of the model's outputs; None sorts them, as torchvision does.
        n_channels: what the images are converted to; None decides.

    Raises:
        InvalidInputError: if there is no image, an image outside of a class, a link, or a folder that cannot be read.
    """
    files, names = list_images(folder, name)
    labels = np.array([file.split("/")[0] for file in files])
    y, known = number_labels(labels, name, names if classes is None else classes)
    return ImageSet([folder / file for file in files], y, files, known, name, n_channels, folders_at(files, 1))


def list_images(folder: Path, name: str) -> tuple[list[str], list[str]]:
    """Return the images of a folder with one sub-folder a class, as paths in it, and the classes; both sorted.

    Raises:
        InvalidInputError: if there is no image, an image outside of a class, a link, or a folder that cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise InvalidInputError(
            f"'{name}' must hold folders that can be read (got {error}). Allow it: chmod -R u+rX."
        ) from error

    files: list[str] = []
    names: set[str] = set()
    for where, folders, inside in os.walk(folder, onerror=refuse):
        folders[:] = sorted(entry for entry in folders if not entry.startswith("."))
        at = Path(where).relative_to(folder)
        for entry in (*folders, *inside):
            path = Path(where) / entry
            if path.is_symlink() or not (path.is_dir() or path.is_file()):  # a pipe would be waited for
                raise InvalidInputError(
                    f"'{name}' must hold plain files and folders (got a link or device, {str(at / entry)!r}). "
                    "Copy what a link leads to: cp -rL."
                )
        if where == str(folder):
            names = set(folders)
        files += [
            (at / entry).as_posix()
            for entry in inside
            if Path(entry).suffix.lower() in SUFFIXES and not entry.startswith(".")
        ]
    files.sort()
    stray = next((file for file in files if "/" not in file), None)
    if stray or not files:
        raise InvalidInputError(
            f"'{name}' must hold one folder a class with images in it (got "
            f"{f'{stray!r} outside of a class' if stray else f'no image in {str(folder)!r}'}). Put photo.png "
            "with label truck into truck/photo.png."
        )
    return files, sorted(names)


def read_image(path: Path, label: int, like: Any) -> ArraySet:
    """Read one image as an event of the form of a training set of images.

    Raises:
        InvalidInputError: if the training set holds no images, or the file is not an image of their size.
    """
    shape = like.shape if isinstance(like, ImageSet) else like.x.shape[1:] if _has_pixels(like) else None
    if shape is None:
        raise InvalidInputError(
            f"'event' must be used with uint8 images in 'data' (got {like.form}). "
            "Pass the event in a file of the form of 'data' with --events."
        )
    height, width, n_channels = shape
    event = ImageSet([path], np.array([label], np.int64), [path.name], None, "event", n_channels)
    if event.shape[:2] != (height, width):
        raise InvalidInputError(
            f"'event' must be an image of {width}x{height} pixels, as those in 'data' (got "
            f"{event.shape[1]}x{event.shape[0]}). Crop or scale it as the deployed model's input was."
        )
    return ArraySet(event.pixels([0]), event.y)


def _has_pixels(samples: Any) -> bool:
    return isinstance(samples, ArraySet) and samples.x.dtype == np.uint8
