"""Logs: structured, with ids and never with tokens or pupils' words."""

from __future__ import annotations

import logging
import re
import traceback
from collections.abc import Iterator
from typing import Any, Final, Literal

import structlog

_SECRET: Final = re.compile(
    r"((?:token|engine_token|api[_-]?key)=|bearer[. ])[^&\s\"',\]]+", re.IGNORECASE
)


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """The logger of a module; log events are short phrases, with ids as keywords."""
    logger: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(name)
    return logger


def redact(text: str) -> str:
    """The text with whatever follows `token=`, `key=` or `bearer` blotted out."""
    return _SECRET.sub(r"\1***", text)


def places(exc_info: Any) -> str:
    """A traceback of places only: messages and values may hold a token or a pupil's words."""
    return "\n".join(_places(exc_info[1]))


def _places(error: BaseException) -> Iterator[str]:
    for frame, line in traceback.walk_tb(error.__traceback__):
        code = frame.f_code
        yield f"  {code.co_filename}:{line} in {code.co_qualname}"
    yield f"{type(error).__module__}.{type(error).__qualname__}"
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _places(inner)
    elif error.__cause__ is not None:
        yield "caused by"
        yield from _places(error.__cause__)


class RedactingFormatter(structlog.stdlib.ProcessorFormatter):
    """Blots secrets out of the finished line, whoever wrote it: uvicorn logs whole URLs."""

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


def configure(level: str, style: Literal["console", "json"]) -> None:
    """Send every library's records and ours to standard error in one format."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer = (
        structlog.processors.JSONRenderer(ensure_ascii=False)
        if style == "json"
        else structlog.dev.ConsoleRenderer(colors=False, pad_event_to=0)
    )
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler()
    handler.setFormatter(
        RedactingFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.ExceptionRenderer(places),
                renderer,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    _quieten()


def _quieten() -> None:
    """Leave what other libraries say to the root handler, and only what matters."""
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    # These repeat what our own events say; at DEBUG some log every frame, pupils' words included.
    for name in ("websockets", "uvicorn.error", "uvicorn.access", "httpx2"):
        logging.getLogger(name).setLevel(logging.WARNING)
