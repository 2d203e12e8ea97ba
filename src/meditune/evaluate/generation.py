"""Writing answers: greedy decoding of many prompts at once."""

from __future__ import annotations

from collections.abc import Sequence

from meditune.evaluate.likelihood import not_finite
from meditune.models.continuing import batch_size
from meditune.models.greedy import Greedy, NotFiniteError
from meditune.models.inference import inference
from meditune.models.load import LoadedModel
from meditune.models.virtual import virtual_tokens
from meditune.progress import Progress
from meditune.prompts import Encoded


def generate(
    loaded: LoadedModel, prompts: Sequence[Encoded], max_new_tokens: int, label: str, once: int | None = None
) -> dict[str, str]:
    """The greedy continuation of each prompt up to its end token, by example id.

    With `once`, sequences of so many tokens come only once in each.
    Raises ModelError where the model's logits aren't finite.
    """
    written: dict[str, str] = {}
    texts = [item.prompt for item in prompts]
    longest = max(map(len, texts), default=0) + virtual_tokens(loaded.model)
    end = loaded.tokenizer.eos_token_id
    at_once = batch_size(longest, max_new_tokens, loaded.model)
    with inference(loaded.model, few_rows=True), Progress(label, len(prompts), "answers") as progress:
        try:
            greedy = Greedy(loaded.model, texts, max_new_tokens, end, loaded.pad_id, at_once, once)
            for index, ids in greedy.texts():
                written[prompts[index].id] = loaded.tokenizer.decode(ids, skip_special_tokens=True).strip()
                progress.advance()
        except NotFiniteError as error:
            raise not_finite(prompts[error.prompt].id, loaded) from None
    return written
