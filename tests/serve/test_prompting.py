"""Chats in the format that a model was tuned with."""

import pytest

from meditune.config.data_options import PromptFormat
from meditune.serve.chat_prompts import Prompts, Turn
from tests import tiny


@pytest.mark.parametrize(("cue", "last"), [("In plain words:", "In plain words:"), (None, "Conclusion:")])
def test_a_chat_asks_for_plain_words_where_the_model_knows_a_cue_for_them(cue, last):
    prompts = Prompts(tiny.tokenizer(), PromptFormat(plain_cue=cue), 1000)
    earlier = [Turn("user", "What is gout?"), Turn("assistant", "A disease.")]
    text = prompts.tokenizer.decode(prompts.chat([*earlier, Turn("user", "Does it hurt?")]))
    assert text == f"Question: What is gout?\n{last} A disease.\nQuestion: Does it hurt?\n{last}"


def test_a_message_that_ends_in_any_of_the_cues_is_a_prompt_already():
    prompts = Prompts(tiny.tokenizer(), PromptFormat(plain_cue="In plain words:"), 1000)
    for cue in ("Conclusion:", "Answer:", "In plain words:"):
        asked = f"Question: Does it hurt?\n{cue}"
        assert prompts.tokenizer.decode(prompts.chat([Turn("user", asked)])) == asked
    assert not prompts.in_format("Does it hurt?")
