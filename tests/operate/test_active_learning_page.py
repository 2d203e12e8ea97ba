"""A queue worked in a real browser, up to the rows that come out of it."""

from __future__ import annotations

import pytest

from meditune.operate.active_learning.annotation_queue import rows
from tests.commands import meditune
from tests.operate.active_learning_material import store
from tests.review.browser import chromium
from tests.review.runs import served
from tests.review.test_page import opened, saved, sign_in

pytestmark = pytest.mark.browser


def test_an_expert_labels_by_keys_and_writes_what_is_missing(tmp_path):
    folder = tmp_path / "set"
    words = ("learn", "queue", store(tmp_path / "store"), "-o", folder, "--strategy", "feedback")
    assert meditune(*words).code == 0
    assert meditune("learn", "queue", tmp_path / "store", "-o", tmp_path / "all", "--strategy", "random").code == 0
    with chromium() as browser, served(folder, command="annotate") as (_, address):
        page = opened(browser, address)
        sign_in(page, "expert")
        for _ in range(2):
            page.get_by_text("2 of 2 still to rate for this answer.").wait_for()
            if page.get_by_role("heading", name="Can children have migraine?").is_visible():
                assert page.get_by_text("Yes, they can have it as well.").is_visible(), "the user's correction is shown"
                page.keyboard.press("1")  # yes
                page.keyboard.press("3")  # wrong
                page.keyboard.press("b")
                page.locator("#better").fill("Children can have migraine, too.")
                page.keyboard.press("Escape")
            else:
                page.keyboard.press("3")  # maybe
                page.keyboard.press("1")  # correct
            saved(page)
            page.keyboard.press("Enter")
        page.get_by_role("heading", name="All done. Thank you.").wait_for()
        assert page.problems == []
    found = {row["id"]: (row["decision"], row["answer"]) for row in rows(folder).rows}
    assert found == {
        "answers:corrected": ("yes", "Children can have migraine, too."),
        "answers:disliked": ("maybe", "It helps."),
    }


def test_a_question_without_an_answer_asks_for_no_verdict(tmp_path):
    folder = tmp_path / "set"
    words = ("learn", "queue", store(tmp_path / "store"), "-o", folder, "--strategy", "uncertainty")
    assert meditune(*words).code == 0
    with chromium() as browser, served(folder, command="annotate") as (_, address):
        page = opened(browser, address)
        sign_in(page, "expert")
        while not page.get_by_role("heading", name="How is rabies treated?").is_visible():
            page.keyboard.press("ArrowRight")
            page.wait_for_timeout(200)
        assert page.locator("#axes .axis").count() == 1
        page.keyboard.press("4")  # neither
        page.keyboard.press("b")
        page.locator("#better").fill("By vaccination at once.")
        page.keyboard.press("Escape")
        saved(page)
    assert [(row["decision"], row["answer"]) for row in rows(folder).rows] == [("", "By vaccination at once.")]
