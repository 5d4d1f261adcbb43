"""Voices by Coqui's own names, such as `tts_models/en/ljspeech/vits`: where their files are."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import httpx2

from gpuserver.errors import ProviderUnavailable
from gpuserver.providers.weights import hub
from gpuserver.providers.weights.offers import Offer, RemoteFile

_SECONDS: Final = 20.0
_CATALOGUE: Final = ".models.json"


def look_up(name: str) -> Offer:
    """A voice of the catalogue in Coqui's library. Blocking. Raises ProviderUnavailable."""
    found = entry(name)
    licence, must_agree = str(found.get("license") or ""), bool(found.get("tos_required"))
    if "repo_id" in found:
        offer = hub.repository(
            found["repo_id"], allow=found.get("allow"), ignore=found.get("ignore") or ()
        )
        return Offer(
            offer.revision, offer.files, offer.headers, licence=licence, must_agree=must_agree
        )
    file, revision = _released(str(found["github_rls_url"]))
    return Offer(revision, (file,), archive=True, licence=licence, must_agree=must_agree)


def entry(name: str) -> Mapping[str, Any]:
    """What the catalogue says of a voice. Raises ProviderUnavailable; ImportError without it."""
    # Only looked for: importing the library takes seconds and brings torch.
    library = importlib.util.find_spec("TTS")
    if library is None or library.origin is None:
        raise ImportError("No module named 'TTS'")
    text = (Path(library.origin).parent / _CATALOGUE).read_text(encoding="utf-8")
    catalogue: Any = json.loads(text)
    found = catalogue
    for part in name.split("/"):
        found = found.get(part, {})
    if "repo_id" not in found and not isinstance(found.get("github_rls_url"), str):
        languages = ", ".join(sorted(catalogue["tts_models"]))
        raise ProviderUnavailable(
            problem=f"Coqui's catalogue has no voice {name!r}.",
            fix=f"give tts_models/LANGUAGE/DATA/MODEL with a language of: {languages}.",
        )
    voice: Mapping[str, Any] = found
    return voice


def _released(url: str) -> tuple[RemoteFile, str]:
    """A released ZIP and what tells its version."""
    try:
        answer = httpx2.head(url, follow_redirects=True, timeout=_SECONDS)
        answer.raise_for_status()
        size = int(answer.headers["content-length"])
    except (httpx2.HTTPError, KeyError, ValueError) as error:
        raise ProviderUnavailable(
            problem=f"The voice's release can't be had from {url} ({type(error).__name__}).",
            fix="check the network, or name a folder that holds the voice.",
        ) from error
    return RemoteFile("voice.zip", url, size), f"{url} {answer.headers.get('etag', size)}"
