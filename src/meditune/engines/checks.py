"""What no engine can do, said before a job begins."""

from __future__ import annotations

from meditune.engines.engine import Job
from meditune.errors import ModelError


def refuse_unfit(job: Job, context_tokens: int) -> None:
    """Raise ModelError where a job has no prompt, or too long a one to answer in the context."""
    if not job.prompt:
        raise ModelError("There is no prompt: an engine needs at least one token to go on from.")
    if job.max_new_tokens < 1:
        raise ModelError(f"An answer needs at least 1 token; {job.max_new_tokens} were asked for.")
    if job.choices and job.json_schema is not None:
        raise ModelError("An answer is one of given texts or JSON, not both.")
    if not 0 < job.top_p <= 1 or job.temperature < 0:
        raise ModelError(
            f"temperature must be at least 0 and top_p above 0 and at most 1; they are {job.temperature:g} and "
            f"{job.top_p:g}."
        )
    excess = len(job.prompt) + job.max_new_tokens - context_tokens
    if excess > 0:
        raise ModelError(
            f"The prompt has {len(job.prompt):,} tokens and the answer may have {job.max_new_tokens:,}; together that "
            f"is {excess:,} more than the {context_tokens:,} that this model takes. Shorten one of them."
        )


def refuse_unscorable(prompt: int, longest: int, context_tokens: int) -> None:
    """Raise ModelError where texts can't be scored after a prompt of so many tokens."""
    if not prompt:
        raise ModelError("Texts are scored after at least one token of prompt; there is none.")
    if prompt + longest > context_tokens:
        raise ModelError(
            f"Prompt and text have {prompt + longest:,} tokens, {prompt + longest - context_tokens:,} more than the "
            f"{context_tokens:,} that this model takes."
        )
