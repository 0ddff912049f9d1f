"""Checkpoints on the Hugging Face Hub, by `hf://OWNER/NAME` or `hf://OWNER/NAME@REVISION`.

Files are downloaded once, to the Hub's cache on this machine (HF_HOME). huggingface_hub reads HF_TOKEN and HF_ENDPOINT.
It is imported only for such names.
"""

import re
from pathlib import Path

from outrider.workers.types.errors import CheckpointError

PREFIX = "hf://"
_NAME = re.compile(r"hf://(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
_SMALL = ["*.json", "*.jinja"]  # configuration, tokenizer, templates, index of the weights
_WEIGHTS = ["*.safetensors"]


def is_on_hub(model: str) -> bool:
    return model.startswith(PREFIX)


def fetch(model: str, *, weights: bool = True) -> Path:
    """Downloads the checkpoint (without `weights`, its small files only). Returns its directory on this machine.

    Raises CheckpointError if the name is wrong, the package is missing, or the Hub refuses or cannot be reached.
    """
    repository, revision = _parts(model)
    try:
        from huggingface_hub import errors, snapshot_download
    except ImportError as error:
        raise CheckpointError(
            f"{model} needs huggingface_hub, which is not installed: pip install 'outrider[huggingface]'"
        ) from error
    patterns = [*_SMALL, *_WEIGHTS] if weights else _SMALL
    try:
        folder = Path(snapshot_download(repository, revision=revision, allow_patterns=patterns))
    except errors.GatedRepoError as error:
        raise CheckpointError(f"{model}: access to it must be granted to the owner of the token in HF_TOKEN") from error
    except errors.RepositoryNotFoundError as error:
        raise CheckpointError(f"{model}: no such repository, or a private one that HF_TOKEN does not open") from error
    except errors.RevisionNotFoundError as error:
        raise CheckpointError(f"{model}: the repository has no such revision") from error
    except errors.LocalEntryNotFoundError as error:
        raise CheckpointError(f"{model}: the Hub cannot be reached, and the cache does not have it") from error
    except (errors.HfHubHTTPError, OSError) as error:
        raise CheckpointError(f"{model} cannot be fetched: {error}") from error
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{model} is no checkpoint: it has no config.json")
    return folder


def pinned(model: str, folder: Path) -> str:
    """The name of the checkpoint in `folder` with its commit, so that other machines fetch the same one."""
    return f"{PREFIX}{_parts(model)[0]}@{folder.name}"


def name_of(model: str) -> str:
    """NAME of hf://OWNER/NAME."""
    return _parts(model)[0].partition("/")[2]


def _parts(model: str) -> tuple[str, str | None]:
    found = _NAME.fullmatch(model)
    if found is None:
        raise CheckpointError(f"model must be hf://OWNER/NAME or hf://OWNER/NAME@REVISION, got {model!r}")
    return found["repository"], found["revision"]
