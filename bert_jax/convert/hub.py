"""Models by their id on the Hugging Face hub, through huggingface_hub: its cache, its tokens, its offline mode."""

import re
from pathlib import Path

from bert_jax.errors import BertJaxError

# Most models lie on the hub several times over: in the formats of other programs, in half precision, with old training states.
# One copy of the weights is asked for. Early sentence-transformers kept the encoder in 0_Transformer.
_SMALL = ("*.json", "*.txt", "*.model")
_SAFETENSORS = ("model.safetensors", "model-*-of-*.safetensors", "0_Transformer/model.safetensors")
_PICKLES = ("pytorch_model.bin", "pytorch_model-*-of-*.bin", "0_Transformer/pytorch_model.bin")
_OF_OTHERS = ["onnx/*", "openvino/*", "coreml/*"]  # with copies of large tokenizer files

_ID = re.compile(r"[\w.-]+(/[\w.-]+)?(@[\w./-]+)?")


def download(name: str) -> Path:
    """The folder with the files of a model, from the cache where they are there.

    Args:
      name: ``org/name`` or ``name``; ``@revision`` may follow.

    Raises:
      BertJaxError: no such file or id, no huggingface_hub, no access, no network and not in the cache, or a download that
        broke off; the next call asks only for the files that are missing.
    """
    if not _ID.fullmatch(name) or name.startswith("."):
        raise BertJaxError(f"{name}: there is no such file or directory, and it is no hub id (org/name)")
    try:
        import huggingface_hub
        from huggingface_hub import constants, errors
    except ImportError:
        raise BertJaxError(
            f"{name}: there is no such file or directory; to look for it on the hub: pip install 'bert_jax[hub]'"
        ) from None
    repository, _, revision = name.partition("@")
    try:
        return _snapshot(huggingface_hub, repository, revision or None)
    except errors.HFValidationError as error:
        raise BertJaxError(f"{name}: there is no such file or directory, and it is no hub id (org/name)") from error
    except errors.GatedRepoError as error:
        raise BertJaxError(f"{name}: accept its conditions on its page of the hub, then log in (hf auth login)") from error
    except errors.RepositoryNotFoundError as error:
        raise BertJaxError(
            f"{name}: there is no such directory here and no such model on the hub; if it is private: hf auth login"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise BertJaxError(f"{name}: the model is on the hub, its revision {revision} is not") from error
    except errors.LocalEntryNotFoundError as error:
        offline = "offline mode, HF_HUB_OFFLINE, and not wholly in the cache"
        reason = offline if constants.HF_HUB_OFFLINE else _reason(error.__cause__ or error)
        raise BertJaxError(f"{name}: there is no such directory here, and the hub could not be asked ({reason})") from error
    except errors.HfHubHTTPError as error:
        hint = ": log in with a token that may read it (hf auth login)" if error.response.status_code in (401, 403) else ""
        raise BertJaxError(f"{name}: the hub answers {error.response.status_code}{hint}") from error
    except Exception as error:  # a cut connection, a full disk: whatever the layers below raise
        raise BertJaxError(
            f"{name}: the download broke off ({_reason(error)}); files that are whole were kept, try again"
        ) from error


def _snapshot(huggingface_hub, repository: str, revision: str | None) -> Path:
    """Settings and safetensors; the pickle only of models that have nothing else."""

    def fetch(weights: tuple[str, ...]) -> Path:
        return Path(huggingface_hub.snapshot_download(
            repository, revision=revision, allow_patterns=[*_SMALL, *weights], ignore_patterns=_OF_OTHERS
        ))

    folder = fetch(_SAFETENSORS)
    safe = any(True for pattern in _SAFETENSORS for _ in folder.glob(pattern))
    if not safe and any(folder.rglob("config.json")):
        folder = fetch(_PICKLES)
    return folder


def _reason(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:160]
