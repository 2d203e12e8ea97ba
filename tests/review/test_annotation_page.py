"""Checking data in a real browser: by keyboard, with a text changed, resumed, on a phone, and settled."""

from __future__ import annotations

import pytest

from meditune.data.reviewer_decisions import VERDICTS
from meditune.review.ratings_store import ADJUDICATION, Store
from tests.commands import meditune
from tests.review.annotation_sets import item_of, judge, key, made, right
from tests.review.browser import chromium
from tests.review.runs import served
from tests.review.test_page import opened, saved, sign_in

pytestmark = pytest.mark.browser
CONTEXT = {
    "context": lambda n: f"Study {n} looked at many people.",
    "decision": lambda _: "yes",
    "url": lambda n: f"https://example.org/{n}",
}


@pytest.fixture(scope="module")
def browser():
    with chromium() as made_:
        yield made_


def said(folder, name):
    """Verdict of each row by a rater."""
    store = Store(folder)
    rater = store.rater(name).id
    return {key(folder)[r.item].example: VERDICTS[r.option - 1] for r in store.ratings(rater) if r.option}


def test_rows_are_judged_by_keys_with_all_there_is_to_know_in_sight(browser, tmp_path):
    folder = made(tmp_path, 5, CONTEXT)
    with served(folder, command="annotate") as (_, address):
        page = opened(browser, address)
        page.get_by_role("heading", name="Checking data").wait_for()
        assert page.get_by_text("Never enter a patient's name").is_visible()
        sign_in(page, "rater-1")
        for number, digit in enumerate("12345", start=1):
            page.get_by_text(f"Answer {number} of 5").wait_for()
            assert page.locator("#passages").get_by_text("looked at many people").is_visible()
            assert page.get_by_text("Decision: yes").is_visible()
            assert page.get_by_text("Never enter information about a real patient.").is_visible()
            link = page.get_by_role("link", name="table.jsonl")
            assert link.get_attribute("href").startswith("https://example.org/")
            page.keyboard.press(digit)
            assert page.locator(".option:focus").get_attribute("data-option") == digit
            page.keyboard.press("Enter")
        page.get_by_role("heading", name="All done. Thank you.").wait_for()
        assert page.problems == []
    assert sorted(said(folder, "rater-1").values()) == sorted(VERDICTS)


def test_a_changed_text_is_kept_and_an_unchanged_one_is_none(browser, tmp_path):
    folder = made(tmp_path, 3)
    with served(folder, command="annotate") as (process, address):
        page = opened(browser, address)
        sign_in(page, "rater-1")
        text = page.locator("#answer").inner_text()
        assert page.get_by_label("Explanation").is_hidden()
        page.keyboard.press("b")
        field = page.get_by_label("Explanation")
        assert field.input_value() == text
        page.keyboard.type("In short: 3 ")
        page.keyboard.press("Escape")
        saved(page)
        (note,) = Store(folder).notes()
        assert note.better == f"In short: 3 {text}"
        page.reload()
        page.locator("#place").wait_for()
        assert field.input_value() == f"In short: 3 {text}"
        page.get_by_role("button", name="Restore original").click()
        page.locator("#edit").wait_for(state="hidden")
        saved(page)
        assert Store(folder).notes() == []
        assert Store(folder).ratings() == [], "digits in a text judge nothing"
        process.kill()
        process.wait()
        page.keyboard.press("Escape")
        page.keyboard.press("3")
        page.get_by_text("Not saved yet").wait_for()
    with served(folder, "--port", address.rstrip("/").rpartition(":")[2], command="annotate"):
        saved(page)
    assert list(said(folder, "rater-1").values()) == ["wrong"]


def test_on_a_phone_two_raters_judge_with_their_thumbs(browser, tmp_path):
    folder = made(tmp_path, 4, CONTEXT, raters=2, overlap=1)
    with served(folder, command="annotate") as (_, address):
        for name in ("rater-1", "rater-2"):
            page = opened(browser, address, viewport={"width": 390, "height": 844}, has_touch=True)
            sign_in(page, name)
            for number in (1, 2):
                page.get_by_text(f"Answer {number} of 2").wait_for()
                option = page.locator(".option").nth(1)
                assert option.bounding_box()["height"] >= 44
                option.tap()
                assert page.evaluate("document.documentElement.scrollWidth") <= 390
                page.get_by_role("button", name="Next" if number == 1 else "Finish").tap()
            page.get_by_role("heading", name="All done. Thank you.").wait_for()
            assert page.problems == []
    assert [len(said(folder, name)) for name in ("rater-1", "rater-2")] == [2, 2]
    assert set(said(folder, "rater-1")).isdisjoint(said(folder, "rater-2"))


def test_disputes_are_settled_on_the_same_page_with_what_was_written(browser, tmp_path):
    folder = made(tmp_path, 3)
    judge(folder, "rater-1", right, n1="One text.")
    judge(folder, "rater-2", lambda _, row: "wrong" if row.example == "own:0" else "correct", n1="Another text.")
    with served(folder, "--adjudicate", command="annotate") as (_, address):
        page = opened(browser, address)
        page.get_by_role("heading", name="Settling disagreements").wait_for()
        sign_in(page, "rater-3")
        page.get_by_text("Answer 1 of 2").wait_for()
        assert page.locator(".option", has_text="chosen by 1").count() == 2
        assert not page.get_by_text("rater-1").count()
        page.keyboard.press("3")
        page.keyboard.press("Enter")
        page.get_by_text("Answer 2 of 2").wait_for()
        assert page.locator(".option", has_text="chosen by 2").count() == 1
        page.locator("#written p", has_text="Another text.").wait_for()
        page.get_by_role("button", name="Use this text").nth(1).click()
        page.keyboard.press("Escape")
        page.keyboard.press("1")
        page.keyboard.press("Enter")
        page.get_by_role("heading", name="All done. Thank you.").wait_for()
        assert page.problems == []
    store = Store(folder)
    assert {r.item for r in store.ratings() if r.round == ADJUDICATION} == {item_of(folder, 0), item_of(folder, 1)}
    done = meditune("annotate", "import", folder, "-o", tmp_path / "decisions.jsonl")
    assert "3 rows decided, 0 undecided" in done.out
    assert '"answer": "Another text."' in (tmp_path / "decisions.jsonl").read_text()
