"""Fetches a released checkpoint from the model hub and imports it, recording what was fetched."""

from __future__ import annotations

from dataclasses import replace
from hashlib import file_digest
from pathlib import Path

from viscera.errors import InputError
from viscera.model.import_released import import_released
from viscera.model.universal import UniversalModel


def pull_released(repository: str, filename: str, *, revision: str = "main", name: str | None = None) -> UniversalModel:
    """The model in `filename` of a hub repository, with the commit and the file's sha256 in its `source`.

    Raises InputError at once, with the manual way out, if the hub cannot be reached or has no such file.
    """
    path, commit = _download(repository, filename, revision)
    with path.open("rb") as file:
        digest = file_digest(file, "sha256").hexdigest()
    model = import_released(path, name=name)
    model.config = replace(model.config, source=f"{repository}/{filename}, revision {commit}, sha256 {digest}")
    return model


def _download(repository: str, filename: str, revision: str) -> tuple[Path, str]:
    """The file in the hub's local cache (fetched if it is not there) and the commit it belongs to."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    way_out = (
        f"Download {filename} from the repository {repository} of the hub by hand and bring it in with: "
        f"viscera weights import {filename}"
    )
    try:
        # Asked first, because it answers at once where there is no network; the download itself would try for long.
        metadata = get_hf_file_metadata(hf_hub_url(repository, filename, revision=revision), timeout=10)
        commit = metadata.commit_hash or revision
        path = Path(hf_hub_download(repository, filename, revision=commit))
    except LocalEntryNotFoundError as error:
        raise InputError(f"The hub cannot be reached. {way_out}") from error
    except HfHubHTTPError as error:
        raise InputError(f"The hub refused {repository}/{filename} at {revision!r} ({error}). {way_out}") from error
    except Exception as error:  # what the hub's HTTP client raises without a network differs between its versions
        raise InputError(f"The hub cannot be reached ({type(error).__name__}: {error}). {way_out}") from error
    return path, commit
