"""Choices of memory and speed that change the picture only by rounding. Free of torch: the command line reads them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from ..errors import ValueRangeError

MEMORY = ("auto", "resident", "streamed")


def _option(default: Any, flag: str, help: str) -> Any:
    """A field that is an option of the command line too: its name there, and its description for people."""
    return field(default=default, metadata={"flag": flag, "help": help})


@dataclass(frozen=True, kw_only=True)
class RuntimeOptions:
    """The optional part of a `Runtime`. Each field has its description beside it.

    Raises ValueRangeError for a negative chunk.
    """

    memory: Literal["auto", "resident", "streamed"] = _option(
        "auto",
        "--memory",
        "keep weights on the device, or load them from the host layer by layer (default: what fits, on a GPU)",
    )
    chunk: int = _option(0, "--chunk", "evaluate N pictures of a batch at a time; 0: all that fit")
    graphs: bool = _option(False, "--graphs", "replay evaluations as CUDA graphs, captured once for each picture size")
    parallel_nets: bool = _option(
        False, "--side-by-side", "run ControlNets in parallel to the UNet's encoder, in CUDA streams"
    )
    fused_qkv: bool = _option(False, "--wide", "compute blocks in fewer, larger kernels (for CUDA, not measured yet)")
    compile: bool = _option(False, "--compile", "compile transformer blocks with torch.compile, at the first step")
    winograd: bool = _option(
        True, "--no-winograd", "on a CPU, do not use Winograd convolution: needs less memory for weights and more time"
    )
    keep_packed: bool = _option(
        False,
        "--keep-packed",
        "on a CPU, keep reordered weights on the disk, so that the next start is faster (see `controlnet cache`)",
    )

    def __post_init__(self) -> None:
        if self.chunk < 0:
            raise ValueRangeError(f"--chunk {self.chunk}: give a number of pictures, or 0 for all that fit")
