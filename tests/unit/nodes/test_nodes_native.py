"""The arithmetic of ComfyUI's nodes, compared with values that are computed by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from comfyui_controlnet_core.controlnet_core.errors import ShapeError, ValueRangeError
from comfyui_controlnet_core.nodes.standalone.canny import canny
from comfyui_controlnet_core.nodes.standalone.conditions import share_control, to_conditions
from comfyui_controlnet_core.nodes.standalone.resize import bislerp, crop_to_aspect, resize


def entry(value: float = 0.0, **options: Any) -> list[Any]:
    return [torch.full((1, 77, 8), value), options]


# ---- conditions


def test_areas_in_cells_and_in_shares() -> None:
    halves = to_conditions([entry(area=(4, 6, 2, 1))], [entry()], (8, 8))
    area = halves[0][0].area
    assert area is not None and (area.top, area.left, area.height, area.width) == (2, 1, 4, 6)
    (condition,), _ = to_conditions([entry(area=("percentage", 0.5, 0.25, 0.5, 0.0))], [entry()], (8, 16))
    assert condition.area is not None
    assert (condition.area.top, condition.area.left) == (4, 0)
    assert (condition.area.height, condition.area.width) == (4, 4)
    (condition,), _ = to_conditions([entry(area=(8, 8, 4, 4))], [entry()], (8, 8))
    assert condition.area is not None and condition.area.height == condition.area.width == 4
    with pytest.raises(ShapeError, match="outside"):
        to_conditions([entry(area=(4, 4, 9, 0))], [entry()], (8, 8))


def test_an_area_of_one_half_gets_the_text_of_the_other_half() -> None:
    positive, negative = to_conditions([entry(1.0), entry(2.0, area=(4, 4, 0, 0))], [entry(3.0)], (8, 8))
    assert len(positive) == 2 and len(negative) == 2
    assert negative[1].area == positive[1].area
    assert torch.equal(negative[1].text, negative[0].text)


def test_masks_windows_and_strengths() -> None:
    mask = torch.zeros(1, 16, 16)
    mask[:, 8:12, 8:] = 1.0
    options = {"mask": mask, "mask_strength": 0.5, "strength": 2.0, "start_percent": 0.25}
    (condition,), _ = to_conditions([entry(**options)], [entry()], (16, 16))
    assert condition.mask is not None and condition.mask.max() == 0.5
    assert (condition.strength, condition.start, condition.end, condition.area) == (2.0, 0.25, 1.0, None)
    (condition,), _ = to_conditions([entry(**options, set_area_to_bounds=True)], [entry()], (16, 16))
    assert condition.area is not None
    assert (condition.area.top, condition.area.left, condition.area.height, condition.area.width) == (8, 8, 8, 8)


def test_control_is_shared_only_with_negatives_that_have_none() -> None:
    _, negative = to_conditions([entry()], [entry(), entry()], (8, 8))
    unit = ("unit",)
    shared = share_control(negative, [unit])  # type: ignore[list-item]
    assert [c.units for c in shared] == [unit, ()]
    assert share_control(shared, [("other",)]) == shared  # type: ignore[list-item]
    with pytest.raises(ShapeError, match="negative conditioning is empty"):
        to_conditions([entry()], [], (8, 8))


def test_conditioning_nodes(run: Any) -> None:
    one, two = [entry(1.0, pooled_output=torch.ones(1, 4))], [entry(3.0, pooled_output=torch.zeros(1, 4))]
    assert len(run("ConditioningCombine", conditioning_1=one, conditioning_2=two)[0]) == 2
    (average,) = run("ConditioningAverage", conditioning_to=one, conditioning_from=two, conditioning_to_strength=0.25)
    assert torch.allclose(average[0][0], torch.full((1, 77, 8), 2.5))
    assert torch.allclose(average[0][1]["pooled_output"], torch.full((1, 4), 0.25))
    assert run("ConditioningConcat", conditioning_to=one, conditioning_from=two)[0][0][0].shape == (1, 154, 8)
    (zero,) = run("ConditioningZeroOut", conditioning=one)
    assert not zero[0][0].any() and not zero[0][1]["pooled_output"].any() and one[0][0].all()
    (ranged,) = run("ConditioningSetTimestepRange", conditioning=one, start=0.1, end=0.9)
    assert (ranged[0][1]["start_percent"], ranged[0][1]["end_percent"]) == (0.1, 0.9)
    (area,) = run("ConditioningSetArea", conditioning=one, width=128, height=64, x=8, y=16)
    assert area[0][1]["area"] == (8, 16, 2, 1) and "area" not in one[0][1]
    (masked,) = run("ConditioningSetMask", conditioning=one, mask=torch.ones(4, 4), set_cond_area="mask bounds")
    assert masked[0][1]["mask"].shape == (1, 4, 4) and masked[0][1]["set_area_to_bounds"] is True


# ---- sizes


def test_crop_to_aspect() -> None:
    x = torch.arange(24.0).reshape(1, 1, 4, 6)
    assert crop_to_aspect(x, 1.0).shape == (1, 1, 4, 4)
    assert crop_to_aspect(x, 3.0).shape == (1, 1, 2, 6)
    assert torch.equal(crop_to_aspect(x, 1.0), x[..., 1:5])


def test_image_sizes(run: Any) -> None:
    image = torch.rand(1, 30, 40, 3)
    sizes = {
        (0, 0): (30, 40), (20, 0): (15, 20), (0, 60): (60, 80), (7, 9): (9, 7)
    }  # fmt: skip
    for (width, height), expected in sizes.items():
        (result,) = run("ImageScale", image=image, width=width, height=height, upscale_method="area")
        assert tuple(result.shape[1:3]) == expected
    assert run("ImageScaleBy", image=image, scale_by=0.5)[0].shape == (1, 15, 20, 3)
    (result,) = run("ImageScaleToTotalPixels", image=image, megapixels=0.01)
    assert result.shape == (1, 89, 118, 3)
    assert torch.equal(run("ImageInvert", image=image)[0], 1.0 - image)
    assert run("ImageBatch", image1=image, image2=torch.rand(2, 8, 8, 3))[0].shape == (3, 30, 40, 3)
    assert run("EmptyImage", width=4, height=2, color=0xFF0033)[0][0, 0, 0].tolist() == pytest.approx([1, 0, 0.2])
    with pytest.raises(ShapeError, match="at least 1"):
        run("ImageScaleBy", image=torch.rand(1, 4, 4, 3), scale_by=0.01)


def test_borders_for_outpainting(run: Any) -> None:
    image, mask = run("ImagePadForOutpaint", image=torch.ones(1, 16, 20, 3), left=8, bottom=8, feathering=4)
    assert image.shape == (1, 24, 28, 3) and mask.shape == (1, 24, 28)
    assert image[0, 0, 0, 0] == 0.5 and image[0, 0, 8, 0] == 1.0
    assert mask[0, 2, 6:14].tolist() == pytest.approx([1, 1, 1, 9 / 16, 4 / 16, 1 / 16, 0, 0])
    assert mask[0, 12:18, 27].tolist() == pytest.approx([0, 1 / 16, 4 / 16, 9 / 16, 1, 1])
    assert torch.equal(run("InvertMask", mask=mask)[0], 1.0 - mask)


def test_methods() -> None:
    x = torch.rand(1, 3, 9, 7)
    for method in ("nearest-exact", "bilinear", "area", "bicubic", "lanczos"):
        assert resize(x, 5, 6, method).shape == (1, 3, 6, 5)
    assert torch.equal(resize(x, 7, 9, "nearest-exact"), x)
    with pytest.raises(ValueRangeError):
        resize(x, 5, 6, "best")


def test_bislerp_keeps_lengths() -> None:
    angle = torch.tensor([0.0, torch.pi / 2])
    x = 2.0 * torch.stack((angle.cos(), angle.sin()))[None, :, None, :]
    assert torch.allclose(bislerp(x, 8, 1).norm(dim=1), torch.full((1, 1, 8), 2.0), atol=1e-5)
    same = torch.ones(1, 4, 3, 3)
    assert torch.allclose(bislerp(same, 5, 5), torch.ones(1, 4, 5, 5))


def test_latent_sizes(run: Any) -> None:
    latent = {"samples": torch.randn(1, 4, 8, 12)}
    assert run("LatentUpscale", samples=latent, width=192, height=128)[0]["samples"].shape == (1, 4, 16, 24)
    assert run("LatentUpscale", samples=latent, width=0, height=128)[0]["samples"].shape == (1, 4, 16, 24)
    assert run("LatentUpscale", samples=latent, width=0, height=0)[0] is latent
    assert run("LatentUpscaleBy", samples=latent)[0]["samples"].shape == (1, 4, 12, 18)
    batch = {"samples": torch.randn(3, 4, 8, 8), "noise_mask": torch.rand(3, 1, 8, 8)}
    (some,) = run("LatentFromBatch", samples=batch, batch_index=1, length=5)
    assert some["samples"].shape[0] == 2 and some["batch_index"] == [1, 2]
    assert torch.equal(some["noise_mask"], batch["noise_mask"][1:])
    (more,) = run("RepeatLatentBatch", samples=some, amount=2)
    assert more["samples"].shape[0] == 4 and more["batch_index"] == [1, 2, 3, 4]


# ---- edges


def test_canny_on_a_step() -> None:
    image = torch.zeros(1, 3, 16, 16)
    image[..., 8:] = 1.0
    edges = canny(image, 0.4, 0.8)
    assert edges.shape == (1, 1, 16, 16)
    columns = edges[0, 0].any(dim=0).nonzero().flatten().tolist()
    assert columns in ([7], [8], [7, 8]) or columns == []
    assert not canny(torch.full((1, 3, 8, 8), 0.5), 0.1, 0.2).any()


def test_canny_follows_weak_edges_from_strong_ones() -> None:
    image = torch.zeros(1, 3, 40, 40)
    slope = torch.linspace(0.05, 1.0, 40)[:, None]
    image[..., 20:] = slope
    image[..., 20] = slope[:, 0] / 2
    strict, loose = canny(image, 0.8, 0.8), canny(image, 0.1, 0.8)
    assert 0 < strict.sum() < loose.sum()
    assert ((loose - strict) >= 0).all()


def test_canny_refuses(run: Any) -> None:
    with pytest.raises(ValueRangeError, match="swap them"):
        run("Canny", image=torch.rand(1, 8, 8, 3), low_threshold=0.9, high_threshold=0.2)
    with pytest.raises(ShapeError):
        run("Canny", image=torch.rand(1, 1, 1, 3))
    assert run("Canny", image=torch.rand(2, 9, 8, 3))[0].shape == (2, 9, 8, 3)


def test_primitives(run: Any) -> None:
    for name in ("PrimitiveInt", "PrimitiveFloat", "PrimitiveBoolean", "PrimitiveString", "PrimitiveStringMultiline"):
        assert run(name, value=7) == (7,)
