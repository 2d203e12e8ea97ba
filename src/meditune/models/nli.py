"""Models that judge whether sources support a sentence, behind one interface. A model's name has one of these forms:

- the folder of a run or model that was trained on claims (`evidence_judge`);
- a folder or hub id of an NLI model, a sequence classifier with a label that means entailment;
- `lettucedetect:NAME`, a token classifier that marks unsupported tokens (Kovács and Recski 2025, arXiv:2502.17125);
- `hhem:NAME`, a sequence classifier for a premise and a hypothesis, such as Vectara's HHEM. The label that means
  "supported" is named `consistent` or `entailment`, or is the last or only label;
- `minicheck:NAME`, a MiniCheck model (Tang, Laban and Durrett 2024, arXiv:2404.10774): a classifier with two labels, or
  a T5. It reads source and sentence as one text.

transformers must be able to load the model without custom code from the model's folder.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from meditune.errors import ModelError
from meditune.evidence.lexical_detector import Span
from meditune.evidence.support_model import (
    CLAIMS,
    Support,
    SupportQuestion,
    SupportScore,
    is_judge,
    load_correction,
    model_folder,
)
from meditune.models.catalogue import is_hub_id
from meditune.models.load import device, loading, offline_reason, source
from meditune.models.quiet_libraries import no_telemetry

KINDS = ("lettucedetect", "hhem", "minicheck")
"""Kinds of models that are named as KIND:NAME"""
BATCH = 16
MAX_WORD_LETTERS = 40  # Longer runs of letters without a space are cut
UNSUPPORTED = 0.5
"""A token is marked if its probability of being unsupported is above this threshold."""
LETTUCEDETECT_TOKENS = 500
"""Minimum number of tokens that a LettuceDetect model must read at once: its prompt, part of the sources, a sentence"""
QUESTION_PROMPT = (
    "Briefly answer the following question:\n{question}\nBear in mind that your response should be strictly based on "
    "the following {count} passages:\n",
    "\nIn case the passages do not contain the necessary information to answer the question, please reply with: "
    '"Unable to answer based on given passages."\noutput:',
)
SUMMARY_PROMPT = ("Summarize the following text:\n", "\noutput:")
"""The texts before and after the passages in LettuceDetect's prompts, with and without a question"""
T5_TOKENS = (3, 209)
"""The first tokens of the two answers of MiniCheck's T5: 0 (not supported) and 1 (supported)"""

EVALUATION = "evaluate.faithfulness_model"
"""The recipe key that names a model for evaluation"""


