"""Who holds runtimes for longer than they use them, as `runtimes` sees them."""

from __future__ import annotations

from typing import Protocol

from gpuserver.providers import RuntimeKey


class Lessees(Protocol):
    """The engines of tutors, which are kept while nobody talks to them."""

    def spare(self, key: RuntimeKey) -> int:
        """How many of its leases nobody needs at present."""
        ...

    def active(self, key: RuntimeKey) -> bool:
        """Whether somebody uses it at present."""
        ...

    async def give_back(self, key: RuntimeKey) -> None:
        """Release the leases on it that nobody needs."""
        ...


class Nobody:
    """`Lessees` that keep nothing."""

    def spare(self, key: RuntimeKey) -> int:
        return 0

    def active(self, key: RuntimeKey) -> bool:
        return False

    async def give_back(self, key: RuntimeKey) -> None:
        pass
