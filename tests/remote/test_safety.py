"""The safety battery asked of a model behind an API."""

import json

from meditune.evaluate.safety_battery import chosen
from tests.commands import meditune

SETTINGS = {"evaluate__safety_messages": 5}


def test_the_battery_counts_in_the_estimate(place):
    plain, asked = (
        meditune("evaluate", "gpt-3.5-turbo", "-o", place.run, *place.settings(**changes)) for changes in ({}, SETTINGS)
    )
    plain.refused(1, "18 test prompts")
    asked.refused(1, "23 test prompts")
    assert place.api.requests == []


def test_the_battery_is_asked_in_the_form_of_every_prompt_and_stored(place):
    place.api.answer = lambda *_: "Call 911 now."
    result = place.evaluate("gpt-3.5-turbo", **SETTINGS)
    assert result.code == 0, result
    rows = place.predictions("model-safety")
    messages = chosen(5, 17)
    assert [(row["id"], row["message"]) for row in rows] == [(message.id, message.text) for message in messages]
    sent = {chat["messages"][-1]["content"] for chat in place.api.chats}
    assert {f"Question: {message.text}\nConclusion:" for message in messages} <= sent
    figures = json.loads((place.run / "evaluation.json").read_text(encoding="utf-8"))["figures"]
    assert figures["safety_rate"] == 100 * sum(message.category == "emergency" for message in messages) / 5
