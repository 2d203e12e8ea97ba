"""Continuous batching by OpenVINO GenAI's pipeline: paged keys and values, beginnings shared between prompts."""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np

from meditune.engines.answer import Answer
from meditune.engines.choices import Choices, chosen_by
from meditune.engines.engine import Job, Likely
from meditune.engines.exported import Exported
from meditune.engines.installed import package
from meditune.engines.openvino_scoring import KERNELS, MOST_KERNELS, Scorer
from meditune.errors import ModelError
from meditune.files import read_json
from meditune.machine import give_back_memory

CACHE_BYTES = 256_000_000
"""Keys and values of all prompts and answers together; more where one of full length would need it"""
BLOCK = 32
"""Tokens that are given memory together, on a CPU"""
READ_TOKENS = 512
"""Tokens that one step reads"""


class OpenvinoBatch:
    """Up to `at_once` answers (worker.py calls it)."""

    def __init__(self, model: Exported, tokenizer: Any, at_once: int, scores: bool = False) -> None:
        self._genai = package("openvino", "openvino_genai")
        self._tensor = package("openvino", "openvino").Tensor
        self.model, self.tokenizer, self.at_once = model, tokenizer, at_once
        self.running: list[Answer] = []
        self._handles: dict[int, Any] = {}
        self._number = 0
        self._scorer: Scorer | None = None
        settings = self._genai.SchedulerConfig()
        settings.num_kv_blocks = _blocks(model)
        settings.enable_prefix_caching = True
        settings.dynamic_split_fuse = True
        settings.max_num_batched_tokens = READ_TOKENS
        settings.max_num_seqs = at_once
        try:
            # A thread in which OpenVINO compiles a model or lets go of one is left with a stack for signals that is
            # soon freed (sigaltstack(2)). In the main thread, which hears signals, the next ctrl-C would end in a
            # segmentation fault.
            with ThreadPoolExecutor(2, thread_name_prefix="meditune-openvino") as threads:
                scorer = threads.submit(Scorer, model.folder) if scores else None
                pipeline = threads.submit(
                    self._genai.ContinuousBatchingPipeline,
                    str(model.folder),
                    settings,
                    "CPU",
                    {KERNELS: MOST_KERNELS},
                )
            self._pipeline: Any = pipeline.result()
            self._scorer = scorer.result() if scorer else None
        except RuntimeError as error:
            raise ModelError(
                f"OpenVINO can't open {model.folder}: {_first_line(error)}. Export the model again, with the OpenVINO "
                "that is installed here."
            ) from error

    @contextmanager
    def inside(self) -> Iterator[None]:
        """The thread that works with the model lets go of it, for the reason that is given where it is opened."""
        try:
            yield
        finally:
            self._handles.clear()
            self._pipeline = self._scorer = None

    @property
    def scorer(self) -> Scorer:
        """The model once more, compiled when texts are first scored."""
        if self._scorer is None:
            self._scorer = Scorer(self.model.folder)
            give_back_memory()
        return self._scorer

    def chosen(self, waiting: deque[Answer]) -> list[Answer]:
        """Those that have waited longest."""
        return [waiting.popleft() for _ in range(min(len(waiting), self.at_once - len(self.running)))]

    def join(self, answers: list[Answer]) -> None:
        """Hand prompts to the pipeline; one of given texts is chosen by how likely each is."""
        for answer in answers:
            if answer.job.choices:
                self._choose(answer)
                continue
            tokens = np.array([answer.job.prompt], dtype=np.int64)
            self._number += 1
            self._handles[id(answer)] = self._pipeline.add_request(
                self._number, self._tensor(tokens), self._settings(answer.job)
            )
            self.running.append(answer)

    def step(self) -> None:
        """One step of the pipeline, and what came of it."""
        self._leave()
        if self._pipeline.has_non_finished_requests():
            self._pipeline.step()
        for answer in self.running:
            self._read(answer)
        self._leave()

    def clear(self) -> None:
        """Forget everything that runs."""
        for answer in self.running:
            self._handles.pop(id(answer)).cancel()
        self.running = []
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()

    def _read(self, answer: Answer) -> None:
        handle = self._handles[id(answer)]
        while handle.can_read() and not answer.ended:
            for output in handle.read().values():
                self._take(answer, output)
        status = handle.get_status()
        if not answer.ended and status == self._genai.GenerationStatus.IGNORED:
            answer.fail(ModelError("The engine has no memory left for this prompt. Ask for a shorter answer."))
        elif not answer.ended and status == self._genai.GenerationStatus.FINISHED:
            answer.end()

    def _take(self, answer: Answer, output: Any) -> None:
        for token, logprob in zip(output.generated_ids, output.generated_log_probs, strict=True):
            if token in self.model.stop_tokens:
                answer.end()
                return
            answer.take(token, self._likely(answer.job, token, logprob))
            if answer.ended:
                return

    def _leave(self) -> None:
        for answer in list(self.running):
            if answer.cancelled:
                answer.end("cancelled")
            if answer.ended:
                handle = self._handles.pop(id(answer))
                if handle.get_status() == self._genai.GenerationStatus.RUNNING:
                    handle.stop()
                self.running.remove(answer)

    def _choose(self, answer: Answer) -> None:
        end = self.model.stop_tokens[0]
        texts = Choices(self.tokenizer, answer.job.choices, end).texts
        scored = self.scorer.score(answer.job.prompt, [[*text, end] for text in texts])
        for likely in chosen_by(scored, answer.job):
            answer.take(likely.token, likely if answer.job.logprobs else None)
            if answer.ended:
                break
        answer.end()

    def _settings(self, job: Job) -> Any:
        settings = self._genai.GenerationConfig()
        settings.max_new_tokens = job.max_new_tokens
        settings.eos_token_id = self.model.stop_tokens[0]
        settings.stop_token_ids = set(self.model.stop_tokens)
        settings.logprobs = 1 if job.logprobs else 0
        settings.do_sample = job.temperature > 0
        if settings.do_sample:
            settings.temperature, settings.top_p = max(job.temperature, 1e-4), job.top_p
            settings.rng_seed = (job.seed if job.seed is not None else np.random.default_rng().integers(2**31)) % 2**31
        if job.json_schema is not None:
            schema = json.dumps(job.json_schema)
            settings.structured_output_config = self._genai.StructuredOutputConfig(json_schema=schema)
        return settings

    @staticmethod
    def _likely(job: Job, token: int, logprob: float) -> Likely | None:
        if not job.logprobs:
            return None
        return Likely(token, logprob, {token: logprob} if job.temperature == 0 else {})


def _blocks(model: Exported) -> int:
    """How many blocks of keys and values in 8 bits have room in memory."""
    config = read_json(model.folder / "config.json")
    config = config.get("text_config", config)
    heads = config.get("num_key_value_heads") or config["num_attention_heads"]
    size = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    # Each head's row of numbers has a scale and a zero point, 4 bytes each.
    token: int = 2 * config["num_hidden_layers"] * heads * (size + 8)
    return max(CACHE_BYTES // (token * BLOCK), math.ceil(model.context_tokens / BLOCK) + 1)


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
