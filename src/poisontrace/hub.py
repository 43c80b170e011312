"""One file of a data set on the Hugging Face hub, at a revision that cannot change: a case must name what it examined.

The file is data: Parquet or CSV, read here. Loading scripts are never fetched, and nothing of the hub is run.
"""

import os
import re
from pathlib import Path

from poisontrace._errors import InvalidInputError, StoreError

SCHEME = "hf://datasets/"
ADDRESS = re.compile(r"hf://datasets/(?P<set>[\w.-]+(?:/[\w.-]+)?)@(?P<revision>[0-9a-f]{40})/(?P<file>[\w./-]+)")
READABLE = (".parquet", ".csv", ".tsv")
FORM = f"{SCHEME}OWNER/NAME@REVISION/FILE with the 40 digits of a commit and a .parquet or .csv file"


def is_address(spec: str) -> bool:
    """Return whether this names something on the hub."""
    return spec.startswith("hf:")


def download(spec: str, name: str) -> Path:
    """Return the file on this machine, after fetching it unless that was done before.

    Args:
        spec: such as ``hf://datasets/owner/name@<commit>/data/train.parquet``.
        name: the argument's name, for messages.

    Raises:
        InvalidInputError: if the address has another form, or there is no such file.
        StoreError: if the hub does not answer.
    """
    found = ADDRESS.fullmatch(spec)
    if found is None or ".." in found["file"].split("/") or not found["file"].lower().endswith(READABLE):
        raise InvalidInputError(
            f"'{name}' must be {FORM} (got {spec!r}). A branch may change after the case is closed; the hub shows the "
            "commit under Files and versions."
        )
    try:
        from huggingface_hub import errors, hf_hub_download
    except ImportError as error:
        raise InvalidInputError(
            f"'{name}' must be on the disk where huggingface_hub is not installed (got {spec!r}). Install it: "
            "pip install 'poisontrace[data]'."
        ) from error
    try:
        path = hf_hub_download(
            *(found["set"], found["file"]),
            repo_type="dataset",
            revision=found["revision"],
            endpoint=os.environ.get("HF_ENDPOINT"),  # the library's own variable for a mirror, which it reads only once
        )
    except (errors.LocalEntryNotFoundError, OSError) as error:
        if isinstance(error, errors.RemoteEntryNotFoundError | errors.RepositoryNotFoundError):
            raise InvalidInputError(
                f"'{name}' must be there on the hub (got no {found['file']!r} in {found['set']!r} at that revision). "
                "Check the address; a set that is not public needs a token, see hf auth login."
            ) from error
        raise StoreError(
            f"'{name}' could not be fetched from the hub (got {str(error).splitlines()[0]}). Try again, or save the "
            "file and pass its path."
        ) from error
    return Path(path)
