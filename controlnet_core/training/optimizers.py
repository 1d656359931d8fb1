"""The optimisers of a training, and what a device can compute with them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..errors import MissingPackageError, ValueRangeError

OPTIMIZERS = ("adamw", "adamw8bit")
SMALLEST_SCALE = 2.0**-12
"""Below it, loss scaling does not help: even gradients that small are too large for half precision."""
_CLIP_EPS = 1e-6  # as in clip_grad_norm_, against a division by 0
_BLOCK = 4096  # bitsandbytes keeps smaller tensors in 32 bits


def make_optimizer(
    name: str, parameters: Sequence[nn.Parameter], lr: float, betas: tuple[float, float], weight_decay: float
) -> torch.optim.Optimizer:
    """AdamW, fused where the devices can, or with both moments in 8 bits.

    Source of "adamw8bit": Dettmers et al. 2021, "8-bit Optimizers via Block-wise Quantization", as in bitsandbytes.
    Raises CoreError where bitsandbytes is not installed, ValueRangeError for a device that it does not support.
    """
    if name == "adamw":
        # One pass over the weights instead of a dozen: the largest part of a step of batch 1 on a CPU.
        return torch.optim.AdamW(parameters, lr, betas, weight_decay=weight_decay, fused=_can_fuse(parameters))
    if name != "adamw8bit":
        raise ValueRangeError(f"the optimizer is {name!r}: choose one of {', '.join(OPTIMIZERS)}")
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise MissingPackageError(
            "the optimizer adamw8bit needs bitsandbytes: pip install bitsandbytes, or choose adamw"
        ) from error
    for device in {p.device for p in parameters}:
        # Tried on a small weight: the first step of the training would fail with an error of the library.
        trial = nn.Parameter(torch.ones(_BLOCK, device=device))
        trial.grad = torch.ones_like(trial)
        try:
            AdamW8bit([trial], lr=1e-3).step()
        except Exception as error:
            raise ValueRangeError(
                f"this bitsandbytes has no adamw8bit for {device} ({_first_line(error)}): choose adamw"
            ) from error
    return AdamW8bit(parameters, lr=lr, betas=betas, weight_decay=weight_decay)


@torch.no_grad()
def clip_gradients(parameters: Sequence[nn.Parameter], most: float) -> Tensor:
    """Scale the gradients so that their norm is at most `most`; returns the norm before. Pascanu et al. 2013.

    The result has the bits of `torch.nn.utils.clip_grad_norm_`, which also multiplies where the factor is 1.
    """
    if any(p.device.type != "cpu" for p in parameters):
        # Reading the norm here would make the CPU wait for the GPU.
        return nn.utils.clip_grad_norm_(parameters, most)
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(grad) for grad in gradients]))
    factor = torch.clamp(most / (norm + _CLIP_EPS), max=1.0)
    # Most steps need no pass over all gradients. NaN is not 1, so it reaches them.
    if float(factor) != 1.0:
        for grad in gradients:
            grad.mul_(factor)
    return norm


def check_fp16(device: torch.device) -> None:
    """Raise ValueRangeError where the device does not train in float16 with loss scaling."""
    layers = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Flatten(), nn.Linear(32, 1)).to(device)
    optimizer = torch.optim.SGD(layers.parameters(), 0.1)
    try:
        # Tried, because it depends on the device and on how PyTorch was built. Autocast that switches itself off warns.
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            scaler = torch.amp.GradScaler(device.type)
            with torch.autocast(device.type, torch.float16):
                loss = layers(torch.ones(1, 4, 4, 4, device=device)).float().sum()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
    except (RuntimeError, UserWarning, TypeError) as error:
        raise ValueRangeError(
            f"{device} does not train in fp16 ({_first_line(error)}): use bf16, or full precision"
        ) from error


def scaler_state(scaler: torch.amp.GradScaler) -> Tensor:
    """(2,) float64: the scale, and the number of steps since it changed."""
    state = scaler.state_dict()
    return torch.tensor([state["scale"], state["_growth_tracker"]], dtype=torch.float64)


def restore_scaler(scaler: torch.amp.GradScaler, state: Tensor) -> None:
    """Continue with a state from `scaler_state`."""
    scale, tracker = state.tolist()
    scaler.load_state_dict({**scaler.state_dict(), "scale": scale, "_growth_tracker": int(tracker)})


def _can_fuse(parameters: Sequence[nn.Parameter]) -> bool:
    """Whether torch has a fused AdamW for all of these devices, in its lowest version that is supported too."""
    return all(p.device.type in ("cpu", "cuda") for p in parameters)


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0][:120]
