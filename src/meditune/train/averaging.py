"""The mean of the trained weights over the last steps, in place of the last weights."""

from __future__ import annotations

import torch

from meditune.train.optimizer import MasterOptimizer


class WeightAverage:
    """Running mean of the optimizer's FP32 weights over the last steps (Izmailov et al. 2018, arXiv:1803.05407).

    With small batches the last steps scatter around a point that is better than any of them. Costs a copy of the
    trained weights and no forward pass.
    """

    def __init__(self, optimizer: MasterOptimizer, steps: int, share: float) -> None:
        self.optimizer = optimizer
        self.first = steps - round(steps * share)
        """Number, from 0, of the first step whose outcome counts"""
        self.count = 0
        self.means: list[torch.Tensor] = []

    def add(self, step: int) -> None:
        """Take in the weights as step `step` (from 0) left them."""
        if step < self.first:
            return
        self.count += 1
        with torch.no_grad():
            if not self.means:
                self.means = [master.detach().clone() for master in self.optimizer.masters]
            for mean, master in zip(self.means, self.optimizer.masters, strict=True):
                mean += (master.detach() - mean) / self.count

    def apply(self) -> None:
        """Give the model the means, where there are any; the optimizer keeps its own weights."""
        with torch.no_grad():
            for parameter, mean in zip(self.optimizer.parameters, self.means, strict=False):
                parameter.copy_(mean)

    def state(self) -> dict[str, torch.Tensor]:
        """Everything needed to go on, as a flat dictionary of tensors."""
        if not self.count:
            return {}
        return {f"average.{index}": mean for index, mean in enumerate(self.means)} | {
            "averaged": torch.tensor(self.count)
        }

    def restore(self, tensors: dict[str, torch.Tensor]) -> None:
        """Take up the state that `state` gave."""
        if "averaged" in tensors:
            self.count = int(tensors["averaged"])
            self.means = [
                tensors[f"average.{index}"].to(master.device, copy=True)
                for index, master in enumerate(self.optimizer.masters)
            ]
