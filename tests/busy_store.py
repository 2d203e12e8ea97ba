"""A store of a service that has been asked a lot."""

import json
import time

import numpy as np

from meditune.store import open_store
from meditune.store.overview import Notes

MARKUP = "<img src=x onerror=\"document.title='hacked'\"><script>document.title='hacked'</script>"
ALERT = {
    "id": "abc-novelty-90",
    "signal": "novelty",
    "about": "inputs",
    "title": "Distance to the nearest known questions",
    "what": "",
    "said": f"Distance: farther, median 0.2 before and 0.5 now {MARKUP}.",
    "severity": "large",
    "effect": 0.61,
    "effect_name": "Cliff's delta",
    "since": 12_040,
    "since_id": "ask-1",
    "opened": 12_090,
    "evidence": {
        "examples": [{"id": "ask-2", "question": f"What is {MARKUP} for?", "value": 0.7}],
        "groups": [
            {
                "name": f"vaccine {MARKUP}",
                "questions": 31,
                "share": 0.2,
                "distance": 0.6,
                "examples": [{"id": "ask-3", "question": "Is the new vaccine safe?"}],
            }
        ],
    },
}
SIGNALS = {
    "novelty": {"title": ALERT["title"], "about": "inputs", "state": "open", "share": 1.0},
    "length": {"title": "Words in a question", "about": "inputs", "state": "quiet", "share": 0.31},
    "ratings": {"title": "Ratings up and down", "about": "outcomes", "state": "unknown", "share": 0.0},
}


def fill_busy_store(place, count=400, hours=23.5):
    """Answers of the last hours with feedback, a lost server, a drift alert and an update."""
    rng, now = np.random.default_rng(3), time.time()
    base = open_store(place)
    with base.changing() as connection:
        for number in range(count):
            outcome = str(rng.choice(["answered"] * 8 + ["abstained", "escalated"]))
            sentences = int(rng.integers(2, 6))
            total = float(rng.gamma(3, 0.6))
            facts = {
                "tokens": {"prompt": 400, "completion": int(rng.integers(40, 160))},
                "timings": {"total": total, "first_token": total / 4},
                "sentences": sentences,
                "supported": sentences - int(rng.random() < 0.2),
                "retrieval": float(rng.uniform(0.4, 0.9)),
            }
            version = "v1" if number < count // 2 else "v2"
            row = (
                f"a{number}",
                now - 3600 * hours * (1 - number / count),
                "ask",
                f"quickstart {version}",
                "c0ffee" * 6,
            )
            connection.execute(
                "INSERT INTO answers (id, time, who, route, model, index_content, outcome, facts) "
                "VALUES (?, ?, 'k', ?, ?, ?, ?, ?)",
                (*row, outcome, json.dumps(facts)),
            )
            if number % 9 == 0:
                values = (row[0], row[1], "up" if number % 27 else "down", "Better." if number % 2 else "", number % 2)
                connection.execute(
                    "INSERT INTO feedback (answer, who, time, rating, reasons, comment, correction, expert) "
                    "VALUES (?, 'k', ?, ?, '[]', '', ?, ?)",
                    values,
                )
    notes = Notes(base)
    served = {"model": "quickstart", "version": "v1", "index": "", "engine": "openvino int8", "started": now - 9e4}
    notes.put("server/gone", {"address": "http://10.0.0.9:8000/"} | served)
    with base.opened() as connection:
        connection.execute("UPDATE notes SET time = ? WHERE name = 'server/gone'", (now - 3000,))
    drift = {
        "reference": "/srv/drift/reference",
        "problem": "",
        "requests": 12_345,
        "signals": SIGNALS,
        "alerts": [ALERT],
    }
    notes.put(
        "drift/a", drift | {"unsent": ["Drift: novelty (large): not sent by webhook (HTTP 503); tried again later."]}
    )
    update = {"folder": "/srv/literature", "library": {"there": 5122, "retracted": 3}, "retracted": 1, "flagged": 2}
    notes.put("update/a", update | {"index": "beef" * 8, "failures": []})
    return base
