"""The console's course material in a browser: brought in, watched, tried, taken away."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from playwright.sync_api import Page

from tests.browser import BrowserThread, Classroom, fixtures, in_browser, tab_to
from tests.scripted_knowledge import ScriptedKnowledge, base, document, scripted_knowledge

browser, _ = fixtures

FAILURE: Final = {
    "code": "document_unreadable",
    "detail": "The document 'broken.pdf' can't be read: it is encrypted.",
    "detail_zh": "无法读取文档 'broken.pdf'：文件已加密。",
}
FOUND: Final = {
    "document": "mechanics.pdf",
    "heading": "Forces",
    "page": 31,
    "text": "The **acceleration** is the force divided by the mass. <img src=x>",
    "similarity": 0.83,
    "by_meaning": 0.79,
    "by_words": 0.6,
    "by_heading": 0.08,
    "covered": True,
}
BELOW: Final = {**FOUND, "document": "notes.md", "page": None, "similarity": 0.2, "covered": False}
PHYSICS: Final = "/physics-9/documents"

_DROP: Final = """([selector, names]) => {
  const transfer = new DataTransfer();
  for (const name of names) transfer.items.add(new File(['# Text'], name));
  const told = { dataTransfer: transfer, bubbles: true, cancelable: true };
  const place = document.querySelector(selector);
  place.dispatchEvent(new DragEvent('dragenter', told));
  const dragging = document.querySelector('#knowledge').hasAttribute('data-dragging');
  place.dispatchEvent(new DragEvent('dragover', told));
  const drop = new DragEvent('drop', told);
  place.dispatchEvent(drop);
  return [dragging, drop.defaultPrevented];
}"""


@pytest.fixture
def knowledge() -> Iterator[ScriptedKnowledge]:
    with scripted_knowledge() as knowledge:
        shipped = base("python-basics", "Python basics", origin="course", documents=1)
        knowledge.bases = {"physics-9": base("physics-9", "Physics, year 9")}
        knowledge.bases["python-basics"] = shipped
        knowledge.documents["python-basics"] = {"en/lists": document(1, "lists.md", id="en/lists")}
        yield knowledge


@pytest.fixture
def classroom(knowledge: ScriptedKnowledge, browser: BrowserThread) -> Iterator[Classroom]:
    classroom = Classroom(knowledge.url, browser)
    yield classroom
    browser.call(classroom.close)


def opened(classroom: Classroom, language: str = "en", **more: Any) -> Page:
    page = classroom.page(language, **more)
    page.goto(classroom.url)
    page.wait_for_selector("#knowledge:not([hidden])")
    return page


def following(page: Page, knowledge: ScriptedKnowledge, streams: int = 1) -> None:
    """Until the page hears of changes as they come."""
    for _ in range(400):
        if knowledge.streams >= streams:
            return
        page.wait_for_timeout(20)
    raise AssertionError("no stream was opened")


def drop(page: Page, *names: str, on: str = "#docs") -> list[bool]:
    told: list[bool] = page.evaluate(_DROP, [on, list(names)])
    return told


# Bringing it in


@in_browser
def test_chosen_files_are_sent_and_followed_until_they_are_ready(
    classroom: Classroom, knowledge: ScriptedKnowledge, tmp_path: Path
) -> None:
    page = opened(classroom)
    following(page, knowledge)
    for name in ("mechanics.pdf", "第三章.docx"):
        (tmp_path / name).write_bytes(b"%PDF-")
    with page.expect_file_chooser() as chooser:
        page.click("#drop-choose")
    chooser.value.set_files([tmp_path / "mechanics.pdf", tmp_path / "第三章.docx"])
    page.wait_for_selector("#docs .doc >> nth=1")
    assert [asked[1:] for asked in knowledge.asked] == [
        (PHYSICS, "mechanics.pdf"),
        (PHYSICS, "第三章.docx"),
    ]
    row = ".doc[data-id='0000000000000001']"
    assert "Waiting" in page.inner_text(row)
    knowledge.put("physics-9", document(1, "mechanics.pdf", "reading", done=12, total=60))
    page.wait_for_selector(f"{row}:has-text('page 12 of 60')")
    assert page.evaluate(f'document.querySelector("{row} progress").value') == 12
    knowledge.put("physics-9", document(1, "mechanics.pdf", "indexing", done=5, total=340))
    page.wait_for_selector(f"{row}:has-text('passage 5 of 340')")
    knowledge.put("physics-9", document(1, "mechanics.pdf"))
    page.wait_for_selector(f"{row}[data-state=ready]")
    assert page.locator(f"{row} progress").count() == 0
    for said in ("120 pages", "340 passages", "2.3 MB"):
        assert said in page.inner_text(row)
    assert page.inner_text("#docs-summary") == "1 of 2 documents ready"


@in_browser
def test_files_are_dropped_anywhere_on_the_section(
    classroom: Classroom, knowledge: ScriptedKnowledge
) -> None:
    page = opened(classroom)
    page.wait_for_selector("#base:not([hidden])")
    assert drop(page, "a.md", "b.md", on="#trial-title") == [True, True]
    page.wait_for_selector("#docs .doc >> nth=1")
    assert [asked[2] for asked in knowledge.asked] == ["a.md", "b.md"]
    # Beside it nothing is uploaded, and the browser does not open the file in the page's place.
    assert drop(page, "c.md", on="#machine") == [False, True]
    page.wait_for_timeout(200)
    assert len(knowledge.asked) == 2


@in_browser
@pytest.mark.parametrize(
    ("language", "said"), [("en", "can't be read here"), ("zh", "这里读不了这种类型的文件")]
)
def test_a_refused_file_says_why_and_the_others_go_on(
    classroom: Classroom, knowledge: ScriptedKnowledge, language: str, said: str
) -> None:
    classroom.expected.append("415")
    page = opened(classroom, language)
    page.wait_for_selector("#base:not([hidden])")
    refusal = {"code": "document_type_unknown", "detail": "'a.exe' can't be read here."}
    knowledge.answers[f"POST {PHYSICS}"] = (415, refusal)
    drop(page, "a.exe")
    page.wait_for_selector(".upload[data-state=refused]")
    assert "a.exe" in page.inner_text(".upload")
    assert said in page.inner_text(".upload")
    del knowledge.answers[f"POST {PHYSICS}"]
    drop(page, "b.md")
    page.wait_for_selector("#docs .doc:has-text('b.md')")
    page.click(".upload button >> nth=0")
    page.wait_for_selector("#docs .doc:has-text('a.exe')")
    page.wait_for_selector("#uploads", state="hidden")


@in_browser
def test_an_upload_whose_line_breaks_is_sent_again(
    classroom: Classroom, knowledge: ScriptedKnowledge
) -> None:
    classroom.expected.append("ERR_FAILED")
    page = opened(classroom)
    page.wait_for_selector("#base:not([hidden])")
    page.route(f"**{PHYSICS}", lambda route: route.abort(), times=1)
    drop(page, "a.md")
    page.wait_for_selector(".upload[data-state=refused]:has-text('does not answer')")
    page.click(".upload button >> nth=0")
    page.wait_for_selector("#docs .doc:has-text('a.md')")


@in_browser
def test_a_document_is_replaced_by_another_file(
    classroom: Classroom, knowledge: ScriptedKnowledge, tmp_path: Path
) -> None:
    old = document(1, "old.md")
    knowledge.put("physics-9", old, silent=True)
    page = opened(classroom)
    page.wait_for_selector(".doc")
    following(page, knowledge)
    path = f"{PHYSICS}/{old['id']}"
    knowledge.answers[f"PUT {path}"] = (202, document(1, "new.md", "queued", answers=True))
    (tmp_path / "new.md").write_text("# New")
    with page.expect_file_chooser() as chooser:
        page.click(".doc [data-act=replace]")
    chooser.value.set_files(tmp_path / "new.md")
    page.wait_for_selector("#uploads", state="hidden")
    knowledge.put("physics-9", document(1, "new.md", "queued", answers=True))
    page.wait_for_selector(".doc:has-text('earlier version answers')")
    assert knowledge.asked == [("PUT", path, "new.md")]


@in_browser
def test_what_is_dropped_where_no_course_is_goes_into_a_new_one(
    classroom: Classroom, knowledge: ScriptedKnowledge
) -> None:
    del knowledge.bases["physics-9"]
    page = opened(classroom)
    drop(page, "a.md", "b.md", on="#drop")
    page.wait_for_selector("#base-form:not([hidden])")
    assert "2 files" in page.inner_text("#base-held")
    page.keyboard.type("Chemie für Klasse 8")
    assert page.input_value("#base-id") == "chemie-fur-klasse-8"
    page.keyboard.press("Enter")
    page.wait_for_selector("#docs .doc >> nth=1")
    wish = {"kb_id": "chemie-fur-klasse-8", "title": "Chemie für Klasse 8"}
    assert knowledge.asked[0] == ("POST", "", wish)
    assert page.inner_text("#base-name") == "Chemie für Klasse 8"


@in_browser
def test_an_id_that_is_taken_is_refused_in_words(
    classroom: Classroom, knowledge: ScriptedKnowledge
) -> None:
    classroom.expected.append("409")
    page = opened(classroom)
    refusal = {"code": "knowledge_base_exists", "detail": "There is a knowledge base already."}
    knowledge.answers["POST "] = (409, refusal)
    page.click("#base-new")
    page.fill("#base-title", "物理")
    assert page.input_value("#base-id") == "course-1"
    page.fill("#base-id", "physics-9")
    page.keyboard.press("Enter")
    page.wait_for_selector("#course-said:not([hidden])")
    assert "already" in page.inner_text("#course-said")
    assert page.input_value("#base-title") == "物理"


@in_browser
def test_a_course_is_exported_and_imported(
    classroom: Classroom, knowledge: ScriptedKnowledge, tmp_path: Path
) -> None:
    page = opened(classroom)
    page.wait_for_selector("#base:not([hidden])")
    knowledge.answers["GET /physics-9/export"] = (200, b"PK parcel")
    with page.expect_download() as download:
        page.click("#base-export")
    assert download.value.suggested_filename == "physics-9.zip"
    parcel = tmp_path / "parcel.zip"
    download.value.save_as(parcel)
    assert parcel.read_bytes() == b"PK parcel"
    knowledge.bases["optics"] = base("optics", "Optics")
    knowledge.answers["POST /import"] = (201, knowledge.bases["optics"])
    with page.expect_file_chooser() as chooser:
        page.click("#base-import")
    chooser.value.set_files(parcel)
    page.wait_for_selector("#base-name:has-text('Optics')")


# Watching it


@in_browser
@pytest.mark.parametrize(("language", "said"), [("en", "it is encrypted"), ("zh", "文件已加密")])
def test_a_failed_document_says_why_and_is_tried_again(
    classroom: Classroom, knowledge: ScriptedKnowledge, language: str, said: str
) -> None:
    failed = document(1, "broken.pdf", "failed", problem=FAILURE, answers=True)
    knowledge.put("physics-9", failed, silent=True)
    knowledge.put("physics-9", document(2, "scan.pdf", empty_pages=[3, 4]), silent=True)
    page = opened(classroom, language)
    row = ".doc[data-state=failed]"
    page.wait_for_selector(row)
    assert said in page.inner_text(f"{row} .problem")
    assert "OCR" in page.inner_text(".doc[data-state=ready] .warning")
    again = document(1, "broken.pdf", "queued")
    knowledge.answers[f"POST {PHYSICS}/{failed['id']}/reindex"] = (202, again)
    knowledge.put("physics-9", again, silent=True)
    page.click(f"{row} [data-act=retry]")
    page.wait_for_selector(".doc[data-state=queued]")


@in_browser
def test_the_language_is_switched_with_all_that_is_shown(
    classroom: Classroom, knowledge: ScriptedKnowledge
) -> None:
    knowledge.put("physics-9", document(1, "b.pdf", "failed", problem=FAILURE), silent=True)
    page = opened(classroom)
    page.wait_for_selector(".doc .problem:has-text('encrypted')")
    page.click("#language")
    page.wait_for_selector(".doc .problem:has-text('文件已加密')")
    text = page.inner_text("#knowledge")
    assert not re.search(r"(course|docs|trial|manage|upload)\.\w+", text)
    assert "没有文字" not in text


@in_browser
def test_when_the_stream_breaks_the_page_asks_and_then_listens_again(
    classroom: Classroom, knowledge: ScriptedKnowledge
) -> None:
    page = classroom.page()
    page.clock.install()
    page.goto(classroom.url)
    page.wait_for_selector("#base:not([hidden])")
    following(page, knowledge)
    knowledge.break_streams()
    page.wait_for_timeout(300)
    knowledge.put("physics-9", document(1, "a.md", "reading", done=1, total=2), silent=True)
    for _ in range(3):
        page.clock.run_for(2000)
        page.wait_for_timeout(100)
    page.wait_for_selector(".doc:has-text('page 1 of 2')")
    assert knowledge.streams == 1
    for _ in range(5):
        page.clock.run_for(2000)
        page.wait_for_timeout(100)
    following(page, knowledge, streams=2)
    knowledge.put("physics-9", document(1, "a.md"))
    page.wait_for_selector(".doc[data-state=ready]")


@in_browser
def test_the_extracted_text_is_read_as_plain_text(
    classroom: Classroom, knowledge: ScriptedKnowledge
) -> None:
    told = document(1, "mechanics.pdf")
    knowledge.put("physics-9", told, silent=True)
    text = "# Mechanics\n\n<img src=x onerror=alert(1)>\n" + "A line of the book.\n" * 12_000
    knowledge.answers[f"GET {PHYSICS}/{told['id']}/text"] = (200, text)
    page = opened(classroom)
    page.click(".doc [data-act=read]")
    page.wait_for_selector("#reader .extracted")
    assert page.locator("#reader img").count() == 0
    while page.locator("#reader-text button").count():
        page.click("#reader-text button")
    shown = "[...document.querySelectorAll('.extracted')].map((e) => e.textContent).join('')"
    assert page.evaluate(shown) == text
    page.keyboard.press("Escape")
    page.wait_for_selector("#reader", state="hidden")
    assert page.evaluate("document.activeElement.dataset.act") == "read"


# Trying it


@in_browser
def test_a_question_shows_what_was_found_and_why(
    classroom: Classroom, knowledge: ScriptedKnowledge
) -> None:
    page = opened(classroom)
    page.wait_for_selector("#base:not([hidden])")
    knowledge.answers["POST /physics-9/search"] = (
        200,
        {"covered": True, "passages": [FOUND, BELOW]},
    )
    page.fill("#trial-question", "What is acceleration?")
    page.keyboard.press("Enter")
    page.wait_for_selector(".found-one >> nth=1")
    assert knowledge.asked == [("POST", "/physics-9/search", {"question": "What is acceleration?"})]
    assert "would answer" in page.inner_text(".trial-told")
    first = page.inner_text(".found-one >> nth=0")
    for said in ("mechanics.pdf", "Forces", "page 31", "acceleration", "83 %", "79 %", "60 %"):
        assert said in first
    assert page.locator(".found img").count() == 0
    order = "[...document.querySelector('.found').children].map((e) => e.className)"
    assert page.evaluate(order) == ["found-one", "bar-line", "found-one"]
    foreign = {**BELOW, "by_meaning": None}
    knowledge.answers["POST /physics-9/search"] = (200, {"covered": False, "passages": [foreign]})
    page.keyboard.press("Enter")
    page.wait_for_selector(".trial-told[data-covered=false]")
    assert "not measured" in page.inner_text(".found-one")


# Taking it away


@in_browser
def test_deleting_is_asked_first(classroom: Classroom, knowledge: ScriptedKnowledge) -> None:
    for number, name in enumerate(("a.md", "b.md"), 1):
        knowledge.put("physics-9", document(number, name), silent=True)
    page = opened(classroom)
    page.wait_for_selector("#docs .doc >> nth=1")
    for answer in ("Escape", "keep"):
        page.focus(".doc >> nth=0 >> [data-act=delete]")
        page.keyboard.press("Enter")
        page.wait_for_selector("#sure[open]")
        assert "a.md" in page.inner_text("#sure")
        page.keyboard.press("Escape" if answer == "Escape" else "Enter")  # "Keep it" is first
        page.wait_for_selector("#sure", state="hidden")
    assert not knowledge.asked
    page.keyboard.press("Enter")
    page.wait_for_selector("#sure[open]")
    tab_to(page, "#sure .danger")
    page.keyboard.press("Enter")
    page.wait_for_selector(".doc:has-text('a.md')", state="detached")
    assert knowledge.asked == [("DELETE", f"{PHYSICS}/{1:016x}", None)]
    assert page.evaluate("document.activeElement.closest('.doc')?.dataset.id") == f"{2:016x}"
    page.click("#base-delete")
    page.click("#sure .danger")
    page.wait_for_selector("#base", state="hidden")
    assert knowledge.asked[-1] == ("DELETE", "/physics-9", None)


@in_browser
def test_a_shipped_course_is_shown_and_not_changed(
    classroom: Classroom, knowledge: ScriptedKnowledge
) -> None:
    page = opened(classroom)
    page.click(".card-base[data-id=python-basics]")
    page.wait_for_selector(".doc:has-text('lists.md')")
    assert "comes with the server" in page.inner_text("#base-note")
    acts = page.locator(".doc button:visible").all_inner_texts()
    assert acts == ["Read the text"]
    for gone in ("#drop", "#base-delete", "#base-export"):
        assert page.is_hidden(gone)


# For everybody


@in_browser
@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("width", [320, 390])
def test_a_phone_shows_it_all(
    classroom: Classroom, knowledge: ScriptedKnowledge, width: int, language: str
) -> None:
    long = "a-name-without-any-place-to-break-it-" * 5 + ".pdf"
    knowledge.put("physics-9", document(1, long, "failed", problem=FAILURE), silent=True)
    knowledge.answers["POST /physics-9/search"] = (
        200,
        {"covered": True, "passages": [FOUND, BELOW]},
    )
    page = opened(classroom, language, size=(width, 700))
    page.click("#base-new")
    page.fill("#trial-question", "What?")
    page.keyboard.press("Enter")
    page.wait_for_selector(".found-one")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    controls = (
        "[...document.querySelectorAll('#knowledge :is(button, input, progress, [role=meter])')]"
        ".filter((e) => e.checkVisibility())"
    )
    small = page.evaluate(
        f"{controls}.filter((e) => e.matches('button, input'))"
        ".map((e) => [e.outerHTML, e.getBoundingClientRect()])"
        ".filter(([, r]) => r.width < 44 || r.height < 43.9).map(([html]) => html)"
    )
    assert not small
    unnamed = page.evaluate(
        f"{controls}.filter((e) => !(e.ariaLabel || e.textContent.trim() || e.labels?.length))"
        ".map((e) => e.outerHTML)"
    )
    assert not unnamed


@in_browser
def test_each_language_has_every_sentence(classroom: Classroom) -> None:
    page = opened(classroom)
    strings: dict[str, dict[str, str]] = page.evaluate(
        "import('/classroom/strings.js').then((module) => module.STRINGS)"
    )
    assert strings["en"].keys() == strings["zh"].keys()
    assert "course.drop" in strings["en"]
    for key, sentence in strings["en"].items():
        places = re.findall(r"\{(\w+)\}", sentence)
        assert sorted(places) == sorted(re.findall(r"\{(\w+)\}", strings["zh"][key])), key


@in_browser
def test_every_call_carries_the_key(classroom: Classroom, knowledge: ScriptedKnowledge) -> None:
    page = classroom.page()
    page.add_init_script("sessionStorage.setItem('console.key', 'right')")
    page.goto(classroom.url)
    page.wait_for_selector("#base:not([hidden])")
    following(page, knowledge)
    drop(page, "a.md")
    page.wait_for_selector("#docs .doc")
    assert set(knowledge.keys) == {"Bearer right"}
    assert "right" not in page.url
