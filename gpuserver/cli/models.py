"""`gpuserver status` and `gpuserver models`: what is loaded, what fits, and fetching models."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Annotated, Any, Final

import typer
from rich.live import Live
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from gpuserver import config
from gpuserver.cli import overview
from gpuserver.cli.remote import Key, Refused, Remote, Url, server, talking
from gpuserver.cli.terminal import notes, out
from gpuserver.providers import weights

app = typer.Typer(help="What is loaded, what fits, and fetching models.", no_args_is_help=True)

Kind = Annotated[str, typer.Argument(help="llm, asr, tts, embeddings or reranker.")]
Provider = Annotated[str, typer.Argument(help="Such as vllm, faster-whisper or coqui.")]
Model = Annotated[str, typer.Argument(help="A folder or a name; some providers have none.")]
Id = Annotated[str, typer.Argument(help="As `gpuserver models list` shows it.")]

_REFRESH_SECONDS: Final = 2.0
_STAGES: Final = {
    "fitting": "making room",
    "fetching": "fetching",
    "loading": "loading",
    "warming": "warming up",
}


def status(
    watch: Annotated[bool, typer.Option("--watch", help="Keep it up to date.")] = False,
    url: Url = "",
    key: Key = "",
) -> None:
    """Show how a running server is: its models, GPUs, memory and sessions."""
    with talking(url, key) as remote:
        if not watch:
            out.print(overview.page(*_look(remote)))
            return
        # Ctrl-C is the way to end it.
        with (
            suppress(KeyboardInterrupt),
            Live(console=out, auto_refresh=False, screen=out.is_terminal) as live,
        ):
            while True:
                try:
                    shown = overview.page(*_look(remote))
                except Refused as error:
                    shown = overview.problem(str(error))
                live.update(shown, refresh=True)
                time.sleep(_REFRESH_SECONDS)


@app.command("list")
def list_models(url: Url = "", key: Key = "") -> None:
    """List what the server has loaded, and what lies in the folder of models."""
    settings, _ = config.load()
    found = weights.pulled(settings)
    try:
        with server(url, key) as remote:
            loaded = remote.get("/mgmt/v1/models")
            out.print(overview.models(loaded["models"]))
    except Refused as error:
        # What lies on the disk can be told all the same.
        notes.print(str(error), style="yellow", markup=False)
    out.print(overview.on_disk(found, weights.models_dir(settings)))


@app.command()
def fit(kind: Kind, provider: Provider, model: Model = "", url: Url = "", key: Key = "") -> None:
    """Say whether a model would fit beside what is loaded."""
    with talking(url, key) as remote:
        answer = remote.post("/mgmt/v1/models/fit", _body(kind, provider, model))
        out.print(answer["sentence"], markup=False, soft_wrap=True)
        for model_id in answer.get("would_evict") or ():
            out.print(f"  it would take the place of {model_id}", markup=False, soft_wrap=True)
    raise typer.Exit(0 if answer["fits"] else 1)


@app.command()
def load(
    kind: Kind,
    provider: Provider,
    model: Model = "",
    pin: Annotated[bool, typer.Option("--pin", help="Keep it loaded.")] = False,
    url: Url = "",
    key: Key = "",
) -> None:
    """Load a model into the server, which fetches it if it has to."""
    body = {**_body(kind, provider, model), "pin": pin}
    with talking(url, key) as remote, _loading() as show:
        for line in remote.lines("/mgmt/v1/models/load", body):
            if "error" in line:
                raise Refused(str(line["error"]["detail"]))
            if line.get("stage") == "ready":
                break
            show(str(line.get("stage")), line.get("share"))
        else:
            raise Refused("The server stopped before the model was loaded. Fix: see its log.")
    out.print(f"Loaded: {line['model']['id']}", markup=False, soft_wrap=True)


@app.command()
def unload(model_id: Id, url: Url = "", key: Key = "") -> None:
    """Free the memory of a model that nobody uses."""
    with talking(url, key) as remote:
        remote.post("/mgmt/v1/models/unload", {"id": model_id})
    out.print(f"Unloaded: {model_id}", markup=False, soft_wrap=True)


@app.command()
def pin(
    model_id: Id,
    off: Annotated[bool, typer.Option("--off", help="Let it be unloaded again.")] = False,
    url: Url = "",
    key: Key = "",
) -> None:
    """Keep a model loaded, even while nobody uses it and others need the room."""
    with talking(url, key) as remote:
        remote.post("/mgmt/v1/models/pin", {"id": model_id, "pinned": not off})
    state = "may be unloaded" if off else "stays loaded"
    out.print(f"{model_id} {state}.", markup=False, soft_wrap=True)


@app.command()
def pull(
    name: Annotated[
        str, typer.Argument(help="Qwen/Qwen3-8B, small, tts_models/en/ljspeech/vits, …")
    ],
    accept_licence: Annotated[
        bool, typer.Option("--accept-licence", help="Agree to a licence that asks for it.")
    ] = False,
) -> None:
    """Fetch a model into MODELS_DIR; a pull that was broken off goes on where it was."""
    settings, _ = config.load()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    try:
        with Progress(*columns, console=notes, transient=True) as bar:
            task = bar.add_task(name, total=None)

            def show(here: int, total: int) -> None:
                bar.update(task, completed=here, total=total)

            folder = weights.pull(name, settings, show, accept_licence=accept_licence)
    except KeyboardInterrupt:
        notes.print("Stopped. The same command goes on from here.", style="yellow")
        raise typer.Exit(130) from None
    out.print(f"{name} is in {folder}", markup=False, soft_wrap=True)


def _look(remote: Remote) -> tuple[dict[str, Any], dict[str, Any]]:
    return remote.get("/status"), remote.get("/mgmt/v1/models")


def _body(kind: str, provider: str, model: str) -> dict[str, Any]:
    return {"kind": kind, "provider": provider, "model": model}


@contextmanager
def _loading() -> Iterator[Any]:
    """A bar that fills with each stage; one line a stage where there is no terminal."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn())
    with Progress(*columns, console=notes, transient=True) as bar:
        task = bar.add_task("asking", total=None)
        said = ""

        def show(stage: str, share: float | None) -> None:
            nonlocal said
            words = _STAGES.get(stage, stage)
            total = None if share is None else 1.0
            bar.update(task, description=words, completed=share or 0, total=total)
            if words != said and not notes.is_terminal:
                notes.print(f"… {words}", markup=False)
            said = words

        yield show
