"""Optimizers that update FP32 master copies of the parameters; the parameters themselves may be BF16 or FP16."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from meditune.config.training_options import OptimizerName, TrainSpec
from meditune.errors import ModelError
from meditune.models.fsdp import gather_tensor
from meditune.models.quantization import require

BETAS, EPSILON = (0.9, 0.999), 1e-8
EIGHT_BIT_FROM = 4096
"""Minimum number of elements for 8-bit optimizer state; smaller tensors would save too little memory"""
STATE_BYTES: dict[OptimizerName, int] = {"adamw": 16, "adamw8bit": 10, "adafactor": 8}
"""Optimizer -> bytes for each trained weight: the FP32 copy, the copy's gradient, and the optimizer's state."""


def state_bytes(spec: TrainSpec) -> int:
    """Return the extra bytes for each trained weight: STATE_BYTES, and a second FP32 copy if the recipe keeps one."""
    return STATE_BYTES[spec.optimizer] + 4 * (spec.dev.keep_best or spec.average_last > 0)


class MasterOptimizer:
    """The recipe's optimizer on FP32 copies of the parameters.

    A BF16 parameter rounds away updates smaller than 1/256 of its value, so updates are applied to an FP32 copy. FP16
    gradients below 6e-8 become zero. If anything is computed in FP16, the caller therefore multiplies the loss by
    `scale`, which is adapted during training (Micikevicius et al. 2018, arXiv:1710.03740). For other number formats,
    `scale` stays 1.
    """

    GOOD_STEPS = 500  # number of steps without an overflow after which the scale is doubled

    def __init__(self, parameters: list[torch.nn.Parameter], spec: TrainSpec, fp16: bool = False) -> None:
        self.parameters = parameters
        self.masters = [parameter.detach().to(torch.float32).clone() for parameter in parameters]
        self.max_norm = spec.max_grad_norm
        fp16 = fp16 or any(parameter.dtype == torch.float16 for parameter in parameters)
        self.scale = 2.0**16 if fp16 else 1.0
        self.good_steps = 0
        self.optimizer = _optimizer(self.masters, spec)

    def step(self, learning_rate: float) -> float:
        """Update the weights with the gradients of parameters and masters, and return the norm before clipping.

        The gradients are cleared. If the norm isn't finite, the weights stay unchanged, and a scale above 1 is halved.
        """
        for master, parameter in zip(self.masters, self.parameters, strict=True):
            if parameter.grad is not None:
                gradient = parameter.grad.to(torch.float32)
                gradient = gradient / self.scale if self.scale != 1 else gradient
                master.grad = gradient if master.grad is None else master.grad + gradient
            parameter.grad = None
        norm = gather_tensor(torch.nn.utils.clip_grad_norm_(self.masters, self.max_norm))
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
            torch._foreach_copy_(_own_shares(self.parameters), _own_shares(self.masters))
        return float(norm)

    def state(self) -> dict[str, torch.Tensor]:
        """Return everything that is needed to resume, as a flat dictionary of tensors."""
        tensors = {f"master.{index}": master.detach() for index, master in enumerate(self.masters)}
        tensors["scale"] = torch.tensor([self.scale, float(self.good_steps)])
        for index, master in enumerate(self.masters):
            for key, value in self.optimizer.state[master].items():
                # All parameters share one quantization map, but safetensors refuses to store a shared tensor.
                saved = value.clone() if key.startswith("qmap") else torch.as_tensor(value)
                tensors[f"state.{index}.{key}"] = saved
        return tensors

    def restore(self, tensors: dict[str, torch.Tensor]) -> None:
        """Restore the state that `state` returned."""
        self.scale, self.good_steps = float(tensors["scale"][0]), int(tensors["scale"][1])
        for key, value in tensors.items():
            if not key.startswith("state."):
                continue
            _, index, name = key.split(".", 2)
            master = self.masters[int(index)]
            state = self.optimizer.state[master]
            if not state and hasattr(self.optimizer, "init_state"):
                # bitsandbytes pages only the memory that it allocates itself, so copy into that memory.
                self.optimizer.init_state(self.optimizer.param_groups[0], master, 0, int(index))
            if not value.dim():
                # Scalars stay on the CPU; counts become plain integers.
                state[name] = value if value.is_floating_point() else int(value)
            elif name in state:
                state[name].copy_(value)
            else:
                state[name] = value.to(master.device)
        self.set_weights([tensors[f"master.{index}"] for index in range(len(self.masters))])

    @torch.no_grad()
    def set_weights(self, weights: Sequence[torch.Tensor]) -> None:
        """Set the masters to these values, and the parameters to the same values rounded to their number format."""
        for master, parameter, weight in zip(self.masters, self.parameters, weights, strict=True):
            master.copy_(weight)
            parameter.copy_(master)


def _own_shares(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return this process's share of each tensor; PyTorch's `_foreach` operations don't support sharded tensors."""
    return [tensor.to_local() if hasattr(tensor, "to_local") else tensor for tensor in tensors]


