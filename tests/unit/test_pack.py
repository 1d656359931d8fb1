"""Packed twins of single blocks against the blocks themselves."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from comfyui_controlnet_core.controlnet_core.models.float8 import FLOAT8
from comfyui_controlnet_core.controlnet_core.models.layers import ResBlock, TransformerBlock, Upsample
from comfyui_controlnet_core.controlnet_core.speed.packed_cpu import winograd
from comfyui_controlnet_core.controlnet_core.speed.packed_cpu.fused_blocks import FusedFeedForward
from comfyui_controlnet_core.controlnet_core.speed.packed_cpu.pack import Blocked, bytes_to_come, can_pack, pack
from comfyui_controlnet_core.controlnet_core.speed.packed_cpu.winograd import Doubled, Winograd, suits
from comfyui_controlnet_core.controlnet_core.speed.packed_cpu.work_buffer import WorkBuffer
from torch import Tensor, nn

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 3e-2}
"""Of the largest value."""


@pytest.fixture(autouse=True)
def without_matrix_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles are tested in bfloat16 on all processors, also where they are not used because products are so fast."""
    monkeypatch.setattr(winograd, "has_matrix_unit", lambda: False)


@pytest.fixture(params=TOLERANCE, ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """Both that a processor may pack."""
    if not can_pack(torch.device("cpu"), request.param):
        pytest.skip(f"this processor has no packed layers in {request.param}")
    return request.param


def assert_same(block: nn.Module, dtype: torch.dtype, *inputs: torch.Tensor) -> None:
    """The packed twin's output beside the block's own in float32; inputs are left as they are."""
    before = [x.clone() for x in inputs]
    kv = inputs[1] if len(inputs) == 2 else inputs[1:]
    with torch.inference_mode():
        plain = block(inputs[0], kv)
        cast = [x.to(dtype) for x in inputs]
        cast_kv = cast[1] if len(cast) == 2 else tuple(cast[1:])
        packed = pack(block, dtype, WorkBuffer())(cast[0], cast_kv)
    assert packed.dtype == dtype and packed.shape == plain.shape
    assert float((packed.float() - plain).abs().max()) <= TOLERANCE[dtype] * float(plain.abs().max())
    assert all(torch.equal(x, b) for x, b in zip(inputs, before, strict=True))


@pytest.mark.parametrize("width_in", [64, 96])
def test_residual_block(width_in: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, width_in, 9, 7).contiguous(memory_format=torch.channels_last)
    assert_same(ResBlock(width_in, 64, 32), dtype, x, torch.randn(2, 64, 1, 1))


@pytest.mark.parametrize("tokens", [1, FusedFeedForward.TOKENS, FusedFeedForward.TOKENS + 37])
def test_transformer_block_for_any_number_of_tokens(tokens: int, dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    block = TransformerBlock(64, 48, 4)
    keys, values = torch.randn(2, 2, 4, 11, 16)
    assert_same(block, dtype, torch.randn(2, tokens, 64), keys, values)


PLAIN = ([1, 1], [1, 1], [1, 1], 1)
"""Padding, stride, dilation and groups of the convolutions in a residual block."""


@pytest.fixture
def always_tiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small layers are computed by tiles too, a few rows of them at a time."""
    monkeypatch.setattr(winograd, "LEAST_WIDTH", 1)
    monkeypatch.setattr(winograd, "LEAST_WORK", dict.fromkeys(winograd.LEAST_WORK, 0))
    monkeypatch.setattr(winograd, "STRIP_BYTES", 200_000)


def error(got: Tensor, exact: Tensor) -> float:
    """Of the largest value."""
    return float((got - exact).abs().max() / exact.abs().max())


@torch.inference_mode()
@pytest.mark.parametrize("size", [(2, 8, 8), (1, 26, 14), (3, 4, 10)], ids=str)
def test_convolution_by_tiles(size: tuple[int, int, int], dtype: torch.dtype, always_tiled: None) -> None:
    """In float32 no further from the exact result than oneDNN's own convolution."""
    torch.manual_seed(2)
    rows, height, width = size
    x = torch.randn(rows, 64, height, width).to(dtype).contiguous(memory_format=torch.channels_last)
    weight, bias = torch.randn(48, 64, 3, 3).to(dtype), torch.randn(48).to(dtype)
    residual = torch.randn(rows, 48, height, width).to(dtype)
    exact = F.conv2d(x.double(), weight.double(), bias.double(), padding=1)
    conv = Winograd(weight, bias, dtype, WorkBuffer())
    got = conv(x)
    assert got.dtype == dtype and got.is_contiguous(memory_format=torch.channels_last)
    plain = error(F.conv2d(x, weight, bias, padding=1), exact)
    assert error(got, exact) <= (1.2 if dtype == torch.float32 else 3.0) * plain
    assert error(conv(x, residual), exact + residual) <= TOLERANCE[dtype]


@torch.inference_mode()
@pytest.mark.parametrize("size", [(2, 8, 8), (1, 13, 7)], ids=str)
def test_convolution_of_an_enlarged_picture_that_is_not_made(
    size: tuple[int, int, int], dtype: torch.dtype, always_tiled: None
) -> None:
    torch.manual_seed(3)
    x = torch.randn(size[0], 64, *size[1:]).to(dtype)
    weight, bias = torch.randn(48, 64, 3, 3).to(dtype), torch.randn(48).to(dtype)
    enlarged = F.interpolate(x.double(), scale_factor=2.0, mode="nearest")
    exact = F.conv2d(enlarged, weight.double(), bias.double(), padding=1)
    assert error(Doubled(weight, bias, dtype, WorkBuffer())(x), exact) <= TOLERANCE[dtype]


@torch.inference_mode()
@pytest.mark.parametrize("size", [(16, 12), (15, 12), (9, 7)], ids=str)
def test_upsample_to_any_size(size: tuple[int, int], dtype: torch.dtype, always_tiled: None) -> None:
    """Twice the size goes by tiles, what is not twice the size as ever."""
    torch.manual_seed(4)
    block, x = Upsample(64), torch.randn(2, 64, 8, 6)
    plain, twin = block(x, size), pack(block, dtype, WorkBuffer())
    assert error(twin(x.to(dtype), size), plain) <= TOLERANCE[dtype]
    assert (Doubled in twin.block.conv.tiled) == (size == (16, 12))


@torch.inference_mode()
def test_which_convolutions_go_by_tiles(dtype: torch.dtype) -> None:
    """Those whose gain was measured; others keep the layout of oneDNN. A weight in float8 is not transformed."""
    large = torch.Size((2, 320, 32, 32))

    def asked(weight: tuple[int, ...], geometry: winograd.Geometry = PLAIN, size: torch.Size = large) -> bool:
        return suits(torch.Size(weight), geometry, size, dtype)

    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert asked((320, 320, 3, 3))
        assert not asked((320, 320, 1, 1), ([0, 0], [1, 1], [1, 1], 1))
        assert not asked((320, 320, 3, 3), ([1, 1], [2, 2], [1, 1], 1))
        assert not asked((4, 320, 3, 3))
        assert not asked((64, 64, 3, 3), size=torch.Size((2, 64, 256, 256)))
        assert not asked((320, 320, 3, 3), size=torch.Size((2, 320, 31, 32)))
        assert not asked((1280, 1280, 3, 3), size=torch.Size((2, 1280, 4, 4)))
        conv = nn.Conv2d(320, 320, 3, padding=1)
        x = torch.randn(large).to(dtype).contiguous(memory_format=torch.channels_last)
        twin = pack(conv, dtype, WorkBuffer())
        assert bytes_to_come(twin) == 16 * 320 * 320 * dtype.itemsize
        twin(x)
        assert bytes_to_come(twin) == 0
        assert Winograd in twin.tiled and not twin.blocked and twin.nbytes == 16 * 320 * 320 * dtype.itemsize
        plain = pack(conv, dtype)
        assert bytes_to_come(plain) == 9 * 320 * 320 * dtype.itemsize
        plain(x)
        assert isinstance(plain.blocked[large], Blocked) and plain.nbytes == 9 * 320 * 320 * dtype.itemsize
        narrow = pack(conv.to(FLOAT8[0]), dtype, WorkBuffer())
        narrow(x)
        assert not narrow.blocked and not narrow.tiled and narrow.nbytes == 9 * 320 * 320
    finally:
        torch.set_num_threads(threads)


@torch.inference_mode()
def test_a_filter_of_tiles_stays_when_many_sizes_come(dtype: torch.dtype, always_tiled: None) -> None:
    """As with areas: the whole picture by tiles, two of odd sizes by the definition, again and again."""
    torch.manual_seed(6)
    conv = nn.Conv2d(64, 64, 3, padding=1)
    twin = pack(conv, dtype, WorkBuffer())
    inputs = [torch.randn(1, 64, *size).to(dtype) for size in ((16, 16), (15, 16), (13, 16), (16, 12))]
    for x in inputs:
        twin(x)
    filter_of_tiles = twin.tiled[Winograd]
    for x in inputs:
        exact = F.conv2d(x.double(), conv.weight.double(), conv.bias.double(), padding=1)
        assert error(twin(x), exact) <= TOLERANCE[dtype]
    assert twin.tiled[Winograd] is filter_of_tiles and len(twin.blocked) == twin.SIZES
    assert twin.nbytes == (16 + 2 * 9) * 64 * 64 * dtype.itemsize


@torch.inference_mode()
def test_a_wide_residual_block_goes_by_tiles(dtype: torch.dtype, always_tiled: None) -> None:
    torch.manual_seed(5)
    x = torch.randn(2, 96, 12, 8).contiguous(memory_format=torch.channels_last)
    assert_same(ResBlock(96, 64, 32), dtype, x, torch.randn(2, 64, 1, 1))


def test_scratch_is_one_buffer_that_grows() -> None:
    work_buffer = WorkBuffer()
    with torch.inference_mode():
        small, half = work_buffer.take(((3, 5), torch.float32), ((7,), torch.bfloat16))
        small.fill_(1.0), half.fill_(2.0)
        assert float(small.sum()) == 15.0 and float(half.sum()) == 14.0
    buffer = work_buffer.buffer
    again, _ = work_buffer.take(((3, 5), torch.float32), ((7,), torch.bfloat16))
    assert work_buffer.buffer is buffer and again.data_ptr() == small.data_ptr()
    again.zero_()  # not a tensor of inference mode
    (large,) = work_buffer.take(((1000,), torch.float64))
    assert large.shape == (1000,) and work_buffer.buffer.numel() >= 8000


def test_each_thread_writes_to_a_buffer_of_its_own() -> None:
    """Runs in two threads may share a backend, and so the layers that write to it."""
    work_buffer = WorkBuffer()
    (own,) = work_buffer.take(((4,), torch.float32))
    with ThreadPoolExecutor(1) as other:
        (theirs,) = other.submit(work_buffer.take, ((4,), torch.float32)).result()
    assert own.data_ptr() != theirs.data_ptr()


def test_no_tiles_in_bfloat16_where_the_processor_multiplies_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, size = torch.Size((320, 320, 3, 3)), torch.Size((2, 320, 64, 64))
    assert suits(weight, PLAIN, size, torch.bfloat16) and suits(weight, PLAIN, size, torch.float32)
    monkeypatch.setattr(winograd, "has_matrix_unit", lambda: True)
    assert not suits(weight, PLAIN, size, torch.bfloat16) and suits(weight, PLAIN, size, torch.float32)


def test_the_buffer_holds_one_column_of_places() -> None:
    """The largest layer of SD1.5 at 128 pixels: with all 16 places at once and no memory used twice, 16 MB."""
    buffer, conv = WorkBuffer(), nn.Conv2d(960, 320, 3, padding=1)
    with torch.inference_mode():
        Winograd(conv.weight, conv.bias, torch.float32, buffer)(torch.zeros(2, 960, 16, 16))
    assert buffer.nbytes < 8_000_000
