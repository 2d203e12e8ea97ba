"""AdamW on FP32 master copies of parameters that may themselves be BF16 or FP16."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from meditune.recipe import TrainSpec

STATE_BYTES = 16
"""For each trained weight: its FP32 copy, that one's gradient, and AdamW's two moments."""


class MasterAdamW:
    """AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101) whose state and parameters are FP32.

    A BF16 parameter rounds away updates smaller than 1/256 of its value, so training it directly stalls. Here the
    update happens on an FP32 copy, and the BF16 parameter is only its rounded image.

    FP16 gradients below 6e-8 vanish, so where anything is computed in FP16 (`fp16`; FP16 parameters say so themselves)
    the caller multiplies the loss by `scale`, which adapts as in mixed-precision training (Micikevicius et al. 2018,
    arXiv:1710.03740); for other formats it stays 1.
    """

    GOOD_STEPS = 500
    """After this many steps without an overflow the scale is doubled."""

    def __init__(self, parameters: list[torch.nn.Parameter], spec: TrainSpec, fp16: bool = False) -> None:
        self.parameters = parameters
        self.masters = [parameter.detach().to(torch.float32).clone() for parameter in parameters]
        self.max_norm = spec.max_grad_norm
        fp16 = fp16 or any(parameter.dtype == torch.float16 for parameter in parameters)
        self.scale = 2.0**16 if fp16 else 1.0
        self.good_steps = 0
        self.optimizer = torch.optim.AdamW(
            self.masters, lr=spec.learning_rate, weight_decay=spec.weight_decay, betas=(0.9, 0.999), eps=1e-8
        )

    @property
    def master_of(self) -> dict[torch.nn.Parameter, torch.Tensor]:
        """The FP32 copy of each parameter."""
        return dict(zip(self.parameters, self.masters, strict=True))

    def step(self, learning_rate: float) -> float:
        """Apply the gathered gradients and clear them; returns their norm before clipping.

        What the masters' own gradients hold already (penalties, which know no scale) is added to the parameters'.
        Where the norm isn't finite, nothing is applied; a loss scale above 1 is halved, which ends an overflow.
        """
        for master, parameter in zip(self.masters, self.parameters, strict=True):
            if parameter.grad is not None:
                gradient = parameter.grad.to(torch.float32) / self.scale
                master.grad = gradient if master.grad is None else master.grad + gradient
            parameter.grad = None
        norm = torch.nn.utils.clip_grad_norm_(self.masters, self.max_norm)
        if not torch.isfinite(norm):
            if self.scale != 1:
                self.scale, self.good_steps = max(self.scale / 2, 1.0), 0
            self.optimizer.zero_grad()
            return float(norm)
        self.good_steps += 1
        if self.scale != 1 and self.good_steps % self.GOOD_STEPS == 0:
            self.scale *= 2
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        with torch.no_grad():
            for master, parameter in zip(self.masters, self.parameters, strict=True):
                parameter.copy_(master)
        return float(norm)

    def state(self) -> dict[str, torch.Tensor]:
        """Everything needed to go on, as a flat dictionary of tensors."""
        tensors = {f"master.{index}": master.detach() for index, master in enumerate(self.masters)}
        tensors["scale"] = torch.tensor([self.scale, float(self.good_steps)])
        for number, values in self.optimizer.state_dict()["state"].items():
            tensors |= {f"state.{number}.{key}": value for key, value in values.items()}
        return tensors

    def restore(self, tensors: dict[str, torch.Tensor]) -> None:
        """Take up the state that `state` gave."""
        self.scale, self.good_steps = float(tensors["scale"][0]), int(tensors["scale"][1])
        state: dict[int, dict[str, Any]] = {}
        for key, value in tensors.items():
            kind, *number_and_name = key.split(".", 2)
            if kind == "state":
                number, name = number_and_name
                state.setdefault(int(number), {})[name] = value
        self.optimizer.load_state_dict({"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]})
        self.set_weights([tensors[f"master.{index}"] for index in range(len(self.masters))])

    @torch.no_grad()
    def set_weights(self, weights: Sequence[torch.Tensor]) -> None:
        """Give the masters these values, and the parameters their rounded image."""
        for master, parameter, weight in zip(self.masters, self.parameters, weights, strict=True):
            master.copy_(weight)
            parameter.copy_(master)


def learning_rate(step: int, steps: int, spec: TrainSpec) -> float:
    """Learning rate of step 0 .. `steps` - 1: linear warm-up, then the schedule down to zero (or constant)."""
    warmup = math.ceil(spec.warmup_share * steps)
    if step < warmup:
        return spec.learning_rate * (step + 1) / (warmup + 1)
    if spec.schedule == "constant":
        return spec.learning_rate
    share = (step - warmup) / max(steps - warmup, 1)
    return spec.learning_rate * (1 - share if spec.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * share)))
