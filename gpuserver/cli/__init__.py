"""The command line: serve, ask, chat, check, tutors, status, models, kb."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from gpuserver import (
    __version__,
    background,
    config,
    connectivity,
    observability,
    unified_server,
)
from gpuserver.cli import kb, kb_eval, models, talk
from gpuserver.cli.terminal import Printer, loading, notes, out
from gpuserver.errors import ConfigurationError, GpuServerError, TextEmpty
from gpuserver.providers import names
from gpuserver.tutor.ai_engine import AIEngine
from gpuserver.tutor.conversation import Conversation
from gpuserver.tutor.turn import Question, Turn, TurnLimits
from gpuserver.tutor.tutoring import Tutoring

app = typer.Typer(
    help="A school's own virtual tutor, on its own machine.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

app.command()(models.status)
app.add_typer(models.app, name="models")
kb.app.command("eval")(kb_eval.evaluate_base)
app.add_typer(kb.app, name="kb")

TutorId = Annotated[int | None, typer.Option("--tutor", help="Tutor id; default: the file's.")]
KbId = Annotated[str | None, typer.Option("--kb", help="Knowledge base to ask as well.")]


def run() -> int:
    """Run the command line; returns the exit status. What goes wrong is one sentence."""
    try:
        app()
    except GpuServerError as error:
        notes.print(f"gpuserver: {error}", style="red", markup=False)
        return 2 if isinstance(error, ConfigurationError) else 1
    return 0


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Instead of MANAGEMENT_API_HOST.")] = None,
    port: Annotated[int | None, typer.Option(help="Instead of MANAGEMENT_API_PORT.")] = None,
) -> None:
    """Run the server in the foreground."""
    given: dict[str, Any] = {"management_api_host": host, "management_api_port": port}
    settings = _settings_with_warnings(**{k: v for k, v in given.items() if v is not None})
    raise typer.Exit(unified_server.serve(settings))


@app.command()
def start() -> None:
    """Run the server in the background; returns when students may come."""
    settings = _settings_with_warnings()
    with loading() as show:

        def watch(ready: dict[str, Any]) -> None:
            show(ready.get("stage", "starting"), ready.get("done", 0), ready.get("total", 0))

        url = background.start(settings, watch)
    _introduce(url, settings)


@app.command()
def stop() -> None:
    """Stop the background server of this data folder, and its workers."""
    settings, _ = config.load()
    pid = background.stop(settings)
    out.print("No server is running here." if pid is None else f"Stopped (process {pid}).")


@app.command()
def ask(
    question: Annotated[str, typer.Argument(help="The question, typed.")] = "",
    audio: Annotated[Path | None, typer.Option(help="A recording to ask instead.")] = None,
    save: Annotated[Path | None, typer.Option("--out", help="WAV to write the answer to.")] = None,
    tutor: TutorId = None,
    kb: KbId = None,
) -> None:
    """Ask one question in process: no server needed."""
    if (question != "") == (audio is not None):
        raise typer.BadParameter("give either a question or --audio")
    if audio is None and not question.strip():
        raise TextEmpty
    clip = None if audio is None else _read(audio)
    asyncio.run(_ask(question, clip, save, tutor, kb))


@app.command()
def chat(
    voice: Annotated[
        list[Path] | None, typer.Option(help="A recording to say; may be given several times.")
    ] = None,
    save: Annotated[
        Path | None, typer.Option("--out", help="WAV to write the spoken answers to.")
    ] = None,
    tutor: TutorId = None,
    kb: KbId = None,
    url: Annotated[
        str, typer.Option(help="Base address of a server; default: this one, or one of its own.")
    ] = "",
    key: Annotated[str, typer.Option(help="Management key; default: MANAGEMENT_API_KEY.")] = "",
) -> None:
    """Talk with a tutor by typing (an empty line ends it), or by voice with --voice."""
    settings, _ = config.load()
    place = talk.Place(settings, url, key or settings.management_api_key, tutor, kb)
    if voice:
        answered = talk.spoken(place, [_read(path) for path in voice], save)
        raise typer.Exit(0 if answered else 1)
    if save is not None:
        raise typer.BadParameter("--out needs --voice")
    talk.typed(place)


@app.command()
def check(
    url: Annotated[str, typer.Option(help="Base address of the server; default: this one.")] = "",
    key: Annotated[str, typer.Option(help="Management key; default: MANAGEMENT_API_KEY.")] = "",
) -> None:
    """Check a running server: one line a promise, the fix beside a failure."""
    settings, _ = config.load()
    url = url or background.address(settings)
    failures = asyncio.run(_check(url, key or settings.management_api_key))
    raise typer.Exit(1 if failures else 0)


@app.command()
def tutors() -> None:
    """List the tutors and what each runs on."""
    settings, _ = config.load()
    table = Table("id", "name", "language", "answers", "hears", "speaks", "courses")
    catalogue = Tutoring(settings).catalogue
    for tutor in catalogue:
        keys = catalogue.runtime_keys(tutor)
        engines = [keys[kind].provider if kind in keys else "–" for kind in _SHOWN]
        table.add_row(
            str(tutor.id), tutor.name, tutor.language, *engines, ", ".join(tutor.knowledge)
        )
    out.print(table)


@app.command()
def version() -> None:
    """Print the version."""
    out.print(__version__)


_SHOWN = ("llm", "asr", "tts")


def _settings_with_warnings(**given: Any) -> config.Settings:
    """The settings, for the commands that put them to work: what looks wrong is said."""
    settings, warnings = config.load(**given)
    for warning in warnings:
        notes.print(f"warning: {warning}", style="yellow", markup=False)
    return settings


async def _ask(
    question: str, clip: bytes | None, save: Path | None, tutor: int | None, kb: str | None
) -> None:
    async with _engine(tutor) as (engine, settings):
        asked = Question(engine.tutor.language, question, clip, speak=save is not None)
        printer = await _turn(engine, settings, Conversation(0), asked, kb)
    if printer.error is not None:
        raise printer.error
    if save is not None:
        talk.write(save, b"".join(printer.pcm), printer.sample_rate)


async def _turn(
    engine: AIEngine,
    settings: config.Settings,
    conversation: Conversation,
    asked: Question,
    kb: str | None,
) -> Printer:
    printer = Printer()
    turn = Turn(
        engine,
        conversation,
        asked,
        printer,
        kb_id=kb,
        limits=TurnLimits(
            settings.turn_timeout_seconds,
            settings.first_token_timeout_seconds,
            settings.token_timeout_seconds,
            settings.max_audio_seconds,
            settings.max_answer_chars,
        ),
    )
    await turn.run()
    return printer


async def _check(url: str, key: str) -> int:
    failures = 0
    marks = {True: "[green]ok  [/]", False: "[red]FAIL[/]", None: "[yellow]off [/]"}
    async for result in connectivity.check(url, key):
        failures += result.ok is False
        out.print(marks[result.ok], f"{result.name}:", end=" ")
        out.print(result.detail, markup=False, soft_wrap=True)
        if result.fix:
            out.print(f"     fix: {result.fix}", markup=False, soft_wrap=True)
    return failures


@asynccontextmanager
async def _engine(tutor_id: int | None) -> AsyncIterator[tuple[AIEngine, config.Settings]]:
    """A tutor's engine in this process, loaded with progress shown."""
    settings, _ = config.load()
    observability.configure("WARNING", "console")
    with loading() as show:
        house = Tutoring(settings, lambda now: show(now.stage, now.done, now.total))
        try:
            await house.load()
        except BaseException:
            await house.close()
            raise
    try:
        wanted = house.catalogue.default.id if tutor_id is None else tutor_id
        async with house.engines.lease(wanted) as engine:
            yield engine, settings
    finally:
        await house.close()


def _introduce(url: str, settings: config.Settings) -> None:
    """Where the server is and what runs there."""
    out.print(f"The tutor is ready: [bold]{url}/[/]", soft_wrap=True)
    if settings.websocket_url:
        out.print(f"  public WebSocket  {settings.websocket_url}/ws/ws/<session>", soft_wrap=True)
    out.print(f"  API documentation {url}/docs", soft_wrap=True)
    out.print(f"  log               {settings.data_dir / 'logs' / 'server.log'}", soft_wrap=True)
    catalogue = Tutoring(settings).catalogue
    for tutor in catalogue:
        runs = names(catalogue.runtime_keys(tutor)).items()
        listed = ", ".join(f"{kind} {name}" for kind, name in runs)
        out.print(f"  tutor {tutor.id} {tutor.name}: {listed}", markup=False)
    venv = Path(sys.prefix).name
    out.print(f"  check it with {venv}/bin/gpuserver check, stop it with ./stop.sh")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError(
            problem=f"Can't read {path}: {error.strerror}.", fix="check the path."
        ) from error