def check_optimizer(name: OptimizerName, device: str) -> None:
    """Raise ModelError if the optimizer doesn't work on this machine; to find out, try one step with 8-bit states."""
    if name != "adamw8bit":
        return
    require("train.optimizer adamw8bit")
    weight = torch.zeros(EIGHT_BIT_FROM, device=device)
    weight.grad = torch.ones_like(weight)
    try:
        _optimizer([weight], TrainSpec(optimizer=name)).step()
    except RuntimeError as error:
        from importlib.metadata import version

        raise ModelError(
            f"train.optimizer adamw8bit: bitsandbytes {version('bitsandbytes')} doesn't support it on this machine's "
            f"{device} ({str(error).splitlines()[0]}). Install a newer version, or use adafactor, which needs even "
            "less memory."
        ) from error


def _optimizer(masters: list[torch.Tensor], spec: TrainSpec) -> torch.optim.Optimizer:
    shared: dict[str, Any] = {"lr": spec.learning_rate, "weight_decay": spec.weight_decay}
    optimizer: torch.optim.Optimizer
    if spec.optimizer == "adafactor":
        from transformers.optimization import Adafactor

        # Use the recipe's learning rate unscaled: relative steps hardly move LoRA's B, which starts at zero.
        optimizer = Adafactor(masters, **shared, scale_parameter=False, relative_step=False, warmup_init=False)
    elif spec.optimizer == "adamw8bit":
        from bitsandbytes.optim import AdamW8bit, PagedAdamW8bit

        # On a GPU, paged states move to host memory while a batch needs the space that they occupy.
        kind = PagedAdamW8bit if masters[0].is_cuda else AdamW8bit
        optimizer = kind(masters, **shared, betas=BETAS, eps=EPSILON, min_8bit_size=EIGHT_BIT_FROM)
    else:
        optimizer = torch.optim.AdamW(masters, **shared, betas=BETAS, eps=EPSILON)
    return optimizer


def empty_state(parameters: list[torch.nn.Parameter]) -> dict[str, torch.Tensor]:
    """Return zeros in the form of `MasterOptimizer.state` after an AdamW step, to load a checkpoint into."""
    tensors = {"scale": torch.zeros(2)}
    for index, parameter in enumerate(parameters):
        tensors[f"state.{index}.step"] = torch.zeros(())
        for name in (f"master.{index}", f"state.{index}.exp_avg", f"state.{index}.exp_avg_sq"):
            tensors[name] = torch.zeros_like(parameter.detach(), dtype=torch.float32)
    return tensors


def learning_rate(step: int, steps: int, spec: TrainSpec) -> float:
    """Return the learning rate for 0-based `step` out of `steps`: linear warm-up, then the recipe's schedule."""
    warmup = math.ceil(spec.warmup_share * steps)
    if step < warmup:
        return spec.learning_rate * (step + 1) / (warmup + 1)
    if spec.schedule == "constant":
        return spec.learning_rate
    share = (step - warmup) / max(steps - warmup, 1)
    return spec.learning_rate * (1 - share if spec.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * share)))
