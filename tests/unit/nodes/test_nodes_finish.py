"""The colour fix and the paste back: exact colours of blocks, and untouched pixels that stay bit-equal."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from comfyui_controlnet_core.controlnet_core.errors import ShapeError, ValueRangeError
from comfyui_controlnet_core.preprocessors.classic.paste import feather_mask
from torch import Tensor

BOUND = 1 / 255


def picture(height: int, width: int, seed: int = 0, count: int = 1) -> Tensor:
    return torch.rand(count, height, width, 3, generator=torch.Generator().manual_seed(seed))


def means(image: Tensor, block: int = 8) -> Tensor:
    """Mean colours of the blocks; those at the edges are smaller where the side is no multiple."""
    return F.avg_pool2d(image.double().movedim(-1, 1), block, ceil_mode=True)


def stepped(height: int, width: int) -> Tensor:
    """A picture of patches in black, white and pure colours, where any correction has to clip."""
    coarse = picture(8, 8, 5).round().movedim(-1, 1)
    return F.interpolate(coarse, size=(height, width), mode="nearest").movedim(1, -1)


@pytest.mark.parametrize("size", [(64, 64), (45, 61), (5, 3)])
@pytest.mark.parametrize("sharpness", [0.0, 1.0])
def test_the_mean_colour_of_each_block_is_that_of_the_source(run: Any, size: tuple[int, int], sharpness: float) -> None:
    drifted = picture(*size) ** torch.tensor([2.0, 1.3, 0.6])
    for source in (picture(*size, 1), stepped(*size), torch.ones(1, *size, 3), torch.zeros(1, *size, 3)):
        (fixed,) = run("CNCore_TileColorFix", image=drifted, source=source, sharpness=sharpness)
        assert fixed.shape == drifted.shape and fixed.dtype == torch.float32
        assert fixed.min() >= 0 and fixed.max() <= 1
        assert (means(fixed) - means(source)).abs().max() < BOUND / 10
    assert (means(drifted) - means(picture(*size, 1))).abs().max() > 10 * BOUND


def test_a_decoded_picture_gets_the_colours_of_its_source(run: Any) -> None:
    vae = run("CNCore_LoadCheckpoint", checkpoint="demo (built in)")[2]
    source = stepped(64, 64)
    (decoded,) = run("VAEDecode", samples=run("VAEEncode", pixels=source, vae=vae)[0], vae=vae)
    (fixed,) = run("CNCore_TileColorFix", image=decoded, source=source)
    assert (means(decoded) - means(source)).abs().max() > 0.1
    assert (means(fixed) - means(source)).abs().max() < BOUND


def test_detail_of_the_result_stays(run: Any) -> None:
    source, detail = torch.full((1, 64, 64, 3), 0.5), 0.1 * (picture(64, 64) - 0.5)
    (fixed,) = run("CNCore_TileColorFix", image=0.3 + detail, source=source)
    inner = (fixed - 0.5 - detail)[:, 8:-8, 8:-8]
    # What changed is no finer than the blocks; noise of this size has means of about 0.004.
    assert inner.std() < 0.005 and detail.std() > 0.028
    (same,) = run("CNCore_TileColorFix", image=source + detail, source=source + detail)
    torch.testing.assert_close(same, source + detail, atol=1e-6, rtol=0)
    (sharp,) = run("CNCore_TileColorFix", image=0.3 + detail, source=source, sharpness=1.0)
    assert sharp.std() > 1.4 * fixed.std()


def test_the_correction_has_no_steps_between_blocks(run: Any) -> None:
    ramp = torch.linspace(0.2, 0.8, 128)[None, None, :, None].expand(1, 64, 128, 3)
    (fixed,) = run("CNCore_TileColorFix", image=torch.full((1, 64, 128, 3), 0.5), source=ramp, block_size=32)
    step = 0.6 / 127
    slopes = fixed[0, 32].diff(dim=0)
    assert slopes.abs().max() < 5 * step


def test_source_sizes_and_batches_of_the_colour_fix(run: Any) -> None:
    small = picture(16, 24, 2)
    large = F.interpolate(small.movedim(-1, 1), size=(32, 48), mode="bilinear", antialias=True).movedim(1, -1)
    (fixed,) = run("CNCore_TileColorFix", image=picture(32, 48, 3, count=2), source=small)
    assert (means(fixed) - means(large)).abs().max() < BOUND
    # VAE Encode crops 67 to 64 pixels, one at the left and two at the right: that part is the source.
    whole = picture(64, 67, 4)
    (cropped,) = run("CNCore_TileColorFix", image=picture(64, 64, 3), source=whole)
    assert (means(cropped) - means(whole[:, :, 1:65])).abs().max() < BOUND
    with pytest.raises(ShapeError, match="image 3, source 2"):
        run("CNCore_TileColorFix", image=picture(8, 8, count=3), source=picture(8, 8, count=2))
    with pytest.raises(ValueRangeError, match="not finite"):
        run("CNCore_TileColorFix", image=torch.full((1, 8, 8, 3), torch.nan), source=picture(8, 8))


def disc(size: int = 64) -> Tensor:
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    return torch.from_numpy((x**2 + y**2 < 400).astype(np.float32))[None]


@pytest.mark.parametrize("feather", [0.0, 4.0, 500.0])
def test_unmasked_pixels_are_bit_equal(run: Any, feather: float) -> None:
    source, result, mask = picture(64, 64, 1), picture(64, 64, 2), disc()
    source[0, 0, 0] = torch.tensor([1.5, -0.0, torch.nan])  # as it is, whatever it is
    result[0, 0, 1] = torch.nan
    (pasted,) = run("CNCore_PasteBack", source=source, result=result, mask=mask, feather=feather)
    outside = mask == 0
    assert torch.equal(pasted[outside].view(torch.int32), source[outside].view(torch.int32))
    assert not torch.equal(pasted[mask > 0], source[mask > 0])
    if feather == 0:
        assert torch.equal(pasted[mask > 0], result[mask > 0])


def test_feather_rises_inside_the_mask_only() -> None:
    mask = np.zeros((9, 40), np.float32)
    mask[:, 10:] = 1.0
    weights = feather_mask(mask, 4.0)
    # The edge of the picture is no border: there is nothing beside it to blend with.
    assert (weights == weights[0]).all()
    np.testing.assert_allclose(weights[0, 8:16], [0, 0, 0.2, 0.4, 0.6, 0.8, 1, 1], atol=1e-6)
    assert (weights[0, 15:] == 1).all()
    assert np.array_equal(feather_mask(np.ones((4, 4), np.float32), 4.0), np.ones((4, 4)))
    assert not feather_mask(np.zeros((4, 4), np.float32), 4.0).any()


def test_masks_sizes_and_batches_of_the_paste(run: Any) -> None:
    source, result = picture(64, 67, 1), picture(64, 64, 2)
    # VAE Encode crops 67 to 64 pixels, one at the left and two at the right; the result goes back to its place.
    (pasted,) = run("CNCore_PasteBack", source=source, result=result, mask=torch.ones(1, 64, 67), feather=0.0)
    assert torch.equal(pasted[:, :, 1:65], result)
    assert torch.equal(pasted[:, :, [0, 65, 66]], source[:, :, [0, 65, 66]])
    # One source for several results, a mask of another size, and gray values that blend.
    gray = torch.full((32, 32), 0.5)
    (several,) = run("CNCore_PasteBack", source=result, result=picture(64, 64, 3, 2), mask=gray, feather=0.0)
    torch.testing.assert_close(several, (result + picture(64, 64, 3, 2)) / 2)
    (empty,) = run("CNCore_PasteBack", source=result, result=picture(128, 128), mask=torch.zeros(1, 64, 64))
    assert torch.equal(empty, result)
    with pytest.raises(ShapeError, match="source 1, result 2, mask 3"):
        run("CNCore_PasteBack", source=source, result=picture(64, 64, 0, 2), mask=torch.ones(3, 64, 67))