def load_nli(name: str, option: str = EVALUATION) -> Support:
    """Return the model with this name, which the user gave with `option`.

    Raises ModelError, with advice on getting a model, if it can't be used.
    """
    kind, place = kind_and_model(name)
    no_telemetry()
    import transformers

    config = _checked_config(name, option)
    supporting = _supporting(config, kind, name, option)
    maker: Any = transformers.AutoModelForSequenceClassification
    if kind == "lettucedetect":
        maker = transformers.AutoModelForTokenClassification
    elif kind == "minicheck" and config.is_encoder_decoder:
        maker = transformers.AutoModelForSeq2SeqLM
    with loading(f"{option} {name}", place, _download_advice(place, option)):
        tokenizer = transformers.AutoTokenizer.from_pretrained(**source(place), trust_remote_code=False)
        model, found = maker.from_pretrained(
            **source(place), use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
    if missing := sorted(found["missing_keys"]):
        raise ModelError(
            f"{option} {name}: the model has no weights for {', '.join(missing[:3])}, so it wasn't trained for this "
            f"kind of judge, and its verdicts would be random. Choose another model, or the kind that fits this one: "
            f"NAME alone for an NLI model, or {_kinds()}.\n{_download_advice(place, option)}"
        )
    model.to(device()).eval()
    if kind == "lettucedetect":
        marker = TokenSupport(model, tokenizer)
        if marker.longest < LETTUCEDETECT_TOKENS:
            raise ModelError(
                f"{option} {name}: the model reads at most {marker.longest} tokens, but a LettuceDetect model must "
                f"read at least {LETTUCEDETECT_TOKENS}. Choose another model."
            )
        return marker
    if kind == "minicheck":
        return MiniCheck(model, tokenizer, supporting)
    return PairSupport(model, tokenizer, supporting, _refuting(model.config))


def check(name: str, option: str = EVALUATION) -> None:
    """Raise ModelError if the model with this name can't be used. A model that isn't a judge is loaded for that."""
    kind, place = kind_and_model(name)
    if kind == "judge":
        load_correction(model_folder(place))
    else:
        load_nli(name, option)


def _checked_config(name: str, option: str) -> Any:
    """Return the configuration of the model with this name. Raises ModelError if the model is unavailable."""
    _, place = kind_and_model(name)
    if not Path(place).is_dir() and not is_hub_id(place):
        raise ModelError(
            f"{option}: {place} is neither an existing folder nor a hub id.\n{_download_advice(place, option)}"
        )
    if any((Path(place) / file).is_file() for file in ("recipe.yaml", "prompt.json")):
        raise ModelError(
            f"{option}: {place} contains no judge: {model_folder(place) / CLAIMS} is missing. "
            "`meditune run` writes this file after training on claims; `meditune train` alone doesn't. Repeat "
            "the run's command with `meditune run`, or specify another model."
        )
    from transformers import AutoConfig

    with loading(f"{option} {name}", place, _download_advice(place, option)):
        return AutoConfig.from_pretrained(**source(place), trust_remote_code=False)


def kind_and_model(name: str) -> tuple[str, str]:
    """Return the kind of a model (`judge`, `nli` or one of KINDS), and its folder or hub id."""
    first, colon, rest = name.partition(":")
    kind, place = (first, rest) if colon and first in KINDS else ("nli", name)
    folder = Path(place).expanduser()
    if kind == "nli" and is_judge(place):
        return "judge", str(folder)
    return kind, str(folder) if folder.is_dir() else place


class _Classifier:
    """A model that reads sentences with their sources, and its tokenizer."""

    has_spans = False
    refutes = False
    threshold = 0.5

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self._model, self._tokenizer = model, tokenizer
        # RoBERTa doesn't use its first two positions, so it reads two tokens fewer.
        places = getattr(model.config, "max_position_embeddings", 512) or 512
        self.longest = int(min(places - 2, tokenizer.model_max_length, 4096))
        """Maximum number of tokens that the model reads at once"""

    def _parts(self, sentence: str) -> Iterator[tuple[int, str]]:
        """Yield the start and text of each part of a sentence, of about equal numbers of tokens.

        A part has about half of the tokens that fit, or fewer. It begins after a space if there is one near.
        """
        places = self._tokenizer(sentence, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        if not places:
            return
        count = -(-len(places) // (self.longest // 2))
        starts = [0]
        for number in range(1, count):
            start = places[len(places) * number // count][0]
            space = sentence.rfind(" ", starts[-1], start) + 1
            starts.append(space if start - space < MAX_WORD_LETTERS and space > starts[-1] else start)
        for start, end in zip(starts, [*starts[1:], len(sentence)], strict=True):
            yield start, sentence[start:end]

    def _windows(
        self, texts: tuple[str, ...], source: tuple[int, int]
    ) -> tuple[dict[str, Any], list[list[tuple[int, int] | None]]]:
        """Return texts as tokens, and for each row the place of each token in the second text, if it is there.

        `source` is the place of the sources in the first of one or two texts. Long sources are split into overlapping
        windows, one for each row; every row has all tokens around the sources.
        """
        import torch
        from torch.nn.utils.rnn import pad_sequence

        read = self._tokenizer(*texts, return_offsets_mapping=True, verbose=False)
        part, places = read.sequence_ids(0), read["offset_mapping"]
        inside = [n for n, (_, end) in enumerate(places) if part[n] == 0 and source[0] < end <= source[1]]
        before = range(inside[0]) if inside else range(0)
        after = range(inside[-1] + 1 if inside else 0, len(places))
        room = self.longest - len(before) - len(after)
        overlap = min(64, self.longest // 4, room - 1)
        starts = range(0, max(len(inside) - overlap, 1), room - overlap) if len(inside) > room else range(1)
        rows = [[*before, *inside[start : start + room], *after] for start in starts]
        padding = {"input_ids": self._tokenizer.pad_token_id or 0}
        tokens = {
            name: pad_sequence([torch.tensor(read[name])[row] for row in rows], True, padding.get(name, 0))
            for name in self._tokenizer.model_input_names
            if name in read
        }
        return tokens, [[tuple(places[n]) if part[n] == 1 else None for n in row] for row in rows]

    def _read(self, rows: dict[str, Any]) -> Any:
        """Return the logits for all rows of tokens, which the model reads in batches."""
        import torch

        found = []
        for start in range(0, len(rows["input_ids"]), BATCH):
            batch = {key: value[start : start + BATCH].to(self._model.device) for key, value in rows.items()}
            with torch.inference_mode():
                found.append(self._logits(batch).float())
        return torch.cat(found)

    def _logits(self, batch: dict[str, Any]) -> Any:
        return self._model(**batch).logits


class PairSupport(_Classifier):
    """A classifier of (source, sentence) pairs.

    If a source is split into windows, the highest probability of each label counts. If a sentence is split into parts,
    the lowest probability of support and the highest probability of refutation count.
    """

    def __init__(self, model: Any, tokenizer: Any, supporting: int, refuting: int | None = None) -> None:
        """Prepare the classifier; `supporting` and `refuting` are indices of labels."""
        super().__init__(model, tokenizer)
        self._supporting, self._refuting = supporting, refuting
        self.refutes = refuting is not None

    def score(self, asked: Sequence[SupportQuestion]) -> Iterator[SupportScore]:
        """Yield one score for each sentence, in order."""
        for question in asked:
            source = " ".join(question.sources)
            found = [self._shares(source, text) for _, text in self._parts(question.sentence)]
            supported = min((float(each[self._supporting]) for each in found), default=0.0)
            refuted = None
            if self._refuting is not None:
                # Different windows can support and refute a sentence.
                refuted = min(1 - supported, max((float(each[self._refuting]) for each in found), default=0.0))
            yield SupportScore(supported, refuted)

    def _shares(self, source: str, sentence: str) -> Any:
        """Return the highest probability of each label over the windows of the source."""
        logits = self._read(self._rows(source, sentence))
        return (logits.sigmoid() if logits.shape[-1] == 1 else logits.softmax(-1)).amax(0)

    def _rows(self, source: str, sentence: str) -> dict[str, Any]:
        return self._windows((source, sentence), (0, len(source)))[0]


class MiniCheck(PairSupport):
    """A MiniCheck model, with the input of its publisher (https://github.com/Liyan06/MiniCheck).

    Source and sentence are one text, with the end token between them. Before this text, a T5 reads "predict: ". It
    answers with one token, of which only the logits of T5_TOKENS count.
    """

    def _rows(self, source: str, sentence: str) -> dict[str, Any]:
        before = "predict: " if self._model.config.is_encoder_decoder else ""
        end = self._tokenizer.eos_token or self._tokenizer.sep_token
        text, start = f"{before}{source}{end}{sentence}", len(before)
        return self._windows((text,), (start, start + len(source)))[0]

    def _logits(self, batch: dict[str, Any]) -> Any:
        if not self._model.config.is_encoder_decoder:
            return super()._logits(batch)
        start = batch["input_ids"].new_full((len(batch["input_ids"]), 1), self._model.config.decoder_start_token_id)
        return self._model(**batch, decoder_input_ids=start).logits[:, 0, list(T5_TOKENS)]


class TokenSupport(_Classifier):
    """A token classifier whose last label means "unsupported". The least supported token determines the score.

    The model reads the prompt of its publisher (https://github.com/KRLabsOrg/LettuceDetect), then the sentence. Each
    window of long sources has the complete prompt. Of a very long question, the prompt contains only the beginning.
    """

    has_spans = True

    def score(self, asked: Sequence[SupportQuestion]) -> Iterator[SupportScore]:
        """Yield one score for each sentence, in order."""
        return map(self._score_one, asked)

    def _score_one(self, question: SupportQuestion) -> SupportScore:
        doubts: dict[tuple[int, int], float] = {}
        for begun, text in self._parts(question.sentence):
            doubts |= {
                (begun + start, begun + end): value for (start, end), value in self._doubts(question, text).items()
            }
        return SupportScore(1.0 - max(doubts.values(), default=0.0), spans=tuple(_marked(question, doubts)))

    def _doubts(self, question: SupportQuestion, sentence: str) -> dict[tuple[int, int], float]:
        """Return the probability that each token of the sentence, from start to end, is unsupported."""
        before, after = QUESTION_PROMPT if question.question.strip() else SUMMARY_PROMPT
        before = before.format(question=self._shortened(question.question), count=len(question.sources))
        passages = "\n".join(f"passage {number}: {text}" for number, text in enumerate(question.sources, 1))
        source = (len(before), len(before) + len(passages))
        rows, places = self._windows((before + passages + after, sentence), source)
        doubt = self._read(rows).softmax(-1)[..., -1].cpu()
        # A token is supported if any window of the sources supports it.
        least: dict[tuple[int, int], float] = {}
        for row in range(doubt.shape[0]):
            for value, place in zip(doubt[row], places[row], strict=False):  # what follows is padding
                if place and place[1] > place[0]:
                    least[place] = min(least.get(place, 1.0), float(value))
        return least

    def _shortened(self, question: str) -> str:
        """Return the beginning of a question, of at most an eighth of the tokens that the model reads."""
        room = self.longest // 8
        read = self._tokenizer(question, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        places = read["offset_mapping"]
        return question[: places[room - 1][1]] if len(places) > room else question


def _marked(question: SupportQuestion, doubts: dict[tuple[int, int], float]) -> Iterator[Span]:
    """Yield a span for each run of adjacent unsupported tokens."""
    run: list[tuple[int, int]] = []
    for place, doubt in (*sorted(doubts.items()), ((-1, -1), 0.0)):
        if doubt > UNSUPPORTED:
            run.append(place)
        elif run:
            start, end = question.start + run[0][0], question.start + run[-1][1]
            yield Span(start, end, "unsupported", "The model finds no support for this in the sources.")
            run = []


def _supporting(config: Any, kind: str, name: str, option: str) -> int:
    """Return the index of the label that means "supported". Raises ModelError if the model has no such label."""
    labels = {int(number): str(label).lower() for number, label in (config.id2label or {}).items()}
    if kind == "hhem":
        return next((number for number, label in labels.items() if label in ("consistent", "entailment")), max(labels))
    if kind == "lettucedetect":
        if len(labels) != 2:
            raise ModelError(
                f"{option} {name}: a LettuceDetect model has two labels, supported and "
                f"unsupported; this model has {len(labels)} ({', '.join(labels.values())})."
            )
        return 0
    if kind == "minicheck":
        if config.is_encoder_decoder and config.model_type != "t5":
            raise ModelError(
                f"{option} {name}: a MiniCheck model is a T5 or a classifier, but not a {config.model_type}."
            )
        if not config.is_encoder_decoder and len(labels) != 2:
            raise ModelError(
                f"{option} {name}: MiniCheck's classifiers have two labels, not supported and supported; this model "
                f"has {len(labels)} ({', '.join(labels.values())})."
            )
        return 1
    number = next((number for number, label in labels.items() if label.startswith("entail")), None)
    if number is None:
        raise ModelError(
            f"{option} {name}: none of its labels ({', '.join(labels.values())}) means entailment. "
            "Choose an NLI model whose config.json has `entailment` in id2label; for models of other kinds, write "
            f"{_kinds()}."
        )
    return number


def _refuting(config: Any) -> int | None:
    """Return the index of the label that means "refuted"; None if the model has no such label."""
    labels = {int(number): str(label).lower() for number, label in (config.id2label or {}).items()}
    return next((number for number, label in labels.items() if label.startswith("contra")), None)


def _kinds() -> str:
    *others, last = (f"{kind}:NAME" for kind in KINDS)
    return f"{', '.join(others)} or {last}"


def _download_advice(place: str, option: str) -> str:
    forbidden, by_default = offline_reason(), option in (EVALUATION, "--judge")
    hub_id = place if is_hub_id(place) else "OWNER/NAME"
    return (
        f"There are three ways to get a model for {option}."
        f"{' Without this option, the lexical detector is used, which needs no model.' if by_default else ''}\n"
        f"  1. online{f' (unset {forbidden})' if forbidden else ''}: specify the hub id: {hub_id}\n"
        "  2. offline: copy the model's folder (config.json, *.safetensors, tokenizer) to this machine, and specify "
        "that folder\n"
        "  3. train a judge (meditune run evidence --output runs/evidence), and specify runs/evidence"
    )
