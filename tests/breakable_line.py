"""A line to a server that can be cut and mended: a TCP proxy with a thread of its own."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, Final

_AT_ONCE: Final = struct.pack("ii", 1, 0)
"""SO_LINGER: what is closed is reset, and what was on its way is lost."""


class BreakableLine:
    """Carries connections from its own port to a server's port, both of the loopback."""

    def __init__(self, server_port: int) -> None:
        self.port = 0
        self.carried = 0
        """Connections so far."""
        self._server_port = server_port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="line")
        self._listening: asyncio.Server | None = None
        self._ends: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def mend(self) -> None:
        """Carry connections again, on the same port as before."""
        self._do(self._listen())

    def cut(self) -> None:
        """Reset all connections at both ends, and refuse new ones."""
        self._do(self._reset())

    def _do(self, act: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(act, self._loop).result(timeout=10)

    async def _listen(self) -> None:
        self._listening = await asyncio.start_server(self._carry, "127.0.0.1", self.port)
        self.port = self._listening.sockets[0].getsockname()[1]

    async def _reset(self) -> None:
        if self._listening is not None:
            self._listening.close()
        self._listening = None
        for end in self._ends:
            end.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
            end.transport.abort()
        while self._ends:
            await asyncio.sleep(0.01)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.carried += 1
        ends = {writer}
        self._ends.add(writer)
        try:
            answers, asks = await asyncio.open_connection("127.0.0.1", self._server_port)
            ends.add(asks)
            self._ends.add(asks)
            async with asyncio.TaskGroup() as group:
                group.create_task(_pump(reader, asks))
                group.create_task(_pump(answers, writer))
        except* OSError:
            pass  # The line was cut, or the server is gone: either way it is over.
        finally:
            for end in ends:
                end.transport.abort()
            self._ends -= ends

    def start(self) -> None:
        self._thread.start()
        self.mend()

    def close(self) -> None:
        self.cut()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


async def _pump(source: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
    while data := await source.read(65536):
        to.write(data)
        await to.drain()
    to.close()


@contextmanager
def breakable_line(server_port: int) -> Iterator[BreakableLine]:
    """A line that carries from the start."""
    line = BreakableLine(server_port)
    line.start()
    try:
        yield line
    finally:
        line.close()
