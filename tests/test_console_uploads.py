"""Files brought into the console's course material in a browser: chosen, dropped, refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Route

from tests.browser import Classroom, held, in_browser, until_true
from tests.console_course import PHYSICS, drop, fixtures, following, opened
from tests.scripted_knowledge import ScriptedKnowledge, base, document

browser, knowledge, classroom = fixtures


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
def test_files_go_into_their_new_course_though_it_can_not_be_shown_yet(
    classroom: Classroom, knowledge: ScriptedKnowledge
) -> None:
    classroom.expected.append("ERR_FAILED")
    del knowledge.bases["physics-9"]
    page = opened(classroom)
    drop(page, "a.md", "b.md", on="#drop")
    page.fill("#base-title", "Optics")

    def lists_fail(route: Route) -> None:
        if route.request.method == "GET":
            route.abort()
        else:
            route.fallback()

    page.route("**/knowledge-bases", lists_fail)
    page.keyboard.press("Enter")
    until_true(page, lambda: len(knowledge.asked) == 3)
    into = [(path, name) for _, path, name in knowledge.asked[1:]]
    assert into == [("/optics/documents", "a.md"), ("/optics/documents", "b.md")]
    page.unroute("**/knowledge-bases")
    page.wait_for_selector("#docs .doc >> nth=1")
    assert page.inner_text("#base-name") == "Optics"


@in_browser
def test_what_waits_for_a_course_that_is_deleted_is_not_sent(
    classroom: Classroom, knowledge: ScriptedKnowledge
) -> None:
    classroom.expected.append("ERR_FAILED")
    page = opened(classroom)
    page.wait_for_selector("#base:not([hidden])")
    sending = held(page, f"**{PHYSICS}", lambda: drop(page, "a.md", "b.md", "c.md"))
    page.click("#base-delete")
    page.click("#sure .danger")
    page.wait_for_selector("#base", state="hidden")
    sending.abort()
    page.wait_for_selector(".upload[data-state=refused]:has-text('a.md')")
    page.wait_for_selector(".upload-rest", state="hidden")
    assert page.locator(".upload").count() == 1
    assert [asked[:2] for asked in knowledge.asked] == [("DELETE", "/physics-9")]


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
