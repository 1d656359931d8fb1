"""Tiled Upscale: the grid and its weights, the share of each tile, and one tile as the workflow without tiles."""

from __future__ import annotations

from itertools import pairwise, product
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from comfyui_controlnet_core.controlnet_core.control.hint import FITS, fit_hint, mask_at
from comfyui_controlnet_core.controlnet_core.control.picture_part import PicturePart
from comfyui_controlnet_core.controlnet_core.diffusion.noise import NoisePart, initial_noise
from comfyui_controlnet_core.controlnet_core.errors import ShapeError, UnfitError, ValueRangeError
from comfyui_controlnet_core.controlnet_core.sample import SampleSettings
from comfyui_controlnet_core.nodes.standalone.host import StandaloneHost
from comfyui_controlnet_core.nodes.tile_conditioning import crop_prompts
from comfyui_controlnet_core.nodes.tile_grid import CELL, TileGrid
from comfyui_controlnet_core.nodes.tile_sampling import sample_tiles, target_size
from comfyui_controlnet_core.nodes.values import SamplerInputs
from random_tensors import uniform
from torch import Tensor


@pytest.mark.parametrize(("tile", "overlap"), [(64, 0), (64, 8), (64, 32), (96, 40), (128, 64)])
def test_the_weights_of_all_tiles_add_up_to_one(tile: int, overlap: int) -> None:
    for height, width in product((8, 64, 72, 136, 200), (64, 120, 264, 512)):
        grid = TileGrid.cover((height, width), tile, overlap)
        total, covered = torch.zeros(height, width), torch.zeros(height, width)
        for row, column in grid.tiles:
            place = (slice(grid.rows[row], grid.rows[row] + grid.tile[0]),
                     slice(grid.columns[column], grid.columns[column] + grid.tile[1]))  # fmt: skip
            weights = grid.weights(row, column)
            assert weights.shape == grid.tile and weights.min() >= 0
            total[place] += weights
            covered[place] += 1
        assert (total - 1).abs().max() < 1e-6
        # What one tile alone shows is copied bit for bit.
        assert (total[covered == 1] == 1).all()
        for starts, side in ((grid.rows, height), (grid.columns, width)):
            assert starts[0] == 0 and starts[-1] == max(0, side - tile) and not any(s % CELL for s in starts)
            assert all(a < b <= a + tile - overlap for a, b in pairwise(starts))


def test_the_fewest_tiles() -> None:
    assert TileGrid.cover((512, 512), 512, 64).tiles == [(0, 0)]
    assert len(TileGrid.cover((2048, 2048), 512, 64).tiles) == 5 * 5
    with pytest.raises(ValueRangeError, match="overlap is 40 and tile_size 64: use at most half of it, 32"):
        TileGrid.cover((512, 512), 64, 40)


