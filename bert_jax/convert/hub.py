"""Models by their id on the Hugging Face hub, through huggingface_hub: its cache, its tokens, its offline mode."""

import re
from pathlib import Path

from bert_jax.errors import BertJaxError

# Weights in one format only: the hub keeps several copies of most models.
_SMALL = ("*.json", "*.txt", "*.model", "*/config.json")
_ID = re.compile(r"[\w.-]+(/[\w.-]+)?(@[\w./-]+)?")


def download(name: str) -> Path:
    """The folder with the files of a model, from the cache where they are there.

    Args:
      name: ``org/name`` or ``name``; ``@revision`` may follow.

    Raises:
      BertJaxError: no such file or id, no huggingface_hub, no network and not in the cache, or no weights that are read.
    """
    if not _ID.fullmatch(name) or name.startswith("."):
        raise BertJaxError(f"{name}: there is no such file or directory, and it is no hub id (org/name)")
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError:
        raise BertJaxError(
            f"{name}: there is no such file or directory; to look for it on the hub: pip install 'bert_jax[hub]'"
        ) from None
    repository, _, revision = name.partition("@")
    try:
        folder = _snapshot(huggingface_hub, repository, revision or None)
    except errors.RepositoryNotFoundError:
        raise BertJaxError(f"{name}: there is no such directory here and no such model on the hub (or it is private)") from None
    except errors.RevisionNotFoundError:
        raise BertJaxError(f"{name}: the model is on the hub, its revision {revision} is not") from None
    except errors.HFValidationError as error:
        raise BertJaxError(f"{name}: there is no such file or directory, and it is no hub id (org/name)") from error
    except Exception as error:  # no network, offline mode, a broken download: whatever the layers below raise
        reason = " ".join(str(error).split())[:160]
        raise BertJaxError(
            f"{name}: there is no such directory here, and the hub could not be asked ({type(error).__name__}: {reason})"
        ) from error
    return Path(folder)


def _snapshot(huggingface_hub, repository: str, revision: str | None) -> str:
    """Settings and safetensors; the pickle only of models that have nothing else."""
    patterns = [*_SMALL, "model*.safetensors"]
    folder = huggingface_hub.snapshot_download(repository, revision=revision, allow_patterns=patterns)
    if not list(Path(folder).glob("model*.safetensors")) and (Path(folder) / "config.json").is_file():
        folder = huggingface_hub.snapshot_download(
            repository, revision=revision, allow_patterns=[*_SMALL, "pytorch_model*.bin"]
        )
    return folder
