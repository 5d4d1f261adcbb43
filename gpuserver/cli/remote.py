"""The management API of a running server, for commands: a refusal is the server's own sentence."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import IO, Annotated, Any, Final, Self

import httpx2
import typer

from gpuserver import background, config
from gpuserver.cli.terminal import notes

Url = Annotated[str, typer.Option(help="Base address of the server; default: this one.")]
Key = Annotated[str, typer.Option(help="Management key; default: MANAGEMENT_API_KEY.")]

_SECONDS: Final = 10.0
_PATIENT: Final = httpx2.Timeout(_SECONDS, read=120, write=120)
"""For files: the server may be busy writing them, and the line slow."""
_EVENTS: Final = httpx2.Timeout(_SECONDS, read=60)
"""Something comes every 15 seconds, if only to say that the line holds."""


class Refused(Exception):
    """The server did not do what it was asked for; the message is a sentence for people.

    `code` is the server's own, empty where there is none.
    """

    def __init__(self, sentence: str, code: str = "") -> None:
        super().__init__(sentence)
        self.code = code


def server(url: str, key: str) -> Remote:
    """The server that the options of a command name. Raises Refused."""
    settings, _ = config.load()
    return Remote(url or background.address(settings), key or settings.management_api_key)


@contextmanager
def talking(url: str, key: str) -> Iterator[Remote]:
    """That server; its refusal ends the command with its sentence."""
    try:
        with server(url, key) as remote:
            yield remote
    except Refused as error:
        notes.print(f"gpuserver: {error}", style="red", markup=False, soft_wrap=True)
        raise typer.Exit(1) from error


class Remote:
    """One server. A context manager."""

    def __init__(self, url: str, key: str = "") -> None:
        """Raises Refused for an address that makes no sense."""
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._url = url
        try:
            self._http = httpx2.Client(
                base_url=url, headers=headers, timeout=_SECONDS, trust_env=False
            )
        except (httpx2.InvalidURL, UnicodeEncodeError) as error:
            raise Refused(f"The address {url} or the key can't be used: {error}.") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._http.close()

    def get(self, path: str) -> dict[str, Any]:
        """Raises Refused."""
        return self._json("GET", path)

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Raises Refused."""
        return self._json("POST", path, json=body)

    def delete(self, path: str) -> None:
        """Raises Refused."""
        self._call("DELETE", path, timeout=_PATIENT)

    def upload(self, path: str, name: str, file: IO[bytes], **fields: str) -> dict[str, Any]:
        """Send one file as a form, and read it only as fast as it is sent. Raises Refused."""
        files = {"file": (name, file)}
        return self._json("POST", path, files=files, data=fields, timeout=_PATIENT)

    def download(self, path: str, into: IO[bytes]) -> None:
        """Raises Refused."""
        with self._stream("GET", path, timeout=_PATIENT) as answer:
            for chunk in answer.iter_bytes():
                into.write(chunk)

    def lines(self, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The answer of a call that takes minutes, line by line as it comes. Raises Refused."""
        # A model may load for long without a line.
        patient = httpx2.Timeout(_SECONDS, read=None)
        with self._stream("POST", path, json=body, timeout=patient) as answer:
            for line in answer.iter_lines():
                yield self._dict(json.loads(line))

    def events(self, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Server-sent events: the kind of each, and what it tells. Raises Refused."""
        with self._stream("GET", path, timeout=_EVENTS) as answer:
            kind = ""
            for line in answer.iter_lines():
                name, _, value = line.partition(":")
                if name == "event":
                    kind = value.strip()
                elif name == "data":
                    yield kind, self._dict(json.loads(value))

    @contextmanager
    def _stream(self, method: str, path: str, **request: Any) -> Iterator[httpx2.Response]:
        with self._explained(), self._http.stream(method, path, **request) as answer:
            if not answer.is_success:
                answer.read()
                self._check(answer)
            yield answer

    def _json(self, method: str, path: str, **request: Any) -> dict[str, Any]:
        with self._explained():
            return self._dict(self._call(method, path, **request).json())

    def _call(self, method: str, path: str, **request: Any) -> httpx2.Response:
        with self._explained():
            answer = self._http.request(method, path, **request)
            self._check(answer)
            return answer

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise self._unreachable(error) from error
        except ValueError as error:
            raise self._foreign() from error

    def _check(self, answer: httpx2.Response) -> None:
        if answer.is_success:
            return
        body = self._dict(answer.json())
        said = body.get("detail")
        if answer.status_code == 404 and said == "Not Found":
            raise self._foreign()
        if isinstance(said, list):  # what is wrong in the request, one entry each
            said = "; ".join(str(wrong.get("msg")) for wrong in said)
        sentence = str(said or f"{self._url} answers {answer.status_code}.")
        raise Refused(sentence, str(body.get("code", "")))

    def _dict(self, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self._foreign()
        return value

    def _unreachable(self, error: Exception) -> Refused:
        return Refused(
            f"No server answers at {self._url} ({type(error).__name__}). "
            "Fix: start it with ./start.sh, or give --url."
        )

    def _foreign(self) -> Refused:
        return Refused(f"What answers at {self._url} is not this version of gpuserver.")
