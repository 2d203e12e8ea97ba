"""Sharding a model's weights over processes with FSDP2 (`torch.distributed.fsdp.fully_shard`).

Each process holds a share of every weight. A layer's full weights are gathered only while it runs (Rajbhandari et al.
2020, "ZeRO", arXiv:1910.02054; Zhao et al. 2023, "PyTorch FSDP", arXiv:2304.11277).
"""

from __future__ import annotations

from typing import Any

import torch

from meditune import distributed
from meditune.models.hidden_state_cache import blocks_of


def shard(model: Any, device: str) -> None:
    """Shard the model's weights over all processes, in place: each layer separately, then the other weights.

    Only the first process needs the weights; in the other processes, the model can be on the meta device. Each layer is
    copied from the first process and sharded before the next layer is copied, so no other process holds more than one
    complete layer. Gradients are summed over the processes in FP32.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    options: dict[str, Any] = {
        "mesh": init_device_mesh(device, (distributed.world(),)),
        "mp_policy": MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False),
    }
    for block in blocks_of(model):
        _copy_from_first(list(block.modules()), device)
        fully_shard(block, **options)
    in_blocks = {id(part) for block in blocks_of(model) for part in block.modules()}
    _copy_from_first([part for part in model.modules() if id(part) not in in_blocks], device, model)
    # The head is used after the model's forward pass, so weights outside the layers stay gathered until the backward
    # pass.
    fully_shard(model, reshard_after_forward=False, **options)
    for module in model.modules():
        if is_sharded(module):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def copy_from_first(model: Any, device: str) -> None:
    """Move the model to `device`, and copy the first process's weights to all other processes.

    In the other processes, the model may be on the meta device.
    """
    _copy_from_first(list(model.modules()), device, model)


def _copy_from_first(modules: list[Any], device: str, tied: Any = None) -> None:
    """Copy the first process's weights to these modules, but not to their children.

    If `tied` is a model, its shared weights are tied again first.
    """
    for module in modules:
        if any(tensor.is_meta for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False))):
            module.to_empty(device=device, recurse=False)
    if tied is not None:
        tied.tie_weights()
    tensors: dict[int, torch.Tensor] = {}
    for module in modules:
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            if id(tensor) not in tensors:
                tensor.data = tensor.data.to(device).contiguous()
                # Broadcast bytes, because gloo doesn't support every number format.
                distributed.broadcast_tensor(tensor.data.view(-1).view(torch.uint8))
            tensors[id(tensor)] = tensor


def is_sharded(model: Any) -> bool:
    """Return whether the model was sharded by `shard`."""
    from torch.distributed.fsdp import FSDPModule

    return isinstance(model, FSDPModule)


def gather_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """Return the full tensor, gathered if `tensor` is one process's share; all processes must call this."""
    gathered: torch.Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return gathered


def shard_like(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return this process's share of a full tensor, sharded like `like`; the tensor itself if `like` isn't sharded."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def gather_weights(model: Any, trainable_only: bool) -> dict[str, Any]:
    """Return a sharded model's full weights by name in the first process, and an empty dict in the other processes.

    All processes must call this. If `trainable_only` is true, frozen weights are left out.
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=trainable_only)
    return get_model_state_dict(model, options=options)
