"""OpenVINO as a peer of `step.py`: diffusers' networks, compiled as a whole for one size, batch and number of nets.

The conversion from PyTorch is kept beside the weights and not timed. Compiling (fusing, packing, planning the memory)
happens in the first call of a step, and so in the column `first`.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from comfyui_controlnet_core.controlnet_core.diffusion.denoiser import scale_input
from comfyui_controlnet_core.controlnet_core.runtime.device import Runtime
from peers import CFG, TIMESTEP, Case, Step
from torch import Tensor, nn

PRECISIONS = {torch.float32: "f32", torch.bfloat16: "bf16"}
"""OpenVINO's names. Without one it computes in bf16 where the processor can."""


class ControlledUNet(nn.Module):
    """Every ControlNet, then the UNet, as one network: OpenVINO can then fuse and plan memory across all of them."""

    def __init__(self, unet: nn.Module, nets: Sequence[nn.Module]) -> None:
        super().__init__()
        self.unet, self.nets = unet, nn.ModuleList(nets)

    def forward(self, rows: Tensor, t: Tensor, text: Tensor, hints: Tensor) -> Tensor:
        """rows: (2B, 4, h, w). t: 0-d. text: (2B, 77, 768). hints: (2B, 3, 8h, 8w). Returns (2B, 4, h, w)."""
        skips, middle = None, None
        for net in self.nets:
            down, mid = net(rows, t, encoder_hidden_states=text, controlnet_cond=hints, return_dict=False)
            skips = down if skips is None else [a + b for a, b in zip(skips, down, strict=True)]
            middle = mid if middle is None else middle + mid
        return self.unet(
            rows, t, encoder_hidden_states=text, return_dict=False,
            down_block_additional_residuals=skips, mid_block_additional_residual=middle,
        )[0]  # fmt: skip


class OpenVINO:
    """Static shapes, the hint for latency, as many threads as torch has, float32 or bfloat16."""

    name = "OpenVINO"
    counts_memory = False  # its memory is not torch's
    buffer_bytes = 0

    def __init__(self, folder: Path, runtime: Runtime) -> None:
        if runtime.dtype not in PRECISIONS:
            raise SystemExit(f"--openvino is for {' and '.join(PRECISIONS.values())}, not {runtime.dtype}")
        self.folder, self.precision = folder, PRECISIONS[runtime.dtype]

    def run(self, case: Case, body: Callable[[Step], None]) -> None:
        """Call `body` with a step."""
        batch = len(case.x)
        inputs = (
            scale_input(case.x, case.sigma).repeat(2, 1, 1, 1),
            torch.tensor(TIMESTEP),
            case.text.repeat_interleave(batch, dim=0),
            case.hint.repeat(2 * batch, 1, 1, 1),
        )
        file = converted(self.folder, case, inputs)
        arrays = [value.numpy() for value in inputs]
        # Without nets the hint is no input of the converted network.
        arrays = arrays if case.nets else arrays[:3]
        compiled: list[Any] = []

        def step() -> Tensor:
            if not compiled:
                compiled.append(compile_model(file, self.precision))
            noise = torch.from_numpy(compiled[0](arrays)[0])
            positive, negative = noise.chunk(2)
            return case.x - (negative + CFG * (positive - negative)) * case.sigma

        body(step)


def compile_model(file: Path, precision: str) -> Any:
    """Compile a converted network for the processor."""
    import openvino

    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    return openvino.Core().compile_model(str(file), "CPU", options)


def converted(folder: Path, case: Case, inputs: Sequence[Tensor]) -> Path:
    """Return the file of the network for this case; convert it if it is not there."""
    import openvino
    from diffusers import ControlNetModel, UNet2DConditionModel

    file = folder / "openvino" / f"size{8 * case.x.shape[-1]}_batch{len(case.x)}_nets{case.nets}.xml"
    if file.exists():
        return file
    nets = [ControlNetModel.from_pretrained(folder / f"net{i}") for i in range(case.nets)]
    whole = ControlledUNet(UNet2DConditionModel.from_pretrained(folder / "unet"), nets).eval()
    shapes = [list(value.shape) for value in inputs]
    # Traced outside of inference mode, whose tensors the converter cannot read.
    with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # shapes are constants, as they are meant to be
        own = tuple(value.clone() for value in inputs)
        model = openvino.convert_model(whole, example_input=own)
        model.reshape(dict(zip(model.inputs, shapes, strict=False)))
    file.parent.mkdir(exist_ok=True)
    partial = file.with_name(f"partial_{file.name}")  # an interrupted conversion must not be taken for a whole one
    openvino.save_model(model, str(partial), compress_to_fp16=False)
    del model, whole, nets
    gc.collect()
    partial.with_suffix(".bin").rename(file.with_suffix(".bin"))
    partial.rename(file)
    return file