@pytest.mark.parametrize("fit", sorted(FITS))
@pytest.mark.parametrize("size", [(40, 56), (37, 90), (5, 3), (150, 151)])
def test_the_part_of_a_hint_is_that_of_the_whole_hint(fit: str, size: tuple[int, int]) -> None:
    hint, mask = uniform(2, 3, *size), uniform(2, *size, seed=1)
    whole = (117, 93)
    if fit == "pixel-perfect":
        with pytest.raises(ShapeError, match="pixel-perfect"):
            PicturePart(whole, 0, 0, 64, 64).hint(hint, fit)
        whole = size
    large, spread = fit_hint(hint, *whole, fit), mask_at(mask, whole)[:, 0]
    for top, left in ((0, 0), (whole[0] // 2, 16), (0, whole[1] - 1)):
        part = PicturePart(whole, top, left, 64, 40)
        rows = [min(top + i, whole[0] - 1) for i in range(64)]
        columns = [min(left + i, whole[1] - 1) for i in range(40)]
        assert torch.equal(part.hint(hint, fit), large[..., rows, :][..., columns])
        assert torch.equal(part.mask(mask), spread[..., rows, :][..., columns])


def test_the_noise_of_a_part_is_that_of_the_whole() -> None:
    whole = initial_noise((2, 4, 20, 30), 5)
    part = NoisePart(5, (20, 30), 6, 10)
    assert torch.equal(initial_noise((2, 4, 8, 12), 99, None, part), whole[..., 6:14, 10:22])
    single = initial_noise((1, 4, 8, 12), 99, [1], part)
    assert torch.equal(single, initial_noise((1, 4, 20, 30), 5, [1])[..., 6:14, 10:22])


def test_sizes() -> None:
    assert target_size((100, 60), 2.0, 0, 0) == (200, 120)
    assert target_size((100, 60), 2.0, 90, 0) == (150, 90)
    assert target_size((100, 60), 2.0, 0, 50) == (50, 30)
    assert target_size((100, 60), 2.0, 33, 44) == (44, 33)
    with pytest.raises(ValueRangeError, match="the result would be 32000x16000 pixels: give sides from 1 to 16384"):
        target_size((1000, 2000), 16.0, 0, 0)
    with pytest.raises(ValueRangeError, match="the result would be 16384x16384 pixels: give at most 67,108,864 in all"):
        target_size((1000, 1000), 1.0, 16384, 16384)


class PixelHost(StandaloneHost):
    """A host whose latents are the pixels, and whose sampler returns what came in, and notes it."""

    def __init__(self) -> None:
        super().__init__(device="cpu")
        self.calls: list[tuple[SamplerInputs, Any]] = []

    def encode(self, vae: Any, pixels: Tensor, *args: Any) -> Tensor:
        return pixels

    def decode(self, vae: Any, samples: Tensor, *args: Any) -> Tensor:
        return samples

    def sample(self, inputs: SamplerInputs, options: Any = None) -> Any:  # type: ignore[override]
        self.calls.append((inputs, options))
        return inputs.latent


@pytest.mark.parametrize("size", [(256, 256), (203, 117), (64, 300), (7, 9)])
def test_an_image_that_is_not_changed_comes_back(size: tuple[int, int]) -> None:
    host, picture = PixelHost(), uniform(2, *size, 3)
    inputs = SamplerInputs(None, [[None, {}]], [[None, {}]], {}, SampleSettings(seed=2**64 - 1))
    made = sample_tiles(host, inputs, None, picture, 64, 16)
    torch.testing.assert_close(made, picture, atol=1e-6, rtol=0)
    seeds = [call.settings.seed for call, _ in host.calls]
    assert seeds[:2] == [2**64 - 1, 0][: len(seeds)] and len(set(seeds)) == len(seeds)
    assert [options.part for _, options in host.calls] == [(i, len(seeds)) for i in range(len(seeds))]
    # Memory is bounded: no call has more than one tile.
    assert all(max(call.latent["samples"].shape[1:3]) <= 64 for call, _ in host.calls)
    if len(seeds) > 1:
        noises = {(call.settings.noise_part.seed, call.settings.noise_part.size) for call, _ in host.calls}
        assert noises == {(2**64 - 1, tuple(-(-side // CELL) for side in size))}


def test_areas_and_masks_of_prompts() -> None:
    host: Any = SimpleNamespace(crop_control=lambda positive, negative, part: (positive, negative))
    part = PicturePart((128, 128), 64, 0, 64, 64)
    mask = torch.zeros(1, 16, 16)
    mask[:, 12:, :4] = 1.0

    def cropped(**options: Any) -> list[dict[str, Any]]:
        return [own for _, own in crop_prompts(host, [[None, options]], [], part)[0]]

    assert cropped(area=(10, 10, 2, 3)) == [{"area": (4, 5, 0, 3)}]
    assert cropped(area=("percentage", 0.25, 1.0, 0.75, 0.0)) == [{"area": (4, 8, 4, 0)}]
    assert cropped(area=(4, 4, 0, 0)) == [] and cropped(area=(4, 4, 8, 8)) == []
    (own,) = cropped(mask=mask, strength=0.5)
    assert torch.equal(own["mask"], mask[:, 8:, :8]) and own["strength"] == 0.5
    assert cropped(mask=1.0 - mask.flip(1).flip(2)) != [] and cropped(mask=mask.flip(1)) == []
    latent, where = uniform(1, 4, 16, 16), uniform(1, 1, 128, 128)
    (own,) = cropped(concat_latent_image=latent, concat_mask=where)
    assert torch.equal(own["concat_latent_image"], latent[..., 8:, :8])
    assert torch.equal(own["concat_mask"], where[..., 64:, :64])
    with pytest.raises(UnfitError, match="GLIGEN"):
        cropped(gligen=("position", None, []))


def test_a_tile_without_a_prompt_keeps_its_pixels() -> None:
    host, picture = PixelHost(), uniform(1, 64, 128, 3)
    host.decode = lambda vae, samples, *args: samples * 0.0  # type: ignore[method-assign]
    inputs = SamplerInputs(None, [[None, {"area": (8, 4, 0, 0)}]], [[None, {}]], {}, SampleSettings())
    made = sample_tiles(host, inputs, None, picture, 64, 0)
    assert torch.equal(made[:, :, 64:], picture[:, :, 64:]) and not made[:, :, :64].any()


@pytest.fixture
def given(run: Any) -> dict[str, Any]:
    """What the node reads, with two units: a hint and a mask, and a reference."""
    model, clip, vae = run("CNCore_LoadCheckpoint", checkpoint="demo (built in)")
    halves = run("CNCore_EncodePrompt", clip=clip, prompt="a red sphere", negative_prompt="grey")
    (net,) = run("CNCore_LoadControlNet", control_net="demo canny (built in)")
    halves = run("CNCore_ApplyControlNet", positive=halves[0], negative=halves[1], control_net=net,
                 image=uniform(1, 48, 48, 3, seed=3), mask=uniform(1, 20, 20, seed=4))  # fmt: skip
    halves = run("CNCore_ReferenceControl", positive=halves[0], negative=halves[1], vae=vae, mode="adain",
                 image=uniform(1, 32, 32, 3, seed=5), mask=uniform(1, 20, 20, seed=6))  # fmt: skip
    settings = {"seed": 3, "steps": 2, "cfg": 4.0, "denoise": 0.7, "sampler": "euler_ancestral", "overlap": 16}
    return {"model": model, "positive": halves[0], "negative": halves[1], "vae": vae, **settings}


@torch.inference_mode()
def test_one_tile_is_the_workflow_without_tiles(run: Any, given: dict[str, Any]) -> None:
    picture = uniform(2, 32, 48, 3)
    (made,) = run("CNCore_TiledUpscale", image=picture, tile_size=96, **given)
    (large,) = run("ImageScaleBy", image=picture, upscale_method="lanczos", scale_by=2.0)
    vae, rest = given["vae"], {name: value for name, value in given.items() if name not in ("vae", "overlap")}
    (latent,) = run("CNCore_Sample", latent=run("VAEEncode", pixels=large, vae=vae)[0], **rest)
    (plain,) = run("VAEDecode", samples=latent, vae=vae)
    assert torch.equal(made, plain)
    assert not torch.equal(run("CNCore_TiledUpscale", image=picture, tile_size=64, **given)[0], plain)


@torch.inference_mode()
def test_each_tile_gets_its_part_of_control(run: Any, host: Any, given: dict[str, Any]) -> None:
    seen: list[SamplerInputs] = []
    bars: list[tuple[int, int]] = []
    sample = host.sample
    host.sample = lambda inputs, options: seen.append(inputs) or sample(inputs, options)
    host.progress = lambda done, total, preview=None: bars.append((done, total))
    given = {**given, "steps": 1, "denoise": 1.0}
    (made,) = run("CNCore_TiledUpscale", image=uniform(1, 48, 48, 3), width=96, tile_size=64, **given)
    assert made.shape == (1, 96, 96, 3) and len(seen) == 2 * 2
    hinted, reference = given["positive"][0][1]["control"]
    hint, masks = fit_hint(hinted.hint, 96, 96), mask_at(hinted.mask, (96, 96))[:, 0]
    for inputs, (top, left) in zip(seen, product((0, 32), (0, 32)), strict=True):
        own, look = inputs.positive[0][1]["control"]
        assert torch.equal(own.hint, hint[..., top : top + 64, left : left + 64])
        assert torch.equal(own.mask, masks[..., top : top + 64, left : left + 64])
        # A reference is no map of the picture: it stays whole, and only its mask is cut.
        assert torch.equal(look.hint, reference.hint) and look.mask.shape == (1, 64, 64)
        # Units that both halves share are still shared.
        assert inputs.negative[0][1]["control"][0] is own
        assert (inputs.settings.noise_part.top, inputs.settings.noise_part.left) == (top // CELL, left // CELL)
    assert bars == [(i + 1, 4) for i in range(4)]


def test_bad_input_ends_in_one_clear_line(run: Any, given: dict[str, Any]) -> None:
    picture = uniform(1, 16, 16, 3)
    broken = picture.clone()
    broken[0, 3, 3] = torch.nan
    for image, settings, message in (
        (broken, {}, "the image contains NaN or infinity"),
        (picture, {"width": 16384, "height": 1, "overlap": 504}, "overlap is 504 and tile_size 512: use at most"),
        (picture, {"scale_by": 16.0, "width": 17000}, "give sides from 1 to 16384"),
    ):
        with pytest.raises(ValueRangeError, match=message) as caught:
            run("CNCore_TiledUpscale", **{**given, "image": image, **settings})
        assert "\n" not in str(caught.value)


def test_further_hints_follow(run: Any) -> None:
    positive, negative = ([[torch.zeros(1, 77, 32), {}]] for _ in range(2))
    (net,) = run("CNCore_LoadControlNet", control_net="demo canny (built in)")
    hint, more = uniform(1, 40, 40, 3), uniform(2, 24, 24, 3, seed=1)
    (hints,) = run("CNCore_MoreHints", image=more, hint_type="depth")
    given = {"positive": positive, "negative": negative, "control_net": net, "image": hint, "more_hints": hints}
    unit = run("CNCore_ApplyControlNet", **given)[0][0][1]["control"][0]
    part = PicturePart((96, 80), 32, 16, 64, 64).unit(unit)
    assert part.more_hints[0].kind == "depth"
    for own, picture in zip(part.hints, (hint, more), strict=True):
        whole = fit_hint(picture.movedim(-1, 1), 96, 80)
        assert torch.equal(own.picture, whole[..., 32:96, 16:80])


def test_a_net_is_left_out_where_its_mask_is_black(run: Any, host: Any) -> None:
    positive, negative = ([[torch.zeros(1, 77, 32), {}]] for _ in range(2))
    (net,) = run("CNCore_LoadControlNet", control_net="demo canny (built in)")
    mask = torch.zeros(1, 8, 8)
    mask[..., :2] = 1.0
    for unit in ({"mask": mask}, {}):
        given = {"positive": positive, "negative": negative, "control_net": net, "image": uniform(1, 8, 8, 3), **unit}
        positive, negative = run("CNCore_ApplyControlNet", **given)
    for left, count in ((0, 2), (64, 1)):
        halves = crop_prompts(host, positive, negative, PicturePart((64, 128), 0, left, 64, 64))
        assert [len(half[0][1]["control"]) for half in halves] == [count, count]


class Doubler:
    """An upscaling network that doubles pixels."""

    scale = 2

    def to(self, device: Any) -> Doubler:
        return self

    def __call__(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2.0, mode="nearest")


@torch.inference_mode()
def test_an_upscale_model_enlarges_first(run: Any, host: Any, given: dict[str, Any]) -> None:
    seen: list[Tensor] = []
    encode = host.encode
    host.encode = lambda vae, pixels: seen.append(pixels) or encode(vae, pixels)
    picture = uniform(1, 24, 24, 3)
    rest = {**given, "upscale_model": Doubler(), "tile_size": 64, "image": picture}
    assert run("CNCore_TiledUpscale", **rest)[0].shape == (1, 48, 48, 3)
    doubled = picture.repeat_interleave(2, 1).repeat_interleave(2, 2)
    torch.testing.assert_close(seen[0], doubled, atol=1e-6, rtol=0)
    assert run("CNCore_TiledUpscale", **{**rest, "scale_by": 2.5})[0].shape == (1, 60, 60, 3)
    (smaller,) = run("ImageScale", image=doubled, upscale_method="lanczos", width=60, height=60, crop="disabled")
    torch.testing.assert_close(seen[1][:, :60, :60], smaller, atol=1 / 255, rtol=0)
