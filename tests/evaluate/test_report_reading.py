"""The scale of school grades in the report."""

import pytest

from meditune.evaluate.report.run_sections import reading
from tests.evaluate.test_report import finished_run, shown

SPREAD = {
    "texts": 9, "empty": 0, "p10": 9.0, "p25": 10.0, "median": 12.0, "p75": 14.0, "p90": 26.0,
    "below": 0.0, "inside": 11.1, "above": 88.9, "unexplained": [["COPD", 4], ["dyspnea", 2]],
}  # fmt: skip


def report(**changes):
    return {"readability": {"base": SPREAD, "tuned": SPREAD | changes, "references": SPREAD}}


def test_the_scale_holds_every_strip_and_orders_its_places():
    found = reading(report(median=7.0, p25=6.0, p10=-3.0))
    tuned = found["strips"][1]
    assert tuned.most == (0, 100)
    assert 0 < tuned.middle[0] < tuned.place < tuned.middle[1] < 100
    assert found["band"][0] < tuned.place < found["band"][1], "grade 7 lies in the band from 6 to 8"


def test_the_page_shows_medians_targets_terms_and_empty_answers(tmp_path):
    page = shown(finished_run(tmp_path, **report(median=7.3, empty=3)))
    section = page.partition("How hard the answers are to read")[2]
    assert "Tuned model" in section
    assert "7.3" in section
    assert "tuned model 11 %" in section
    assert "Tuned model 3" in section
    assert "COPD and dyspnea" in section


@pytest.mark.parametrize("found", [{}, {"readability": {"base": {"texts": 2, "empty": 2}}}])
def test_without_answers_there_is_no_section(tmp_path, found):
    assert "How hard the answers" not in shown(finished_run(tmp_path, **found))
