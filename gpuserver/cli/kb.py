"""`gpuserver kb`: put course material in, look at it, try questions, take it elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import quote

import typer
from rich import box
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TransferSpeedColumn,
)
from rich.table import Column, Table

from gpuserver.cli.remote import Key, Refused, Remote, Url, talking
from gpuserver.cli.terminal import notes, out
from gpuserver.documents import SUFFIXES
from gpuserver.documents.naming import OneNameTwice, document_names, is_housekeeping
from gpuserver.providers.weights import size

app = typer.Typer(help="Course material: upload, look, search, export.", no_args_is_help=True)

KbId = Annotated[str, typer.Argument(help="The knowledge base.")]
Row = dict[str, Any]

_READABLE: Final = (*SUFFIXES, ".zip")
_BASES: Final = "/mgmt/v1/knowledge-bases"
_OVER: Final = frozenset({"disk_full", "too_many_documents"})
"""Refusals that every further file would meet as well."""
_FINISHED: Final = frozenset({"ready", "failed", "removed"})
_COLOURS: Final = {"ready": "green", "failed": "red"}


@app.command()
def add(
    paths: Annotated[list[Path], typer.Argument(help="Files, folders and zips.")],
    kb: Annotated[str, typer.Option("--kb", help="The knowledge base; made if it is missing.")],
    title: Annotated[str, typer.Option(help="What a new one is called.")] = "",
    url: Url = "",
    key: Key = "",
) -> None:
    """Upload documents and wait until they can be searched; the same name replaces."""
    with talking(url, key) as remote:
        files = _collected(paths)
        try:
            remote.post(_BASES, {"kb_id": kb, "title": title})
        except Refused as error:
            if error.code != "knowledge_base_exists":
                raise
        taken, refused = _send(remote, kb, files)
        rows = _indexed(remote, kb, taken) if taken else []
    if rows:
        out.print(_documents(rows))
    for sentence in refused:
        notes.print(sentence, style="red", markup=False, soft_wrap=True)
    failed = len(refused) + sum(row["state"] == "failed" for row in rows)
    raise typer.Exit(1 if failed else 0)


@app.command("list")
def list_bases(url: Url = "", key: Key = "") -> None:
    """List the knowledge bases."""
    with talking(url, key) as remote:
        bases = remote.get(_BASES)["knowledge_bases"]
    name = Column("knowledge base", overflow="fold")
    columns = ("title", "documents", "passages", "size", "state")
    table = Table(name, *columns, box=box.SIMPLE_HEAD)
    for base in bases:
        course = base["origin"] == "course"
        table.add_row(
            escape(base["kb_id"]),
            escape(base["title"]),
            str(base["documents"]),
            str(base["passages"]),
            "course" if course else size(base["bytes"]),
            _state(base),
        )
    out.print(table)


@app.command()
def show(kb: KbId, url: Url = "", key: Key = "") -> None:
    """Show a knowledge base and its documents."""
    with talking(url, key) as remote:
        base = remote.get(base_path(kb))
        documents = remote.get(base_path(kb, "documents"))["documents"]
    out.print(f"{base['title']} ({base['kb_id']})", markup=False, soft_wrap=True)
    if base["problem"]:
        out.print(base["problem"]["detail"], style="red", markup=False, soft_wrap=True)
    out.print(_documents(documents) if documents else "No document is in it.")


@app.command()
def remove(
    kb: KbId,
    document: Annotated[str, typer.Argument(help="A document's name or id; default: all.")] = "",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")] = False,
    url: Url = "",
    key: Key = "",
) -> None:
    """Delete a document, or a whole knowledge base."""
    with talking(url, key) as remote:
        name, path = kb, base_path(kb)
        if document:
            found = _document(remote, kb, document)
            name, path = found["name"], base_path(kb, "documents", found["id"])
        else:
            remote.get(path)
        if not yes:
            typer.confirm(f"Delete {name!r} for good?", abort=True)
        remote.delete(path)
    out.print(f"Deleted: {name}", markup=False, soft_wrap=True)


@app.command()
def search(
    kb: KbId,
    question: Annotated[str, typer.Argument(help="As a student would ask it.")],
    tutor: Annotated[int | None, typer.Option(help="Search this tutor's courses as well.")] = None,
    url: Url = "",
    key: Key = "",
) -> None:
    """Show what a question finds, and why."""
    with talking(url, key) as remote:
        answer = remote.post(base_path(kb, "search"), {"question": question, "tutor_id": tutor})
    for place, found in enumerate(answer["passages"], 1):
        page = f", page {found['page']}" if found["page"] else ""
        mark = "green" if found["covered"] else "dim"
        where = f"{place}. {found['document']}: {found['heading']}{page}"
        out.print(where, style=mark, markup=False, soft_wrap=True)
        meaning = "–" if found["by_meaning"] is None else f"{found['by_meaning']:.2f}"
        read = "" if found["by_reranker"] is None else f"re-ranker {found['by_reranker']:.2f}, "
        out.print(
            f"   fits {found['similarity']:.2f} ({read}meaning {meaning}, words "
            f"{found['by_words']:.2f}, heading {found['by_heading']:.2f})",
            style="dim",
        )
        out.print(f"   {_short(found['text'])}", markup=False, soft_wrap=True)
    if not answer["covered"]:
        out.print("The material does not cover this question.", style="yellow")


@app.command("export")
def export_base(
    kb: KbId,
    file: Annotated[Path, typer.Argument(help="The zip to write.")],
    url: Url = "",
    key: Key = "",
) -> None:
    """Write a whole knowledge base into one zip."""
    part = file.with_name(f"{file.name}.part")
    with talking(url, key) as remote:
        try:
            with part.open("wb") as into:
                remote.download(base_path(kb, "export"), into)
            part.replace(file)
        except OSError as error:
            raise Refused(f"Can't write {file}: {error.strerror}.") from error
        finally:
            with suppress(OSError):
                part.unlink(missing_ok=True)
    out.print(f"{kb} is in {file}", markup=False, soft_wrap=True)


@app.command("import")
def import_base(
    file: Annotated[Path, typer.Argument(help="What `gpuserver kb export` wrote.")],
    kb: Annotated[str, typer.Option("--kb", help="Another id than its own.")] = "",
    url: Url = "",
    key: Key = "",
) -> None:
    """Take in a knowledge base that was exported, and wait until it can be searched."""
    with talking(url, key) as remote:
        fields = {"kb_id": kb} if kb else {}
        with _sending() as bar:
            base = _sent(remote, f"{_BASES}/import", file.name, file, bar, **fields)
        documents = remote.get(base_path(base["kb_id"], "documents"))["documents"]
        rows = _indexed(remote, base["kb_id"], documents) if documents else []
    out.print(f"Imported: {base['kb_id']}", markup=False, soft_wrap=True)
    if rows:
        out.print(_documents(rows))
    raise typer.Exit(1 if any(row["state"] == "failed" for row in rows) else 0)


def _collected(paths: Sequence[Path]) -> dict[str, Path]:
    """The files to send, by the name each gets. Raises Refused.

    A folder gives what can be read in it. Where two files have one name, those of folders carry
    their folders' names before it: one would replace the other.
    """
    found: list[tuple[Path, Path]] = []
    for path in paths:
        if path.is_dir():
            inside = [each for each in sorted(path.rglob("*")) if _is_material(each, path)]
            found += [(path, each) for each in inside]
        elif path.is_file():
            found.append((path.parent, path))
        else:
            raise Refused(f"There is no file or folder {path}.")
    if not found:
        raise Refused(f"There is nothing to upload; readable are {', '.join(_READABLE)}.")
    # A file that is given twice comes once, as a part of the folder that came first.
    once: dict[Path, tuple[Path, Path]] = {}
    for root, path in found:
        once.setdefault(path.resolve(), (root, path))
    each = once.values()
    try:
        names = document_names([path.relative_to(root) for root, path in each])
    except OneNameTwice as error:
        raise Refused(f"Two files are called {error.name}; rename one of them.") from error
    return dict(zip(names, (path for _, path in each), strict=True))


def _is_material(path: Path, root: Path) -> bool:
    hidden = is_housekeeping(path.relative_to(root))
    return not hidden and path.suffix.lower() in _READABLE and path.is_file()


def _send(remote: Remote, kb: str, files: dict[str, Path]) -> tuple[list[Row], list[str]]:
    """Upload one after another; gives what was taken, and why each of the others was not."""
    taken: list[Row] = []
    refused: list[str] = []
    with _sending() as bar:
        for name, path in files.items():
            try:
                answer = _sent(remote, base_path(kb, "documents"), name, path, bar)
            except Refused as error:
                refused.append(f"{name}: {error}")
                if error.code in _OVER:
                    break
                if not error.code:
                    # The server is gone, or the file can't be read: no refusal of this document.
                    raise
            else:
                taken += answer["documents"]
    return taken, refused


def _sending() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    return Progress(*columns, TransferSpeedColumn(), console=notes, transient=True)


def _sent(
    remote: Remote, url: str, name: str, path: Path, bar: Progress, **fields: str
) -> dict[str, Any]:
    """Upload one file with a bar of its own. Raises Refused."""
    task = bar.add_task(f"sending {escape(name)}", total=None)
    if not notes.is_terminal:
        notes.print(f"… sending {name}", markup=False, soft_wrap=True)
    try:
        with path.open("rb") as file:
            total = path.stat().st_size
            return remote.upload(url, name, bar.wrap_file(file, total, task_id=task), **fields)
    except OSError as error:
        raise Refused(f"Can't read {path}: {error.strerror}.") from error
    finally:
        bar.remove_task(task)


def _indexed(remote: Remote, kb: str, taken: Iterable[Row]) -> list[Row]:
    """Show how the documents are indexed, until each is ready or failed; gives them as they are.

    Raises Refused.
    """
    rows = {row["id"]: row for row in taken}
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    try:
        with Progress(*columns, console=notes, transient=True) as bar:
            task = bar.add_task("indexing", total=len(rows))
            for kind, change in remote.events(base_path(kb, "events")):
                if kind == "removed":
                    gone = rows if change["document_id"] is None else {change["document_id"]}
                    for document_id in rows.keys() & set(gone):
                        rows[document_id]["state"] = "removed"
                elif kind == "document" and change["id"] in rows:
                    _note(rows[change["id"]], change)
                    rows[change["id"]] = change
                    of = f" {change['done']}/{change['total']}" if change["total"] else ""
                    words = f"{change['state']} {escape(change['name'])}{of}"
                    bar.update(task, description=words)
                finished = sum(row["state"] in _FINISHED for row in rows.values())
                bar.update(task, completed=finished)
                # The present state comes first, and the base before its documents.
                if kind != "base" and finished == len(rows):
                    return list(rows.values())
    except KeyboardInterrupt:
        notes.print("Indexing goes on in the server.", style="yellow")
        raise typer.Exit(130) from None
    raise Refused("The server stopped before all was indexed; it goes on when it is back.")


def _note(before: Row, after: Row) -> None:
    """A line for each new state, where no bar can be shown."""
    if not notes.is_terminal and before["state"] != after["state"]:
        notes.print(f"… {after['state']} {after['name']}", markup=False, soft_wrap=True)


def _documents(rows: Iterable[Row]) -> Table:
    name = Column("document", overflow="fold")
    table = Table(name, "state", "pages", "passages", "", box=box.SIMPLE_HEAD)
    for row in rows:
        pages = "–" if row["pages"] is None else str(row["pages"])
        note = "" if not row["empty_pages"] else _scans(row["empty_pages"])
        if row["problem"]:
            note = row["problem"]["detail"]
        if row["state"] != "ready" and row["answers"]:
            note = f"{note} (the version before it answers)".strip()
        table.add_row(escape(row["name"]), _state(row), pages, str(row["passages"]), escape(note))
    return table


def _scans(pages: Sequence[int]) -> str:
    listed = ", ".join(map(str, pages[:8])) + (" …" if len(pages) > 8 else "")
    return f"no text on page {listed}: run scans through OCR first"


def _state(row: Row) -> str:
    state = str(row["state"])
    return f"[{_COLOURS.get(state, 'yellow')}]{escape(state)}[/]"


def _document(remote: Remote, kb: str, wanted: str) -> Row:
    for row in remote.get(base_path(kb, "documents"))["documents"]:
        if wanted in (row["id"], row["name"]):
            found: Row = row
            return found
    raise Refused(f"{kb} has no document {wanted!r}; `gpuserver kb show {kb}` lists them.")


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 160 else f"{line[:159]}…"


def base_path(*parts: str) -> str:
    """Where a knowledge base, or something in it, is on the server."""
    # Dots as well: a client tidies `..` away before anything is sent.
    quoted = (quote(part, safe="").replace(".", "%2E") for part in parts)
    return "/".join([_BASES, *quoted])
