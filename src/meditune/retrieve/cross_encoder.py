"""Cross-encoders: sequence classifiers that read a question together with a passage, and score the passage.

See Nogueira and Cho 2019, arXiv:1901.04085. A model has one label, whose logit is the score, or two labels, of which
the second means "relevant" (the score is then the difference of the logits). transformers must be able to load the
model without custom code from the model's folder.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meditune.errors import ModelError
from meditune.models.catalogue import is_hub_id

BATCH = 16
MAX_TOKENS = 512  # Of a question with its passage; the usual limit of published cross-encoders


class CrossEncoder:
    """A cross-encoder that is loaded by its folder or hub id. Several threads can use it; they take turns."""

    def __init__(self, name: str) -> None:
        """Raise ModelError, with advice on getting a model, if the model can't be used."""
        refuse_without_torch()
        # Imported here because a server without a cross-encoder runs without torch.
        import torch

        from meditune.models.load import device, loading, source
        from meditune.models.quiet_libraries import no_telemetry

        folder = Path(name).expanduser()
        place = str(folder) if folder.is_dir() else name
        if not folder.is_dir() and not is_hub_id(name):
            raise ModelError(f"--cross-encoder: {name} is neither an existing folder nor a hub id.\n{_advice(name)}")
        no_telemetry()
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        with loading(f"--cross-encoder {name}", place, _advice(name)):
            self._tokenizer = AutoTokenizer.from_pretrained(**source(place), trust_remote_code=False)
            model, found = AutoModelForSequenceClassification.from_pretrained(
                **source(place),
                use_safetensors=True,
                trust_remote_code=False,
                dtype=torch.float32,
                output_loading_info=True,
            )
        if missing := sorted(found["missing_keys"]):
            raise ModelError(
                f"--cross-encoder {name}: the model has no weights for {', '.join(missing[:3])}, so it isn't a "
                f"sequence classifier. (An embedding model can't be used as a cross-encoder.)\n{_advice(name)}"
            )
        if model.config.num_labels > 2:
            labels = ", ".join(map(str, model.config.id2label.values()))
            raise ModelError(
                f"--cross-encoder {name}: the model has {model.config.num_labels} labels ({labels}). A cross-encoder "
                "for search has one label, or two: not relevant, relevant."
            )
        self.name = folder.resolve().name if folder.is_dir() else name
        self._lock = threading.Lock()
        self._model: Any = model.to(device()).eval()
        # RoBERTa doesn't use its first two positions, so it reads two tokens fewer.
        places = getattr(model.config, "max_position_embeddings", MAX_TOKENS + 2) or MAX_TOKENS + 2
        self._max_tokens = int(min(places - 2, self._tokenizer.model_max_length, MAX_TOKENS))

    def scores(self, question: str, passages: Sequence[str]) -> NDArray[np.float32]:
        """Return the score of each of the n passages, shape (n,); higher is better.

        If a question and its passage are too long together, the longer of the two is cut. Raises ModelError if a score
        isn't finite.
        """
        import torch

        found = np.zeros(len(passages), dtype=np.float32)
        # Passages of similar length share a batch, so that little of it is padding.
        order = sorted(range(len(passages)), key=lambda place: -len(passages[place]))
        for start in range(0, len(order), BATCH):
            places = order[start : start + BATCH]
            rows = self._tokenizer(
                [question] * len(places),
                [passages[place] for place in places],
                truncation="longest_first",
                max_length=self._max_tokens,
                padding=True,
                return_tensors="pt",
            )
            with self._lock, torch.inference_mode():
                logits = self._model(**rows.to(self._model.device)).logits.float().cpu().numpy()
            found[places] = logits[:, -1] - (logits[:, 0] if logits.shape[1] == 2 else 0)
        if not np.isfinite(found).all():
            raise ModelError(f"The cross-encoder {self.name} gives scores that aren't finite. Use another one.")
        return found


def refuse_without_torch() -> None:
    """Raise ModelError if torch or transformers isn't installed."""
    if not (find_spec("torch") and find_spec("transformers")):
        raise ModelError(
            "--cross-encoder needs torch and transformers. Install them with: pip install torch transformers"
        )


def _advice(name: str) -> str:
    from meditune.models.load import offline_reason

    forbidden = offline_reason()
    hub_id = name if is_hub_id(name) else "OWNER/NAME"
    return (
        "There are two ways to get a cross-encoder. Without one, passages are reranked by words and vectors.\n"
        f"  1. online{f' (unset {forbidden})' if forbidden else ''}: specify the hub id: {hub_id}\n"
        "  2. offline: copy the model's folder (config.json, *.safetensors, tokenizer) to this machine, and specify "
        "that folder"
    )
