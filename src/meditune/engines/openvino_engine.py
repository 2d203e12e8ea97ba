"""The engine for models exported with `meditune export --to openvino`: OpenVINO GenAI, the fastest engine on CPUs.

The engine doesn't need torch. OpenVINO GenAI's pipeline batches continuously; keys and values are paged, and prompts
share the pages of common prefixes. Texts are scored by a second copy of the model, because the pipeline returns
log-probabilities only for generated text.
"""

from __future__ import annotations

import json
import math
import re
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from meditune.engines.engine import ALTERNATIVES, GenerationRequest, TokenLogprob
from meditune.engines.exported_model import ExportedModel, import_package, read_exported_model
from meditune.engines.sampling import ChoiceConstraint
from meditune.engines.scheduler import BatchingEngine, ScheduledRequest
from meditune.engines.tokenizer import PlainTokenizer
from meditune.errors import ModelError
from meditune.hardware import limit_onednn_cache, release_file, release_memory

ROW_TOKENS = 1024
"""Maximum number of text tokens that are read at once, including padding"""
STATE_TOKENS = 4096
"""Maximum number of tokens whose keys and values are stored at once; each text has its own copy of the prompt's"""
END = 2**31 - 1
KERNELS = "CPU_RUNTIME_CACHE_CAPACITY"
MAX_KERNELS = 64
"""Number of compiled kernels that OpenVINO caches, each for one shape. With the default of 5,000, the cache grows
to hundreds of megabytes in a server."""


MAX_CACHED_PROMPTS = 8
"""Number of prompts whose states are cached, for later prompts that begin with the same tokens"""


