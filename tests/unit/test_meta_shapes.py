"""Shape rules of operators on meta tensors, beside the operators themselves."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from comfyui_controlnet_core.controlnet_core.runtime.meta_shapes import SHAPE_RULES
from installed import is_older
from torch import Tensor

ATEN = torch.ops.aten
X = torch.rand(2, 8, 6, 5)
ROWS = torch.rand(2, 6, 8)
CASES: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = [
    (ATEN.silu.default, (X,), {}),
    (ATEN.gelu.default, (X,), {}),
    (ATEN.group_norm.default, (X, 4), {}),
    (ATEN.layer_norm.default, (X, [5]), {}),
    (ATEN.add.Tensor, (X, torch.rand(8, 1, 1)), {}),
    (ATEN.mul.Tensor, (torch.rand(5), X), {}),
    (ATEN.add_.Tensor, (X.clone(), 1.0), {}),
    (ATEN.copy_.default, (X.clone(), X), {}),
    (ATEN.empty_like.default, (X,), {}),
    (ATEN.empty_like.default, (X,), {"dtype": torch.bfloat16}),
    (ATEN.cat.default, ([X, X[:, :3]], 1), {}),
    (ATEN.repeat.default, (X, [3, 1, 1, 2]), {}),
    (ATEN.arange.default, (7,), {}),
    (ATEN.linear.default, (ROWS, torch.rand(3, 8), torch.rand(3)), {}),
    (ATEN.mm.default, (ROWS[0], torch.rand(8, 3)), {}),
    (ATEN.conv2d.default, (X, torch.rand(4, 8, 3, 3), None, [2, 2], [1, 1]), {}),
    (ATEN.conv2d.default, (X, torch.rand(4, 8, 1, 1)), {}),
    (ATEN.einsum.default, ("ai,bj->abij", [ROWS[0], ROWS[1]]), {}),
    (ATEN.pixel_shuffle.default, (X, 2), {}),
    (ATEN.upsample_nearest2d.vec, (X, None, [2.0, 2.0]), {}),
    (ATEN._upsample_nearest_exact2d.vec, (X, [7, 9], None), {}),
    (ATEN.scaled_dot_product_attention.default, (ROWS, ROWS, ROWS[..., :4]), {}),
]


def on_meta(value: Any) -> Any:
    """The value with meta tensors in the place of its tensors."""
    if isinstance(value, list | tuple):
        return type(value)(on_meta(item) for item in value)
    return value.to("meta") if isinstance(value, Tensor) else value


@pytest.mark.parametrize(("operator", "args", "kwargs"), CASES, ids=lambda value: str(value) if callable(value) else "")
def test_a_rule_gives_what_the_operator_gives(
    operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:  # fmt: skip
    found, expected = SHAPE_RULES[operator](*on_meta(args), **kwargs), operator(*args, **kwargs)
    assert found.device.type == "meta"
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)


@pytest.mark.skipif(is_older("torch", 2, 5), reason="PyTorch 2.4 imports its compiler for other operators, too")
def test_a_run_does_not_import_the_compiler_of_torch() -> None:
    program = """if True:
        import sys
        import comfyui_controlnet_core as cn
        pipe = cn.load("demo")
        pipe("a red ball", steps=1, size=64)
        print([name for name in ("sympy", "torch._dynamo", "torch._inductor") if name in sys.modules])
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
