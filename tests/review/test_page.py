"""The page in a real browser: rated by keyboard, reloaded, resumed, by two raters, on a phone.

The same page for checking data: with a text changed, and settled.
"""

from __future__ import annotations

import stat

import pytest

from meditune.data.reviewer_decisions import VERDICTS
from meditune.review.ratings_store import ADJUDICATION, Store
from tests.commands import meditune
from tests.review.known_ratings import (
    annotated_item,
    judge,
    key,
    made_annotation_set,
    made_rating_set,
    rate,
    right,
    served,
)

pytestmark = pytest.mark.browser


@pytest.fixture
def lay(tmp_path):
    """A set with three axes; two questions, so six answers."""
    return made_rating_set(tmp_path, 2)


def opened(browser, address, **options):
    context = browser.new_context(**options)
    page = context.new_page()
    page.problems = []
    page.on("console", lambda message: page.problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.goto(address)
    return page


def sign_in(page, name):
    page.get_by_label("Your name or initials").fill(name)
    page.keyboard.press("Enter")
    page.locator("#place").wait_for()


def saved(page):
    page.locator("#saved[data-state=saved]").wait_for()


def rows(folder, name=None):
    store = Store(folder)
    names = {id: rater.name for id, rater in store.raters().items()}
    return [r for r in store.ratings() if name in (None, names[r.rater])]


def test_a_whole_set_is_rated_by_keyboard_alone(browser, lay):
    with served(lay) as (_, address):
        page = opened(browser, address)
        sign_in(page, "A. B.")
        for number in range(1, 7):
            page.get_by_text(f"Answer {number} of 6").wait_for()
            for key in "120":
                page.keyboard.press(key)
            page.keyboard.press("Enter")
        page.get_by_role("heading", name="All done. Thank you.").wait_for()
        assert page.problems == []
    stored = rows(lay)
    assert len(stored) == 18
    assert {(r.axis, r.option) for r in stored} == {("intent", 1), ("helpfulness", 2), ("understandability", None)}
    assert all(0 <= r.seconds < 60 for r in stored)


def test_reloading_goes_on_where_it_was_and_a_killed_server_loses_nothing(browser, lay):
    with served(lay) as (process, address):
        page = opened(browser, address)
        sign_in(page, "A. B.")
        page.keyboard.press("1")
        page.keyboard.press("3")
        page.keyboard.press("c")
        page.keyboard.type("Too short, 1 of 2.")
        page.keyboard.press("Escape")
        saved(page)
        question = page.locator("#answer").inner_text()
        page.reload()
        page.locator("#place").wait_for()
        assert page.locator("#answer").inner_text() == question
        assert page.locator(".option[aria-pressed=true]").count() == 2
        assert page.locator(".axis.active").get_attribute("data-axis") == "understandability"
        assert page.get_by_label("Comment").input_value() == "Too short, 1 of 2."
        process.kill()
        process.wait()
        page.keyboard.press("2")
        page.get_by_text("Not saved yet").wait_for()
    assert {(r.axis, r.option) for r in rows(lay)} == {("intent", 1), ("helpfulness", 3)}
    with served(lay, "--port", address.rstrip("/").rpartition(":")[2]):
        saved(page)
    assert ("understandability", 2) in {(r.axis, r.option) for r in rows(lay)}


def test_the_same_name_goes_on_and_another_begins(browser, lay):
    with served(lay) as (_, address):
        first, second = opened(browser, address), opened(browser, address)
        sign_in(first, "Ann")
        sign_in(second, "Bo")
        for key in "111":
            first.keyboard.press(key)
        second.keyboard.press("2")
        saved(first)
        saved(second)
        again = opened(browser, address)
        sign_in(again, " ANN ")
        again.get_by_text("Answer 2 of 6").wait_for()
        again.get_by_text("1 finished").wait_for()
    assert [r.option for r in rows(lay, "Ann")] == [1, 1, 1]
    assert [r.option for r in rows(lay, "Bo")] == [2]


def test_undo_takes_back_across_answers(browser, lay):
    with served(lay) as (_, address):
        page = opened(browser, address)
        sign_in(page, "A")
        for key in ("1", "1", "1", "Enter"):
            page.keyboard.press(key)
        page.get_by_text("Answer 2 of 6").wait_for()
        page.keyboard.press("u")
        page.get_by_text("Answer 1 of 6").wait_for()
        page.get_by_text("1 of 3 still to rate for this answer").wait_for()
        page.keyboard.press("2")
        page.keyboard.press("u")
        saved(page)
        assert page.locator(".axis.active").get_attribute("data-axis") == "understandability"
    assert {r.axis for r in rows(lay)} == {"intent", "helpfulness"}


def test_keys_in_a_text_field_rate_nothing_and_markup_is_text(browser, tmp_path):
    answer = "<img src=x onerror=alert(1)> 5 < 6"
    folder = made_rating_set(tmp_path, 1, base={0: answer}, tuned={0: answer}, reference={0: answer})
    with served(folder) as (_, address):
        page = opened(browser, address)
        sign_in(page, "<b>A</b>")
        assert page.locator("#answer").inner_text() == answer
        page.get_by_label("Better answer").fill("12 mg?")
        page.get_by_label("Better answer").press("1")
        saved(page)
        page.get_by_label("Better answer").press("Escape")
        page.keyboard.press("?")
        page.get_by_role("dialog").wait_for()
        page.keyboard.press("1")
        page.keyboard.press("Escape")
        page.keyboard.press("s")
        assert page.get_by_text("We gave treatment 0").is_visible()
        assert page.problems == []
    assert rows(folder) == []
    (note,) = Store(folder).notes()
    assert (note.better, note.comment) == ("12 mg?1", "")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_everything_fits_and_can_be_touched(browser, tmp_path, scheme):
    long = dict.fromkeys(range(2), "A-word-without-any-space" * 12)
    folder = made_rating_set(tmp_path, 2, "expert", base=long)
    with served(folder) as (_, address):
        viewport = {"width": 400, "height": 800}
        page = opened(browser, address, viewport=viewport, has_touch=True, color_scheme=scheme)
        sign_in(page, "A")
        options = page.locator(".option")
        for number in range(12):
            page.locator(".axis").nth(number).locator(".option").first.tap()
        assert page.evaluate("document.documentElement.scrollWidth") <= 400
        assert min(box["height"] for box in (options.nth(n).bounding_box() for n in range(8))) >= 44
        page.get_by_role("button", name="Next").tap()
        page.get_by_text("Answer 2 of 6").wait_for()
        assert page.problems == []
        assert page.evaluate(_CONTRAST) >= 4.5
    assert len(rows(folder)) == 12


def test_disputes_are_settled_by_one_who_sees_what_was_chosen(browser, tmp_path):
    folder = made_rating_set(tmp_path, 2)
    rate(folder, "Ann", lambda n, _: 1 + n, only=("helpfulness", "intent"))
    rate(folder, "Bo", lambda n, _: 2 - n, only=("helpfulness",))
    with served(folder, "--adjudicate") as (_, address):
        page = opened(browser, address)
        page.get_by_role("heading", name="Settling disagreements").wait_for()
        sign_in(page, "Chief")
        assert page.locator(".axis").count() == 1
        assert page.locator(".option", has_text="chosen by 1").count() == 2
        for number in range(1, 7):
            page.get_by_text(f"Answer {number} of 6").wait_for()
            page.keyboard.press("3")
            page.keyboard.press("Enter")
        page.get_by_role("heading", name="All done. Thank you.").wait_for()
        assert page.problems == []
    settled = [r for r in rows(folder, "Chief") if r.round == ADJUDICATION]
    assert [r.option for r in settled] == [3] * 6


_CONTRAST = """() => {
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = (text) => rgb(text).slice(0, 3).map((c) => c / 255)
    .map((c) => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (node) => {
    const own = getComputedStyle(node).backgroundColor;
    return rgb(own)[3] === 0 ? (node.parentElement ? ground(node.parentElement) : "rgb(255,255,255)") : own;
  };
  const shown = [...document.querySelectorAll("h1, p, label, legend, button, span, kbd, summary")]
    .filter((n) => n.checkVisibility() && n.textContent.trim() && !n.closest(":disabled"));
  return Math.min(...shown.map((n) => {
    const [a, b] = [light(getComputedStyle(n).color), light(ground(n))].sort((x, y) => y - x);
    return (a + 0.05) / (b + 0.05);
  }));
}"""


def test_a_token_is_asked_for_beyond_this_machine(browser, lay):
    with served(lay, "--host", "0.0.0.0") as (_, address):
        base, _, fragment = address.partition("#")
        local = f"http://127.0.0.1:{base.rstrip('/').rpartition(':')[2]}/"
        assert fragment.startswith("token=")
        without = opened(browser, local)
        without.get_by_text("Open the page with the URL that the server printed when it started.").wait_for()
        page = opened(browser, f"{local}#{fragment}")
        sign_in(page, "A")
        assert "token" not in page.url
        page.reload()
        page.locator("#place").wait_for()


def test_a_restart_keeps_the_link_and_a_refused_rating_waits_for_the_new_one(browser, lay):
    with served(lay, "--host", "0.0.0.0") as (process, address):
        base, _, fragment = address.partition("#")
        port = base.rstrip("/").rpartition(":")[2]
        page = opened(browser, f"http://127.0.0.1:{port}/#{fragment}")
        sign_in(page, "A")
        page.keyboard.press("1")
        saved(page)
        process.kill()
        process.wait()
        page.keyboard.press("2")
        page.get_by_text("Not saved yet").wait_for()
    assert stat.S_IMODE((lay / "token.txt").stat().st_mode) == 0o600
    with served(lay, "--host", "0.0.0.0", "--port", port) as (_, again):
        assert again == address
        saved(page)
    (lay / "token.txt").unlink()
    with served(lay, "--host", "0.0.0.0", "--port", port) as (_, changed):
        assert changed != address
        page.keyboard.press("3")
        page.get_by_text("Not saved yet, only stored in this browser. Open the page with the URL").wait_for()
        page.keyboard.press("ArrowUp")
        page.keyboard.press("1")
        page.locator("#saved[data-state=refused]").wait_for()
        assert len(rows(lay)) == 2
        page.goto(f"http://127.0.0.1:{port}/#{changed.partition('#')[2]}")
        saved(page)
    assert {(r.axis, r.option) for r in rows(lay)} == {("intent", 1), ("helpfulness", 1), ("understandability", 3)}


CONTEXT = {
    "context": lambda n: f"Study {n} looked at many people.",
    "decision": lambda _: "yes",
    "url": lambda n: f"https://example.org/{n}",
}


def said(folder, name):
    """Verdict of each row by a rater."""
    store = Store(folder)
    rater = store.rater(name).id
    return {key(folder)[r.item].example: VERDICTS[r.option - 1] for r in store.ratings(rater) if r.option}


def test_rows_are_judged_by_keys_with_all_there_is_to_know_in_sight(browser, tmp_path):
    folder = made_annotation_set(tmp_path, 5, CONTEXT)
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
    folder = made_annotation_set(tmp_path, 3)
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
    folder = made_annotation_set(tmp_path, 4, CONTEXT, raters=2, overlap=1)
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
    folder = made_annotation_set(tmp_path, 3)
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
    assert {r.item for r in store.ratings() if r.round == ADJUDICATION} == {
        annotated_item(folder, 0),
        annotated_item(folder, 1),
    }
    done = meditune("annotate", "import", folder, "-o", tmp_path / "decisions.jsonl")
    assert "3 rows decided, 0 undecided" in done.out
    assert '"answer": "Another text."' in (tmp_path / "decisions.jsonl").read_text()
