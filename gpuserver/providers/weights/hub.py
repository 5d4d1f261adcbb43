"""The Hugging Face hub: which files a model has there, and how large they are."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

import httpx2
from huggingface_hub import HfApi, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.hf_api import ModelInfo
from huggingface_hub.utils import build_hf_headers

from gpuserver.errors import ProviderUnavailable
from gpuserver.providers.weights.offers import Offer, RemoteFile, check_paths, filtered, wanted

_SECONDS: Final = 20.0
# Sizes of Whisper, as `faster-whisper` names them, and the repositories that hold them.
WHISPER: Final[Mapping[str, str]] = {
    **{
        size: f"Systran/faster-whisper-{size}"
        for size in (
            *("tiny", "tiny.en", "base", "base.en", "small", "small.en", "medium", "medium.en"),
            *("large-v1", "large-v2", "large-v3"),
        )
    },
    **{
        f"distil-{size}": f"Systran/faster-distil-whisper-{size}"
        for size in ("small.en", "medium.en", "large-v2", "large-v3")
    },
    "distil-large-v3.5": "distil-whisper/distil-large-v3.5-ct2",
    "large": "Systran/faster-whisper-large-v3",
    "large-v3-turbo": "mobiuslabsgmbh/faster-whisper-large-v3-turbo",
    "turbo": "mobiuslabsgmbh/faster-whisper-large-v3-turbo",
}
_WHISPER_FILES: Final = (
    *("config.json", "preprocessor_config.json", "tokenizer.json", "vocabulary.*", "model.bin"),
)


def look_up(name: str) -> Offer:
    """A model by its hub name, or by a size of Whisper. Blocking. Raises ProviderUnavailable."""
    if name in WHISPER:
        return repository(WHISPER[name], allow=_WHISPER_FILES)
    if "/" not in name:
        raise ProviderUnavailable(
            problem=f"There is no model named {name!r}.",
            fix=f"give a hub name such as Qwen/Qwen3-8B, or one of: {', '.join(WHISPER)}.",
        )
    return repository(name)


def repository(
    repo: str, allow: Collection[str] | None = None, ignore: Collection[str] = ()
) -> Offer:
    """A repository's files: those of the patterns, or without any those that a model needs.

    Blocking. Raises ProviderUnavailable.
    """
    info = _info(repo)
    sizes = {file.rfilename: file for file in info.siblings or []}
    if allow is None and not ignore:
        chosen = wanted(sizes)
    else:
        chosen = filtered(sizes, allow, ignore)
        check_paths(chosen)
    revision = info.sha or ""
    files = tuple(
        RemoteFile(
            path,
            hf_hub_url(repo, path, revision=revision),
            sizes[path].size or 0,
            lfs.sha256 if (lfs := sizes[path].lfs) is not None else "",
        )
        for path in sorted(chosen)
    )
    return Offer(revision, files, headers=build_hf_headers())


def _info(repo: str) -> ModelInfo:
    try:
        return HfApi().model_info(repo, files_metadata=True, timeout=_SECONDS)
    except GatedRepoError as error:
        raise ProviderUnavailable(
            problem=f"The model {repo!r} is given only to those who agree to its licence.",
            fix="agree on its page at the hub, then set HF_TOKEN to a token of that account.",
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise ProviderUnavailable(
            problem=f"The hub has no model {repo!r} that may be read from here.",
            fix="check its name; a private one needs HF_TOKEN.",
        ) from error
    except OfflineModeIsEnabled as error:
        raise ProviderUnavailable(
            problem=f"The model {repo!r} is not here, and HF_HUB_OFFLINE forbids asking the hub.",
            fix="unset HF_HUB_OFFLINE, or name a folder.",
        ) from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        raise ProviderUnavailable(
            problem=f"The hub answers {status} when asked for {repo!r}.", fix="try again later."
        ) from error
    except httpx2.TransportError as error:
        raise ProviderUnavailable(
            problem=f"The hub can't be reached to fetch {repo!r} ({type(error).__name__}).",
            fix="check the network, or HF_ENDPOINT; or name a folder that holds the model.",
        ) from error
    except (ValueError, LookupError, TypeError) as error:
        raise ProviderUnavailable(
            problem=f"What answers in the hub's place is no hub, when asked for {repo!r}.",
            fix="check HF_ENDPOINT, and whether the network asks you to log in or has a proxy.",
        ) from error
