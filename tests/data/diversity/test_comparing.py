"""Two sets side by side."""

from meditune.data.diversity.coverage import compared
from tests.data.diversity.examples import example


def test_what_changed_is_told_largest_first():
    before = [example(n, source="big" if n < 80 else "small") for n in range(100)]
    after = [each for number, each in enumerate(before) if number >= 60]
    told = compared(before, after, seed=1)
    assert (told["examples"], told["gone"], told["new"]) == ([100, 40], 60, 0)
    source = told["dimensions"]["source"]
    assert source["groups"][0] in (
        {"group": "big", "before": 80.0, "after": 50.0},
        {"group": "small", "before": 20.0, "after": 50.0},
    )
    assert source["distance"] == 0.3
    assert source["effective"][0] < source["effective"][1] == 2.0


def test_the_larger_set_is_drawn_down_before_its_topics_are_counted():
    before = [example(n, meta={"focus": f"disease {n}"}) for n in range(200)]
    told = compared(before, before[:20], seed=1)["dimensions"]["focus"]
    assert told["effective"] == [20.0, 20.0]