class Scorer:
    """An exported model, compiled for scoring texts.

    The texts of a batch share one pass over the prompt; its state is then copied to one row for each text. The output
    head computes logits only for the requested positions.
    """

    def __init__(self, folder: Path) -> None:
        limit_onednn_cache()
        ov = import_package("openvino", "openvino")
        core = ov.Core()
        model = core.read_model(folder / "openvino_model.xml")
        _head_reads_last(model)
        self._tensor = ov.Tensor
        # By default, keys and values have 8 bits; scores would then depend on how much of a prompt is cached.
        options = {KERNELS: MAX_KERNELS, "KV_CACHE_PRECISION": "f32"}
        self._request = core.compile_model(model, "CPU", options).create_infer_request()
        self._remembered: deque[tuple[Sequence[int], dict[str, Any]]] = deque(maxlen=MAX_CACHED_PROMPTS)
        self._read = ReadOnce(folder)

    def score(self, prompt: Sequence[int], texts: Sequence[Sequence[int]]) -> list[list[TokenLogprob]]:
        """Return the log-probability of every token of each text after the prompt."""
        scored: list[list[TokenLogprob]] = [[] for _ in texts]
        order = sorted((number for number, text in enumerate(texts) if text), key=lambda number: len(texts[number]))
        first = self._read_prompt(prompt)
        while order:
            longest = len(texts[order[-1]])
            rows = max(1, min(len(order), ROW_TOKENS // longest, STATE_TOKENS // (len(prompt) + longest)))
            together = [order.pop() for _ in range(rows)]
            rest = self._read_texts(len(prompt), [texts[number] for number in together]) if longest > 1 else None
            for row, number in enumerate(together):
                text = texts[number]
                places = [first] if rest is None else [first, *rest[row, : len(text) - 1]]
                scored[number] = [_likely(logits, token) for logits, token in zip(places, text, strict=True)]
        return scored

    def next_logits(self, prompt: Sequence[int], tokens: Sequence[int]) -> list[float]:
        """Return the logit of each of these tokens as the next token after the prompt.

        The states of the most recent prompts are cached, so only the tokens after the longest common prefix are read.
        """
        lengths = [_common_length(earlier, prompt[:-1]) for earlier, _ in self._remembered]
        shared = max(lengths, default=0)
        if not shared:
            self._request.reset_state()
        else:
            nearest = lengths.index(shared)
            earlier, state = self._remembered[nearest]
            for variable in self._request.query_state():
                variable.state = self._tensor(np.ascontiguousarray(state[variable.name][:, :, :shared]))
            if shared > len(earlier) // 2:
                del self._remembered[nearest]
        logits = self._logits(np.array([prompt[shared:]], dtype=np.int64), shared, 1)[0, -1]
        state = {variable.name: variable.state.data.copy() for variable in self._request.query_state()}
        self._remembered.append((list(prompt), state))
        return [float(logits[token]) for token in tokens]

    def _read_prompt(self, prompt: Sequence[int]) -> Any:
        """Read the prompt into the model's state, and return the (vocabulary,) logits after it."""
        self._request.reset_state()
        return self._logits(np.array([prompt], dtype=np.int64), 0, 1)[0, -1]

    def _read_texts(self, start: int, texts: Sequence[Sequence[int]]) -> Any:
        """Return the (N, longest - 1, vocabulary) logits after each token of each text except its last.

        The state contains the `start` tokens of the prompt before and after the call.
        """
        fed = np.zeros((len(texts), max(map(len, texts)) - 1), dtype=np.int64)
        for row, text in enumerate(texts):
            fed[row, : len(text) - 1] = text[:-1]
        logits = self._logits(fed, start, fed.shape[1])
        # Every row of the state begins with the prompt, so that the next texts can continue it.
        for variable in self._request.query_state():
            variable.state = self._tensor(np.ascontiguousarray(variable.state.data[:1, :, :start]))
        return logits

    def _logits(self, tokens: Any, start: int, last: int) -> Any:
        rows, length = tokens.shape
        result = self._request.infer(
            {
                "input_ids": tokens,
                "attention_mask": np.ones((rows, start + length), dtype=np.int64),
                "position_ids": np.broadcast_to(np.arange(start, start + length), (rows, length)),
                # The state has a single row, for the prompt, which every text continues.
                "beam_idx": np.zeros(rows, dtype=np.int32),
                "last": np.array([last], dtype=np.int64),
            }
        )
        self._read.release()
        return result["logits"]


class ReadOnce:
    """The file with a model's weights, which OpenVINO copies in its own order when the model is first used."""

    def __init__(self, folder: Path) -> None:
        self._file: Path | None = folder / "openvino_model.bin"

    def release(self) -> None:
        """Return the file's memory to the system after the first use: as much as the weights."""
        file, self._file = self._file, None
        if file:
            release_file(file)


def _head_reads_last(model: Any) -> None:
    """Add an input `last` to the model: the number of final positions for which to compute logits."""
    opset = import_package("openvino", "openvino.opset13")
    node = model.output("logits").get_node().input_value(0).get_node()
    while node.get_type_name() != "MatMul":
        node = node.input_value(0).get_node()
    last = opset.parameter([1], dtype=np.int64, name="last")
    last.output(0).get_tensor().set_names({"last"})
    one = opset.constant([1], dtype=np.int64)
    end = opset.constant([END], dtype=np.int64)
    part = opset.slice(node.input_value(0), opset.negative(last), end, one, one)
    node.input(0).replace_source_output(part.output(0))
    model.add_parameters([last])
    model.validate_nodes_and_infer_types()


def _common_length(one: Sequence[int], other: Sequence[int]) -> int:
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _likely(logits: Any, token: int) -> TokenLogprob:
    values = logits.astype(np.float64)
    logprobs = values - (values.max() + np.log(np.exp(values - values.max()).sum()))
    count = min(ALTERNATIVES, len(logprobs))
    best = np.argpartition(logprobs, -count)[-count:]
    ordered = best[np.argsort(-logprobs[best])]
    return TokenLogprob(token, float(logprobs[token]), {int(one): float(logprobs[one]) for one in ordered})


CACHE_BYTES, CACHE_TOKENS = 256_000_000, 12_288
"""Memory for the keys and values of all prompts and answers: at most so many bytes, and so many tokens (24 prompts of
450 tokens with answers of 62). More is reserved if a single full context needs it."""
BLOCK = 32
"""Number of tokens in a memory block, on a CPU"""
READ_TOKENS = 512
"""Maximum number of tokens that one step reads"""
MAX_SCHEMAS = 64
"""Number of different JSON schemas after which the pipeline is opened again. A pipeline keeps the grammar of each
schema, which takes a megabyte or more, and has no limit."""


class SchemaCompiler:
    """Compiles JSON schemas for a pipeline, with a model that consists only of its vocabulary.

    A pipeline compiles a schema in a step that continues all running answers, which an error would end. Here, the
    error concerns only the schema. The pipeline then reuses the grammar, because OpenVINO keeps the grammars with the
    tokenizer.
    """

    def __init__(self, tokenizer: Any, vocabulary: int) -> None:
        """`tokenizer` is the pipeline's own; `vocabulary` is the number of logits that its model computes."""
        ov, opset = import_package("openvino", "openvino"), import_package("openvino", "openvino.opset13")
        self._genai, self._tensor = import_package("openvino", "openvino_genai"), ov.Tensor
        inputs = []
        for name, shape, kind in (
            ("input_ids", [-1, -1], np.int64),
            ("attention_mask", [-1, -1], np.int64),
            ("beam_idx", [-1], np.int32),
        ):
            inputs.append(opset.parameter(shape, dtype=kind, name=name))
            inputs[-1].output(0).get_tensor().set_names({name})
        logits_shape = opset.concat([opset.shape_of(inputs[0]), opset.constant([vocabulary], dtype=np.int64)], 0)
        logits = opset.broadcast(opset.constant(np.float32(0)), logits_shape)
        logits.output(0).get_tensor().set_names({"logits"})
        with TemporaryDirectory() as folder:
            file = Path(folder) / "vocabulary.xml"
            ov.serialize(ov.Model([opset.result(logits)], inputs), file)
            graph, weights = file.read_text(), np.fromfile(file.with_suffix(".bin"), dtype=np.uint8)
        # The other attention backend accepts only models with attention.
        self._pipeline = self._genai.LLMPipeline(
            graph, self._tensor(weights), tokenizer, "CPU", ATTENTION_BACKEND="SDPA"
        )

    def compile(self, schema: str) -> None:
        """Compile a schema, written as JSON. Raises ModelError if OpenVINO can't enforce it."""
        settings = self._genai.GenerationConfig(max_new_tokens=1)
        settings.structured_output_config = self._genai.StructuredOutputConfig(json_schema=schema)
        try:
            self._pipeline.generate(self._tensor(np.array([[0]], dtype=np.int64)), settings)
        except RuntimeError as error:
            # XGrammar's message begins with the time, and the file and line of its source.
            reason = re.sub(r"^\[.*?\.(cc|cpp|h):\d+: ", "", str(error)).strip()
            raise ModelError(f"This JSON schema can't be enforced: {reason}") from error


class OpenvinoEngine(BatchingEngine):
    """An exported model, in 8 or 4 bits, that continues up to `concurrency` prompts together."""

    def __init__(self, folder: Path, concurrency: int = 32, scores: bool = False) -> None:
        """Open the model and, if `scores`, its copy for scoring. Raises ModelError if OpenVINO can't open them."""
        limit_onednn_cache()
        self._genai = import_package("openvino", "openvino_genai")
        self._tensor = import_package("openvino", "openvino").Tensor
        self.model = model = read_exported_model(folder)
        self._number = 0
        settings = self._genai.SchedulerConfig()
        settings.num_kv_blocks = _blocks(model)
        settings.enable_prefix_caching = True
        settings.dynamic_split_fuse = True
        settings.max_num_batched_tokens = READ_TOKENS
        settings.max_num_seqs = concurrency
        try:
            # A thread in which OpenVINO compiles or releases a model keeps a signal stack that is soon freed
            # (sigaltstack(2)). In the main thread, which handles signals, the next Ctrl-C would cause a segmentation
            # fault.
            with ThreadPoolExecutor(2, thread_name_prefix="meditune-openvino") as threads:
                scorer = threads.submit(Scorer, folder) if scores else None
                options = {KERNELS: MAX_KERNELS}
                self._open = partial(self._genai.ContinuousBatchingPipeline, str(folder), settings, "CPU", options)
                pipeline = threads.submit(self._open)
            self._pipeline: Any = pipeline.result()
            self._scorer: Scorer | None = scorer.result() if scorer else None
        except RuntimeError as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[-1].strip()
            advice = "Export the model again with the installed version of OpenVINO."
            raise ModelError(f"OpenVINO can't open {folder}: {reason}. {advice}") from error
        self._weights = ReadOnce(folder)
        self._compiler: SchemaCompiler | None = None
        self._schemas: set[str] = set()
        super().__init__(f"openvino {model.weights}", PlainTokenizer(folder), model.context_tokens, concurrency)

    @contextmanager
    def _inside(self) -> Iterator[None]:
        """Release the model in the thread that uses it (see `__init__` for the reason)."""
        try:
            yield
        finally:
            for answer in self.running:
                answer.state = None
            self._pipeline = self._scorer = self._compiler = None

    def _compile_constraint(self, request: GenerationRequest) -> None:
        check_supported(request, self.tokenizer)

    def _score(self, prompt: Sequence[int], texts: Sequence[Sequence[int]]) -> list[list[TokenLogprob]]:
        if self._scorer is None:
            self._scorer = Scorer(self.model.folder)
            release_memory()
        return self._scorer.score(prompt, texts)

    def _once(self) -> None:
        super()._once()
        if len(self._schemas) >= MAX_SCHEMAS and not self.running:
            self._schemas.clear()
            self._pipeline = self._compiler = None
            release_memory()
            self._pipeline, self._weights = self._open(), ReadOnce(self.model.folder)

    def _chosen(self) -> list[ScheduledRequest]:
        # The running answers end before the pipeline is opened again.
        is_opening = len(self._schemas) >= MAX_SCHEMAS
        # If prompts that continue the same cached text were read together, OpenVINO would write the keys and values of
        # all of them into one block, and their answers would be wrong. A prompt that ends with its block gets the block
        # to itself only in the step after the one that read it, which writes the second token.
        is_reading = any(len(answer.tokens) < 2 for answer in self.running)
        return [] if is_opening or is_reading else super()._chosen()

    def _join(self, answers: list[ScheduledRequest]) -> None:
        """Add prompts to the pipeline; if a request chooses among given texts, score these instead."""
        for answer in answers:
            if answer.request.choices:
                answer.choose(self._score, self.model.stop_tokens[0])
                continue
            try:
                settings = self._settings(answer.request)
            except Exception as error:  # noqa: BLE001 - an error here concerns only this answer
                answer.fail(error)
                continue
            tokens = self._tensor(np.array([answer.request.prompt], dtype=np.int64))
            self._number += 1
            answer.state = self._pipeline.add_request(self._number, tokens, settings)
            self.running.append(answer)

    def _step(self) -> None:
        self._leave()
        if self._pipeline.has_non_finished_requests():
            self._pipeline.step()
            self._weights.release()
        for answer in self.running:
            self._read(answer)
        self._leave()

    def _clear(self) -> None:
        for answer in self.running:
            answer.state.cancel()
            answer.state = None
        super()._clear()
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()

    def _leave(self) -> None:
        for answer in self.running:
            if (answer.cancelled or answer.ended) and answer.state.get_status() == self._genai.GenerationStatus.RUNNING:
                answer.state.stop()
        super()._leave()

    def _read(self, answer: ScheduledRequest) -> None:
        handle = answer.state
        while handle.can_read():
            for output in handle.read().values():
                for token, logprob in zip(output.generated_ids, output.generated_log_probs, strict=True):
                    if token in self.model.stop_tokens:
                        answer.end()
                    elif not answer.ended:
                        others = {token: logprob} if answer.request.temperature == 0 else {}
                        answer.take(token, TokenLogprob(token, logprob, others) if answer.request.logprobs else None)
        status = handle.get_status()
        if status == self._genai.GenerationStatus.IGNORED:
            answer.fail(ModelError("The engine has no memory left for this prompt. Request a shorter answer."))
        elif status == self._genai.GenerationStatus.FINISHED:
            answer.end()

    def _settings(self, request: GenerationRequest) -> Any:
        """Return OpenVINO's settings for a request. Raises ModelError if its JSON schema can't be enforced."""
        settings = self._genai.GenerationConfig()
        settings.max_new_tokens = request.max_new_tokens
        settings.eos_token_id = self.model.stop_tokens[0]
        settings.stop_token_ids = set(self.model.stop_tokens)
        settings.logprobs = 1 if request.logprobs else 0
        settings.do_sample = request.temperature > 0
        if settings.do_sample:
            settings.temperature, settings.top_p = max(request.temperature, 1e-4), request.top_p
            seed = request.seed if request.seed is not None else np.random.default_rng().integers(2**31)
            settings.rng_seed = seed % 2**31
        if request.json_schema is not None:
            schema = json.dumps(request.json_schema)
            self._compile(schema)
            settings.structured_output_config = self._genai.StructuredOutputConfig(json_schema=schema)
        return settings

    def _compile(self, schema: str) -> None:
        if schema in self._schemas:
            return
        if self._compiler is None:
            self._compiler = SchemaCompiler(self._pipeline.get_tokenizer(), self.model.config()["vocab_size"])
        self._compiler.compile(schema)
        self._schemas.add(schema)


def _blocks(model: ExportedModel) -> int:
    """Return the number of blocks of 8-bit keys and values to reserve, enough for at least one full context."""
    vectors, size = model.cached_vectors()
    # Each quantized vector also has a scale and a zero point, 4 bytes each.
    token = vectors * (size + 8)
    blocks = min(CACHE_BYTES // token, CACHE_TOKENS) // BLOCK
    return max(blocks, math.ceil(model.context_tokens / BLOCK) + 1)


def check_supported(request: GenerationRequest, tokenizer: Any) -> None:
    """Raise ModelError if choices are invalid, or if alternative tokens are requested: OpenVINO returns none."""
    if request.logprobs > 1:
        raise ModelError(
            "OpenVINO returns the log-probability of each generated token, but not of alternatives. Request 1 "
            "log-probability per token, or serve the model with --engine transformers."
        )
    if request.choices:
        ChoiceConstraint(tokenizer, request.choices, 0)
