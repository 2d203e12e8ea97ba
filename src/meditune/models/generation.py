"""Text generation with continuous batching: each prompt is read once, then each step adds one token to every text.

For a small model, a step takes about as long for thirty texts as for one. transformers' `generate` processes a batch
until its last text has ended, and copies the key-value cache for every token. It also pads on the left, which puts
padding between virtual tokens and the prompt. Here, a new text can replace a finished text after any step. Every token
has its own position and mask, so a text doesn't depend on the other texts in its batch. The key-value cache has one
slot for each running text, and the keys and values of new tokens are written into the slots in place. All slots have
the length of the longest text, rounded up. Attention reads complete slots, because a matrix product with a part of a
slot would copy that part.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from meditune.hardware import free_gpu_bytes, memory_gb
from meditune.models import forward
from meditune.models.forward import attention_masks, head_only_at
from meditune.models.gpu_attention import causal_mask, layer_heads, needs_no_mask
from meditune.models.inference import batch_limit

STEP = 32
"""The length of a slot is rounded up to a multiple of this number of tokens."""
Pairs = list[tuple[torch.Tensor, torch.Tensor]]
"""Keys and values of each layer, (texts, key heads, tokens, head size); for one text, without the first dimension"""


class KVCache:
    """A key-value cache with `count` slots, one for each text; `grow` adds slots.

    Running texts occupy the first slots. Layers with sliding windows store all tokens, too; masks hide the tokens
    outside the window.
    """

    def __init__(self, count: int) -> None:
        self.count, self.length = count, 0
        self.layers: Pairs = []

    def reading(self, first: int, before: Pairs) -> Any:
        """Return a cache for a forward pass over complete texts; it stores the texts in the slots from `first` on.

        `before` contains the keys and values of virtual tokens; a slot stores them before those of its text.
        """

        def update(keys: torch.Tensor, values: torch.Tensor, layer: int, *_: Any, **__: Any) -> Any:
            if before:
                keys = torch.cat([before[layer][0], keys], dim=2)
                values = torch.cat([before[layer][1], values], dim=2)
            self.grow(keys.shape[2])
            self._layer(layer, keys)
            for buffer, new in zip(self.layers[layer], (keys, values), strict=True):
                buffer[first : first + len(new), :, : new.shape[2]] = new
            return keys, values

        return _cache(update)

    def continuation(self, first: int, starts: Sequence[int], lengths: Sequence[int]) -> Any:
        """Return a cache for a forward pass over the next tokens of the texts in the slots from `first` on.

        Row N of the batch contains `lengths[N]` tokens, the first of which has position `starts[N]`.
        """
        counts = torch.tensor(lengths)
        rows = torch.arange(len(lengths)).repeat_interleave(counts)
        columns = torch.cat([torch.arange(length) for length in lengths])
        places = columns + torch.tensor(starts)[rows]

        def update(keys: torch.Tensor, values: torch.Tensor, layer: int, *_: Any, **__: Any) -> Any:
            nonlocal rows, columns, places
            rows, columns, places = (each.to(keys.device) for each in (rows, columns, places))
            self._layer(layer, keys)
            for buffer, new in zip(self.layers[layer], (keys, values), strict=True):
                buffer[rows + first, :, places] = new[rows, :, columns]
            return tuple(buffer[first : first + len(starts)] for buffer in self.layers[layer])

        return _cache(update)

    def writing(self, places: torch.Tensor) -> Any:
        """Return a cache for a forward pass over one new token for each of the first N texts, at positions `places`."""
        rows = torch.arange(len(places), device=places.device)

        def update(keys: torch.Tensor, values: torch.Tensor, layer: int, *_: Any, **__: Any) -> Any:
            for buffer, new in zip(self.layers[layer], (keys, values), strict=True):
                buffer[rows, :, places] = new[:, :, 0]
            return tuple(buffer[: len(places)] for buffer in self.layers[layer])

        return _cache(update)

    def move(self, source: int, target: int) -> None:
        """Overwrite slot `target` with the content of slot `source`."""
        for pair in self.layers:
            for buffer in pair:
                buffer[target] = buffer[source]

    def erase(self, slot: int) -> None:
        """Overwrite a slot with zeros."""
        for pair in self.layers:
            for buffer in pair:
                buffer[slot] = 0

    def copied(self, slot: int, tokens: int) -> Pairs:
        """Return copies of the keys and values of a slot's first `tokens` tokens, (key heads, tokens, head size)."""
        return [(keys[slot, :, :tokens].clone(), values[slot, :, :tokens].clone()) for keys, values in self.layers]

    def put(self, slot: int, pairs: Pairs) -> None:
        """Write keys and values, in the form that `copied` returns, to the beginning of a slot."""
        self.grow(pairs[0][0].shape[1], slot + 1)
        for layer, pair in enumerate(pairs):
            self._layer(layer, pair[0])
            for buffer, given in zip(self.layers[layer], pair, strict=True):
                buffer[slot, :, : given.shape[1]] = given

    def grow(self, tokens: int, texts: int = 0) -> None:
        """Enlarge the cache, if necessary, to hold `texts` texts of up to `tokens` tokens."""
        if tokens <= self.length and texts <= self.count:
            return
        self.length = max(self.length, -(-tokens // STEP) * STEP)
        self.count = self.count if texts <= self.count else max(texts, 2 * self.count)
        for layer, pair in enumerate(self.layers):
            larger = tuple(map(self._room, pair))
            for new, old in zip(larger, pair, strict=True):
                new[: old.shape[0], :, : old.shape[2]] = old
            self.layers[layer] = (larger[0], larger[1])

    def clear(self) -> None:
        """Free the cache's memory. No slot may be in use."""
        self.layers, self.count, self.length = [], 1, 0

    def _layer(self, layer: int, like: torch.Tensor) -> None:
        if layer == len(self.layers):
            self.layers.append((self._room(like), self._room(like)))

    def _room(self, like: torch.Tensor) -> torch.Tensor:
        # Attention multiplies masked values by zero, so unused entries must be finite.
        return like.new_zeros(self.count, like.shape[-3], self.length, like.shape[-1])


def _cache(update: Any) -> Any:
    """Return a cache for transformers' models that calls `update` and stores nothing itself."""
    cache = forward.cache_of([])
    cache.update = update
    return cache


BYTES = 256_000_000
"""Maximum size in bytes of the keys and values in a prefix cache"""
MIN_PREFIX_TOKENS = 16
"""Minimum length in tokens of a common prefix; a shorter prefix is faster to read again than to copy from the cache"""


class PrefixCache:
    """A cache of the keys and values of texts, up to BYTES; the least recently used texts are dropped first.

    The keys and values of a prefix don't depend on the tokens after the prefix. If a text shares a prefix with a cached
    text (a system prompt, a source, a conversation), the model therefore reads only the tokens after that prefix.
    """

    def __init__(self) -> None:
        self.size_bytes = 0
        self._texts: dict[tuple[int, ...], tuple[np.ndarray, Pairs]] = {}
        """Token ids -> the same ids as an array, and the keys and values; the least recently used text is first"""

    def longest(self, text: Sequence[int]) -> tuple[int, Pairs]:
        """Return the length of the text's longest cached prefix, and its keys and values; 0 and [] if it is too short.

        The prefix never includes the text's last token, which the model must read to predict the next token.
        """
        query = np.asarray(text[:-1])
        best, found = 0, None
        for tokens, (ids, _) in self._texts.items():
            common = shared_prefix(query, ids)
            if common > best:
                best, found = common, tokens
        if found is None or best < MIN_PREFIX_TOKENS:
            return 0, []
        entry = self._texts.pop(found)
        self._texts[found] = entry
        return best, [(keys[:, :best], values[:, :best]) for keys, values in entry[1]]

    def has(self, text: Sequence[int]) -> bool:
        """Return whether the complete text is cached, possibly as the beginning of a longer text."""
        query = np.asarray(text)
        return any(shared_prefix(query, ids) == len(query) for ids, _ in self._texts.values())

    def keep(self, text: Sequence[int], pairs: Pairs) -> None:
        """Cache a text's keys and values, and drop its cached prefixes; do nothing if `pairs` exceed BYTES."""
        ids = np.asarray(text)
        size = _bytes(pairs)
        if size > BYTES:
            return
        for tokens, (others, _) in list(self._texts.items()):
            if shared_prefix(ids, others) == len(others):
                self._forget(tokens)
        while self.size_bytes + size > BYTES:
            self._forget(next(iter(self._texts)))
        self._texts[tuple(text)] = (ids, pairs)
        self.size_bytes += size

    def _forget(self, tokens: tuple[int, ...]) -> None:
        self.size_bytes -= _bytes(self._texts.pop(tokens)[1])


def shared_prefix(first: np.ndarray, second: np.ndarray) -> int:
    """Return the number of tokens in the common prefix of two texts."""
    length = min(len(first), len(second))
    differ = np.flatnonzero(first[:length] != second[:length])
    return int(differ[0]) if len(differ) else length


def _bytes(pairs: Pairs) -> int:
    return sum(part.nbytes for pair in pairs for part in pair)


class Decoder:
    """A decoder that continues texts with tokens that the caller chooses. Texts are numbered as in `lengths`."""

    def __init__(self, model: Any, pad: int, count: int = 1, prefixes: PrefixCache | None = None) -> None:
        """Prepare for `count` texts; more can be added. Prefixes that are cached in `prefixes` aren't read again."""
        self.model, self.pad = model, pad
        self.virtual = forward.virtual_tokens(model)
        self.called = model.get_base_model() if self.virtual else model
        self.device = next(model.parameters()).device
        self.read_tokens = batch_limit(self.called)
        """Maximum number of prompt tokens that are read in one forward pass"""
        self.slots = KVCache(count)
        self.lengths: list[int] = []
        """Number of tokens of each text so far, including virtual tokens"""
        self.prefixes = None if self.virtual else prefixes

    def read(self, texts: Sequence[Sequence[int]]) -> torch.Tensor:
        """Add N texts, read them, and return the (N, vocabulary) logits for the next token of each text."""
        first = len(self.lengths)
        self.slots.grow(0, first + len(texts))
        starts = [self._recall(slot, text) for slot, text in enumerate(texts, first)]
        if not any(starts) and (self.virtual or max(map(len, texts)) <= self.read_tokens):
            logits = self._read(texts, first)
        else:
            logits = self._read_long(texts, starts, first)
        self.lengths += [self.virtual + len(text) for text in texts]
        if self.prefixes:
            are_finite = logits.amax(dim=-1).isfinite().tolist()
            for slot, (text, is_finite) in enumerate(zip(texts, are_finite, strict=True), first):
                if is_finite:
                    self.remember(slot, text)
        return logits

    def step(self, tokens: Sequence[int]) -> torch.Tensor:
        """Append one token to each of the N texts, and return the (N, vocabulary) logits for the token after it."""
        last = torch.tensor(tokens, device=self.device)
        positions = torch.tensor(self.lengths, device=self.device)
        self.slots.grow(max(self.lengths) + 1)
        keys = torch.arange(self.slots.length, device=self.device).expand(len(tokens), -1)
        masks = attention_masks(self.model, (keys <= positions[:, None])[:, None, :], positions[:, None], keys)
        inputs = {"input_ids": last[:, None], "attention_mask": masks, "position_ids": positions[:, None]}
        inputs[forward.cache_name(self.model)] = self.slots.writing(positions)
        logits: torch.Tensor = self.called(**inputs, use_cache=True).logits[:, -1]
        self.lengths = [length + 1 for length in self.lengths]
        return logits

    def drop(self, number: int) -> None:
        """Remove text `number`; the last text then gets this number."""
        last = len(self.lengths) - 1
        if number < last:
            self.slots.move(last, number)
            self.lengths[number] = self.lengths[last]
        self.lengths.pop()

    def remember(self, number: int, text: Sequence[int]) -> None:
        """Cache the keys and values of a running text. `text` contains the tokens of the text that were read so far."""
        if self.prefixes and not self.prefixes.has(text):
            self.prefixes.keep(text, self.slots.copied(number, len(text)))

    def _recall(self, slot: int, text: Sequence[int]) -> int:
        """Copy the longest cached prefix of a text into a slot, and return the length of the prefix, or 0."""
        start, pairs = self.prefixes.longest(text) if self.prefixes else (0, [])
        if start:
            self.slots.put(slot, pairs)
        return start

    def _read(self, texts: Sequence[Sequence[int]], first: int) -> torch.Tensor:
        tokens, lengths = self._padded(texts)
        size, length = tokens.shape
        positions = torch.arange(length, device=self.device).expand(size, length)
        name, shift = forward.cache_name(self.model), 0
        before: Pairs = []
        inputs: dict[str, Any] = {"input_ids": tokens, "position_ids": positions}
        if not self.virtual and needs_no_mask(self.model, length):
            inputs["attention_mask"] = causal_mask(self.device)
        else:
            sees = (positions < lengths[:, None])[:, None, :] & lengths.new_ones(length, length).bool().tril()
            if self.virtual:
                inputs, shift = forward.inputs_of(self.model, tokens, sees, positions)
                before = [(layer.keys, layer.values) for layer in inputs[name].layers] if name in inputs else []
            else:
                inputs["attention_mask"] = attention_masks(self.model, sees, positions, positions)
        inputs[name] = self.slots.reading(first, before)
        return self._last_logits(inputs, lengths - 1 + shift)

    def _read_long(self, texts: Sequence[Sequence[int]], starts: list[int], first: int) -> torch.Tensor:
        """Read the texts, beginning at positions `starts`, and return logits like `read`.

        Long texts are read in pieces, because memory grows with the square of the length.
        """
        starts = [*starts]
        for number, text in enumerate(texts):
            while len(text) - starts[number] > self.read_tokens:
                end = starts[number] + self.read_tokens
                self._read_next([text[starts[number] : end]], [starts[number]], first + number)
                starts[number] = end
        rest = [text[start:] for text, start in zip(texts, starts, strict=True)]
        return self._read_next(rest, starts, first)

    def _read_next(self, pieces: Sequence[Sequence[int]], starts: list[int], first: int) -> torch.Tensor:
        """Read the next pieces of the texts in the slots from `first` on, and return logits like `read`.

        `starts` contains the number of tokens that are already in each slot.
        """
        tokens, lengths = self._padded(pieces)
        self.slots.grow(max(start + len(piece) for start, piece in zip(starts, pieces, strict=True)))
        begin = torch.tensor(starts, device=self.device)
        columns = torch.arange(tokens.shape[1], device=self.device).expand(tokens.shape)
        # Padding isn't stored; it gets the position of the last token of its piece.
        positions = begin[:, None] + torch.minimum(columns, lengths[:, None] - 1)
        keys = torch.arange(self.slots.length, device=self.device).expand(len(pieces), -1)
        masks = attention_masks(self.model, keys[:, None, :] <= positions[:, :, None], positions, keys)
        inputs = {"input_ids": tokens, "attention_mask": masks, "position_ids": positions}
        inputs[forward.cache_name(self.model)] = self.slots.continuation(first, starts, lengths.tolist())
        return self._last_logits(inputs, lengths - 1)

    def _padded(self, texts: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        rows = [torch.tensor(text, device=self.device) for text in texts]
        lengths = torch.tensor([len(row) for row in rows], device=self.device)
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=self.pad), lengths

    def _last_logits(self, inputs: dict[str, Any], columns: torch.Tensor) -> torch.Tensor:
        with head_only_at(self.model, torch.arange(len(columns), device=self.device), columns):
            logits: torch.Tensor = self.called(**inputs, use_cache=True).logits[0]
        return logits


class NotFiniteError(ArithmeticError):
    """The error for infinite or NaN logits; `prompt` is the index of the prompt that caused them."""

    def __init__(self, prompt: int) -> None:
        super().__init__(f"prompt {prompt}")
        self.prompt = prompt


class GreedyDecoder:
    """A greedy decoder that continues many prompts, at most `batch_size` at a time, longest first.

    If `no_repeat` is set, no sequence of that many tokens is generated twice in one answer (Paulus et al. 2017,
    arXiv:1705.04304). An answer may repeat sequences from its prompt.
    """

    def __init__(
        self,
        model: Any,
        prompts: Sequence[list[int]],
        max_new_tokens: int,
        ends: Collection[int],
        pad: int,
        batch_size: int,
        no_repeat: int | None = None,
    ) -> None:
        self.prompts, self.max_new_tokens, self.ends, self.no_repeat = prompts, max_new_tokens, ends, no_repeat
        self.waiting = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
        self.batch_size = min(batch_size, len(prompts))
        self.decoder = Decoder(model, pad, self.batch_size)
        self.written: list[tuple[int, list[int]]] = []
        """For each text in the decoder, the index of its prompt and the generated tokens"""

    def texts(self) -> Iterator[tuple[int, list[int]]]:
        """Yield the index of each prompt and the tokens of its answer, without its end token, as answers are finished.

        Raises NotFiniteError if logits aren't finite.
        """
        while self.waiting or self.written:
            if self.waiting and self._has_room():
                self._read()
            else:
                self._add(self.decoder.step([tokens[-1] for _, tokens in self.written]), 0)
            yield from self._finished()

    def _has_room(self) -> bool:
        """Return whether enough slots are free to make a forward pass over new prompts worthwhile."""
        free = self.batch_size - len(self.written)
        if not free or not self.written or free >= len(self.waiting):
            return bool(free)
        return free * len(self.prompts[self.waiting[-1]]) >= self.decoder.read_tokens // 2

    def _read(self) -> None:
        free = self.batch_size - len(self.written)
        fitting = max(1, self.decoder.read_tokens // len(self.prompts[self.waiting[-1]]))
        chosen = [self.waiting.pop() for _ in range(min(free, fitting, len(self.waiting)))]
        first = len(self.written)
        self.written += [(index, []) for index in chosen]
        self._add(self.decoder.read([self.prompts[index] for index in chosen]), first)

    def _add(self, logits: torch.Tensor, first: int) -> None:
        """Append the most likely token of each row of logits to the texts in the slots from `first` on."""
        if self.no_repeat:
            for row, (_, written) in zip(logits, self.written[first:], strict=True):
                row[_repeated_next(written, self.no_repeat)] = -torch.inf
        highest, tokens = logits.max(dim=-1)
        for slot, (sound, token) in enumerate(zip(highest.isfinite().tolist(), tokens.tolist(), strict=True), first):
            index, written = self.written[slot]
            if not sound:
                raise NotFiniteError(index)
            written.append(token)

    def _finished(self) -> Iterator[tuple[int, list[int]]]:
        """Remove and yield finished texts; texts in the last slots move into the slots that become free."""
        for slot in reversed(range(len(self.written))):
            index, tokens = self.written[slot]
            ended = tokens[-1] in self.ends
            if not ended and len(tokens) < self.max_new_tokens:
                continue
            self.decoder.drop(slot)
            self.written[slot] = self.written[-1]
            self.written.pop()
            yield index, tokens[:-1] if ended else tokens


def _repeated_next(tokens: list[int], length: int) -> list[int]:
    """Return each token that, if it came next, would complete a repetition of a sequence of `length` tokens."""
    last = tokens[len(tokens) - length + 1 :]
    return [
        tokens[place + length - 1]
        for place in range(len(tokens) - length + 1)
        if tokens[place : place + length - 1] == last
    ]


BATCH_TOKENS = 24_000
"""Maximum number of tokens in the key-value cache of a batch on a CPU"""


def token_bytes(config: Any, element_size: int) -> int:
    """Return the bytes per token in a model's key-value cache; `element_size` is the number of bytes per value."""
    sizes = (each.key_heads * each.size for each in layer_heads(config))
    return int(2 * sum(sizes) * element_size)


def cached_tokens(model: Any) -> int:
    """Return the result of `cache_limit` for the memory that is free now on the model's device."""
    weight = model.get_input_embeddings().weight
    free = free_gpu_bytes(weight.device) if weight.is_cuda else int(memory_gb()[1] * 1e9)
    return cache_limit(model.config, weight.element_size(), free, weight.is_cuda)


def cache_limit(config: Any, element_size: int, free: int, on_gpu: bool) -> int:
    """Return the number of tokens whose cache fits into half of `free` bytes; on a CPU, at most BATCH_TOKENS."""
    fitting = free // 2 // token_bytes(config, element_size)
    return fitting if on_gpu else min(BATCH_TOKENS, fitting)


def batch_size(longest: int, max_new_tokens: int, model: Any = None) -> int:
    """Return the number of prompts to continue at once, at least 1.

    The cache may hold `cached_tokens(model)` tokens, or BATCH_TOKENS without a model. `longest` is the length of the
    longest prompt.
    """
    return max(1, (BATCH_TOKENS if model is None else cached_tokens(model)) // (longest + max_new_tokens))


def left_pad(prompts: Sequence[list[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the prompts as (N, longest) token ids, padded on the left, and a mask of the same shape, 0 at padding."""
    length = max(map(len, prompts))
    tokens = torch.full((len(prompts), length), pad_id)
    mask = torch.zeros((len(prompts), length), dtype=torch.long)
    for index, prompt in enumerate(prompts):
        tokens[index, length - len(prompt) :] = torch.tensor(prompt)
        mask[index, length - len(prompt) :] = 1
    return tokens, mask


def sample_texts(
    model: Any, prompts: Sequence[list[int]], max_new_tokens: int, ends: list[int], pad: int, temperature: float = 1.0
) -> list[list[int]]:
    """Return a sampled continuation of each prompt: up to `max_new_tokens` tokens, including the end token.

    A token in `ends` ends a continuation, but isn't its first token. Tokens are sampled from the full distribution.
    The result depends on torch's global seed and on the other prompts in the batch.
    """
    from transformers import GenerationConfig

    tokens, mask = left_pad(prompts, pad)
    settings = GenerationConfig(
        do_sample=True,
        temperature=temperature,
        top_k=0,
        top_p=1.0,
        max_new_tokens=max_new_tokens,
        begin_suppress_tokens=ends,
        eos_token_id=ends,
        pad_token_id=pad,
    )
    device = next(model.parameters()).device
    # transformers would otherwise add the model's own settings (top_k, penalties), which change the distribution.
    usual, model.generation_config = model.generation_config, GenerationConfig()
    try:
        with torch.inference_mode():
            output = model.generate(
                input_ids=tokens.to(device), attention_mask=mask.to(device), generation_config=settings
            )
    finally:
        model.generation_config = usual
    written: list[list[int]] = output[:, tokens.shape[1] :].tolist()
    found = (next((place for place, token in enumerate(ids) if token in ends), None) for ids in written)
    return [ids if place is None else ids[: place + 1] for ids, place in zip(written, found, strict=True)]
