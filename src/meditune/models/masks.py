"""Attention masks as the architectures expect them, from who sees whom."""

from __future__ import annotations

from typing import Any

import torch


def attention_masks(model: Any, sees: torch.Tensor, queries: torch.Tensor, keys: torch.Tensor) -> Any:
    """The masks that the architecture expects: one, or one for each kind of layer where some slide a window.

    `sees` is (B, Q, K), true where a query may see a key; `queries` (B, Q) and `keys` (B, K) are their positions.
    A mask is (B, 1, Q, K), to be added to the scores.
    """
    config = model.config.get_text_config()
    dtype = next(parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())
    full = _as_mask(sees, dtype)
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if not window or (kinds and "sliding_attention" not in kinds):
        return full
    near = _as_mask(sees & (queries[:, :, None] - keys[:, None, :] < window), dtype)
    # An architecture that doesn't list its layers' kinds (Mistral) slides in all of them.
    return {"full_attention": full, "sliding_attention": near} if kinds else near


def _as_mask(sees: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    # A row of nothing but "unseen" (padding) softmaxes to a uniform row of finite numbers, which nobody reads.
    hidden = torch.full((), torch.finfo(dtype).min, dtype=dtype, device=sees.device)
    return torch.where(sees, torch.zeros((), dtype=dtype, device=sees.device), hidden).unsqueeze(1)
