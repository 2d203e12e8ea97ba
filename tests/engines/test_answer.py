"""A job has one last piece, whatever is told of it afterwards."""

from meditune.engines.engine import Job
from meditune.engines.scheduler import Answer
from tests import tiny


def test_nothing_comes_after_the_last_piece():
    pieces = []
    answer = Answer(Job([5], 1), pieces.append, tiny.tokenizer())
    for token in (30, 40, 50):
        answer.take(token)
    answer.end()
    answer.fail(RuntimeError())
    assert [piece.finish for piece in pieces] == ["length"]
