"""Nodes on masks, images and latents under ComfyUI's IDs, with values that are computed by hand."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from comfyui_controlnet_core.controlnet_core.errors import ValueRangeError
from comfyui_controlnet_core.nodes import build_nodes
from comfyui_controlnet_core.nodes.standalone.compositing import ImageCompositeMasked, LatentComposite
from comfyui_controlnet_core.nodes.standalone.host import StandaloneHost
from comfyui_controlnet_core.nodes.standalone.masks import FeatherMask, GrowMask, MaskComposite
from comfyui_controlnet_core.nodes.standalone.sigmas import FlipSigmas, SetFirstSigma
from comfyui_controlnet_core.nodes.standalone.upscaling import MissingPackage, unwrapped
from comfyui_controlnet_core.nodes.tiles import run_in_tiles


def spot(size: int = 9) -> torch.Tensor:
    mask = torch.zeros(1, size, size)
    mask[0, size // 2, size // 2] = 1.0
    return mask


@pytest.mark.parametrize(("tapered", "area"), [(True, 13), (False, 25)])
def test_a_mask_grows_to_a_diamond_or_a_square_and_shrinks_back(tapered: bool, area: int) -> None:
    (grown,) = GrowMask().run(spot(), 2, tapered)
    assert grown.sum() == area
    (back,) = GrowMask().run(grown, -2, tapered)
    assert torch.equal(back, spot())


def test_growing_ends_early_where_the_mask_is_white() -> None:
    (grown,) = GrowMask().run(spot(), 16384, False)
    assert grown.min() == 1.0


def test_masks_are_combined_where_they_overlap() -> None:
    (result,) = MaskComposite().run(torch.ones(1, 4, 4), torch.ones(1, 3, 3), 2, 2, "subtract")
    assert torch.equal(result[0, 2:, 2:], torch.zeros(2, 2))
    assert result.sum() == 12


def test_a_mask_fades_towards_a_side() -> None:
    (result,) = FeatherMask().run(torch.ones(1, 2, 8), 4, 0, 0, 0)
    assert result[0, 0].tolist() == [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]
    (result,) = FeatherMask().run(torch.ones(1, 2, 8), 0, 0, 4, 0)
    assert result[0, 0].tolist() == [1, 1, 1, 1, 1, 0.75, 0.5, 0.25]


def test_an_image_is_pasted_under_its_mask() -> None:
    mask = torch.tensor([[[1.0, 0.0], [0.5, 1.0]]])
    (result,) = ImageCompositeMasked().run(torch.zeros(1, 4, 4, 3), torch.ones(1, 2, 2, 3), 3, 1, False, mask)
    assert result[0, ..., 0].nonzero().tolist() == [[1, 3], [2, 3]]
    assert result[0, 2, 3, 0] == 0.5
    with pytest.raises(ValueRangeError, match="from 0"):
        ImageCompositeMasked().run(torch.zeros(1, 4, 4, 3), torch.ones(1, 2, 2, 3), -1, 0, False)


def test_a_latent_is_feathered_only_where_it_lies_inside() -> None:
    base, small = {"samples": torch.zeros(1, 1, 4, 8)}, {"samples": torch.ones(1, 1, 4, 4)}
    (result,) = LatentComposite().run(base, small, 0, 0, 16)
    assert result["samples"][0, 0, 0].tolist() == [1, 1, 1, 0.5, 0, 0, 0, 0]


def test_tables_of_sigmas_are_changed_without_touching_the_given_one() -> None:
    table = torch.tensor([3.0, 1.0, 0.0])
    assert FlipSigmas().run(table)[0].tolist() == pytest.approx([0.0001, 1.0, 3.0])
    assert SetFirstSigma().run(table, 5.0)[0].tolist() == [5.0, 1.0, 0.0]
    assert table.tolist() == [3.0, 1.0, 0.0]


@pytest.mark.parametrize("scale", [4, 0.25])
def test_tiles_of_a_local_function_show_no_seam(scale: float) -> None:
    x = torch.rand(2, 3, 40, 72, generator=torch.Generator().manual_seed(0))

    def resize(part: torch.Tensor) -> torch.Tensor:
        return F.interpolate(part, scale_factor=scale, mode="nearest")

    made = run_in_tiles(x, resize, (16, 24), 8, scale, 3)
    torch.testing.assert_close(made, resize(x), rtol=0, atol=1e-6)


def test_encoding_in_tiles_gives_the_latent_of_the_whole_picture(tmp_path: Path) -> None:
    """Group normalisations see one tile at a time, so there is a small difference."""
    host = StandaloneHost(tmp_path, tmp_path, device="cpu", dtype="fp32")
    nodes = build_nodes(host)
    _, _, vae = nodes["CNCore_LoadCheckpoint"]().run(checkpoint="demo (built in)")
    rows, columns = torch.linspace(0, 1, 96)[:, None, None], torch.linspace(0, 1, 160)[:, None]
    picture = (rows * columns * torch.tensor([1.0, 0.5, 0.2]))[None]
    (whole,) = nodes["VAEEncode"]().run(pixels=picture, vae=vae)
    (tiled,) = nodes["VAEEncodeTiled"]().run(pixels=picture, vae=vae, tile_size=64, overlap=16)
    assert tiled["samples"].shape == whole["samples"].shape
    error = (tiled["samples"] - whole["samples"]).norm() / whole["samples"].norm()
    assert error < 0.15
    with pytest.raises(ValueRangeError, match="below its half"):
        nodes["VAEEncodeTiled"]().run(pixels=picture, vae=vae, tile_size=64, overlap=32)


def test_averaged_weights_are_preferred_and_prefixes_removed() -> None:
    one, two = torch.zeros(1), torch.ones(1)
    assert unwrapped({"params.a": one, "params_ema.a": two}) == {"a": two}
    assert unwrapped({"module.a": one}) == {"a": one}
    assert unwrapped({"model.0.weight": one}) == {"model.0.weight": one}


def test_without_spandrel_the_loader_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "spandrel", None)
    loader = build_nodes(StandaloneHost(tmp_path, tmp_path, device="cpu"))["UpscaleModelLoader"]
    with pytest.raises(MissingPackage, match="pip install"):
        loader.VALIDATE_INPUTS()  # type: ignore[attr-defined]


def test_an_image_is_enlarged_by_a_network(tmp_path: Path) -> None:
    """A network of nearest neighbours in place of spandrel's: what counts here are tiles, limits and channels."""

    class Network(torch.nn.Module):
        scale = 4

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.interpolate(x, scale_factor=4, mode="nearest") * 2 - 0.5

    upscale = build_nodes(StandaloneHost(tmp_path, tmp_path, device="cpu"))["ImageUpscaleWithModel"]
    picture = torch.rand(1, 20, 530, 4, generator=torch.Generator().manual_seed(0))
    (made,) = upscale().run(upscale_model=Network(), image=picture)
    expected = (picture[..., :3] * 2 - 0.5).clamp(0, 1)
    assert made.shape == (1, 80, 2120, 3)
    torch.testing.assert_close(made[:, ::4, ::4], expected)
