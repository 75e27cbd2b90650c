"""Where decoded tensors go."""

from __future__ import annotations

import torch
from torch import Tensor

from tallstore.errors import DeviceError


def on_device(device: str | torch.device, tensors: dict[str, Tensor], what: str) -> dict[str, Tensor]:
    """Tensors on a device; those that share memory still do."""
    target = torch.device(device)
    if target.type == "cpu":
        return tensors
    moved: dict[int, Tensor] = {}
    try:
        for tensor in tensors.values():
            moved.setdefault(id(tensor), tensor.to(target))
    except (RuntimeError, AssertionError) as error:
        line = str(error).splitlines()[0]
        raise DeviceError(f"device {str(device)!r} cannot hold {what} ({line}); use device='cpu'") from error
    return {name: moved[id(tensor)] for name, tensor in tensors.items()}
