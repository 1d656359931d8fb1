"""Triton kernels compiled for cards that are not here: what the assembler says of registers, spills and memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from installed import is_older

COMPILE = """
import json
import subprocess
import tempfile
from pathlib import Path

import torch
import triton
from comfyui_controlnet_core.controlnet_core.speed import triton_norm as kernels
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

TYPES = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16"}
COUNTS = "cells channels part_cells shift_stride per_group parts groups".split()


def source(kernel, dtype, constants):
    mixed = {"x", "shift", "weight", "bias", "out"}
    kinds = {
        name: "constexpr" if name in constants else TYPES[dtype] if name in mixed else "i32" if name in COUNTS
        else "fp32" if name == "eps" else "*fp32"
        for name in kernel.arg_names
    }
    return ASTSource(fn=kernel, signature=kinds, constexprs=constants)


def assembled(compiled, number, target):
    with tempfile.TemporaryDirectory() as folder:
        file, made = Path(folder) / "kernel.ptx", Path(folder) / "kernel.cubin"
        file.write_text(compiled.asm["ptx"])
        command = [get_ptxas(number).path, "-v", f"--gpu-name={target}", str(file), "-o", str(made)]
        return subprocess.run(command, check=True, capture_output=True, text=True).stderr


tile = {"CELLS": kernels.CELLS, "CHANNELS": kernels.CHANNELS}
forms = [(kernels.group_moments, {"PARTS": kernels.PARTS, "WIDTH": width}) for width in (1, 64)]
for shifted in (False, True):
    forms.append((kernels.channel_moments, {"HAS_SHIFT": shifted, **tile}))
    forms.append((kernels.normalise, {"HAS_SHIFT": shifted, "SILU": shifted, **tile}))
# A number that is 1 is a constant to Triton: a single cell, a picture in one part, groups of one channel.
forms.append((kernels.group_moments, {"PARTS": kernels.PARTS, "WIDTH": 1, "cells": 1, "parts": 1, "per_group": 1}))
forms.append((kernels.channel_moments, {"HAS_SHIFT": True, "cells": 1, **tile}))
forms.append((kernels.normalise, {"HAS_SHIFT": True, "SILU": False, "cells": 1, "per_group": 1, **tile}))
for number, target in ((80, "sm_80"), (89, "sm_89"), (90, "sm_90a")):
    for kernel, constants in forms:
        mixes = "x" in kernel.arg_names
        for dtype in (TYPES if number == 90 else [torch.bfloat16]) if mixes else [torch.float32]:
            compiled = triton.compile(source(kernel, dtype, constants), target=GPUTarget("cuda", number, 32))
            told = {"kernel": kernel.__name__, "target": target, "dtype": str(dtype), "form": constants}
            told |= {"shared": compiled.metadata.shared, "warps": compiled.metadata.num_warps}
            print(json.dumps({**told, "assembler": assembled(compiled, number, target)}))
"""


@pytest.mark.skipif(not find_spec("triton") or is_older("triton", 3, 2), reason="needs triton 3.2 or newer")
def test_kernels_compile_for_cards_of_three_generations_and_spill_nothing(tmp_path: Path) -> None:
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    rows: list[dict[str, Any]] = [json.loads(line) for line in done.stdout.splitlines()]
    assert {row["target"] for row in rows} == {"sm_80", "sm_89", "sm_90a"}
    for row in rows:
        assert "0 bytes spill stores, 0 bytes spill loads" in row["assembler"], row
        registers = int(row["assembler"].split("Used ")[1].split(" registers")[0])
        # 65536 registers, and a block's threads each hold theirs: four blocks or more on a multiprocessor.
        assert registers * row["warps"] * 32 * 4 <= 65536, (registers, row)
        assert row["shared"] <= 16 * 1024, row
