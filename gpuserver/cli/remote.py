"""The management API of a running server, for commands: a refusal is the server's own sentence."""

from __future__ import annotations

import json
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Final, Self

import httpx2

_SECONDS: Final = 10.0


class Refused(Exception):
    """The server did not do what it was asked for; the message is a sentence for people."""


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
        return self._json("GET", path, None)

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Raises Refused."""
        return self._json("POST", path, body)

    def lines(self, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The answer of a call that takes minutes, line by line as it comes. Raises Refused."""
        try:
            # A model may load for long without a line.
            patient = httpx2.Timeout(_SECONDS, read=None)
            with self._http.stream("POST", path, json=body, timeout=patient) as answer:
                if not answer.is_success:
                    answer.read()
                    self._check(answer)
                for line in answer.iter_lines():
                    yield self._dict(json.loads(line))
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise self._unreachable(error) from error
        except ValueError as error:
            raise self._foreign() from error

    def _json(self, method: str, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        try:
            answer = self._http.request(method, path, json=body)
            self._check(answer)
            return self._dict(answer.json())
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise self._unreachable(error) from error
        except ValueError as error:
            raise self._foreign() from error

    def _check(self, answer: httpx2.Response) -> None:
        if answer.is_success:
            return
        said = self._dict(answer.json()).get("detail")
        if answer.status_code == 404 and said == "Not Found":
            raise self._foreign()
        if isinstance(said, list):  # what is wrong in the request, one entry each
            said = "; ".join(str(wrong.get("msg")) for wrong in said)
        raise Refused(str(said or f"{self._url} answers {answer.status_code}."))

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
