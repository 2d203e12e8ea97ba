"""What a training reads of each source, in tokens."""

import pytest

from meditune.config.data_options import PromptFormat
from meditune.config.training_options import ReplaySpec, TrainSpec
from meditune.data.example import Example
from meditune.models.shared_prefix_batch import rows_of
from meditune.train.dataset import TokenWeights
from meditune.train.replay import plan_replay
from meditune.train.trainer import plan_steps
from meditune.train.training_plan import facts, mixture, said
from tests import tiny


@pytest.fixture(scope="module")
def made():
    encoder = tiny.loaded().encoder(PromptFormat(max_tokens=256, answer_tokens=64))
    examples = [
        Example(
            id=str(n),
            source="long" if n < 4 else "short",
            group=str(n),
            question=f"Does drug {n} help?",
            answer="It helps most people. " * (8 if n < 4 else 1),
        )
        for n in range(16)
    ]
    return examples, rows_of([encoder.supervised(example, "answer") for example in examples])


def test_every_token_that_is_read_is_counted_once(made):
    examples, rows = made
    spec = TrainSpec(batch_size=4, accumulation=1, epochs=2, replay=ReplaySpec(share=0.2))
    steps = plan_steps(len(rows), spec, 1)
    replay = plan_replay(rows[:2], steps, TokenWeights(examples, rows, spec), spec.replay, 1)
    told = facts(mixture(rows, [example.source for example in examples], steps, replay))
    assert [part["source"] for part in told] == ["long", "short", "replay (self)"]
    read = [rows[index] for step in steps for index in step] + [
        row for n in range(len(steps)) for row in replay.step(n)
    ]
    assert sum(part["tokens"] for part in told) == sum(map(len, read))
    assert sum(part["supervised_tokens"] for part in told) == sum(len(row.targets) for row in read)
    assert [part["visits"] for part in told] == [8, 24, 8]
    assert [part["passes"] for part in told] == [2, 2, 4]
    assert sum(part["token_share"] for part in told) == pytest.approx(1, abs=1e-3)
    assert told[0]["supervised_share"] > told[0]["token_share"], "most of a long answer's row is trained on"


def test_a_training_that_ended_early_counts_what_it_did(made):
    examples, rows = made
    steps = plan_steps(len(rows), TrainSpec(batch_size=4, accumulation=1, epochs=3), 1)
    parts = mixture(rows, [example.source for example in examples], steps[:2], None)
    assert sum(part.visits for part in parts) == 8
    short = next(part for part in parts if part.source == "short")
    line = next(line for line in said(parts) if line.startswith("short: "))
    assert line.startswith(f"short: {short.visits} rows ({round(short.visits / 12, 2):g} passes over its 12), ")
