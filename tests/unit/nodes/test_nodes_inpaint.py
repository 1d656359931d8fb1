"""Inpaint Control: which cells are sampled, what stays, and pixels outside of the mask that stay bit-equal."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from comfyui_controlnet_core.controlnet_core.errors import CoreError
from torch import Tensor

ONLY, HARMONIOUS = "inpaint_only", "inpaint_global_harmonious"


def picture(height: int = 64, width: int = 64) -> Tensor:
    return torch.rand(1, height, width, 3, generator=torch.Generator().manual_seed(height))


def square(height: int = 64, width: int = 64) -> Tensor:
    """A mask (1, H, W), white on rows 17 to 31 and columns 24 to 39."""
    mask = torch.zeros(1, height, width)
    mask[:, 17:32, 24:40] = 1.0
    return mask


@pytest.fixture
def home(run: Any) -> Any:
    """The nodes on a tiny model, with its parts."""
    model, clip, vae = run("CNCore_LoadCheckpoint", checkpoint="demo (built in)")
    (net,) = run("CNCore_LoadControlNet", control_net="demo canny (built in)")
    return run, model, vae, net, run("CNCore_EncodePrompt", clip=clip, prompt="a red sphere", negative_prompt="")


def prepared(home: Any, image: Tensor, mask: Tensor, mode: str = ONLY, **inputs: Any) -> Any:
    run, _, vae, net, (positive, negative) = home
    given = {
        "positive": positive, "negative": negative, "vae": vae, "image": image, "mask": mask, "mode": mode,
        "strength": 1.0, "start_percent": 0.0, "end_percent": 1.0, "masked_value": -1.0, "control_net": net, **inputs,
    }  # fmt: skip
    return run("CNCore_InpaintControl", **given)


def sampled(home: Any, made: Any, **settings: Any) -> Tensor:
    run, model, *_ = home
    positive, negative, latent = made
    given = {"seed": 3, "steps": 2, "cfg": 3.0, "sampler": "euler", "scheduler": "normal", "denoise": 1.0, **settings}
    return run("CNCore_Sample", model=model, positive=positive, negative=negative, latent=latent, **given)[0]["samples"]


def expected_cells(mask: Tensor) -> Tensor:
    """Cell by cell: any masked pixel in it, or one pixel around it."""
    height, width = mask.shape[0] // 8, mask.shape[1] // 8
    cells = torch.zeros(height, width)
    for row in range(height):
        for column in range(width):
            top, left = max(0, 8 * row - 1), max(0, 8 * column - 1)
            cells[row, column] = float((mask[top : 8 * row + 9, left : 8 * column + 9] > 0.5).any())
    return cells


def test_a_cell_is_sampled_if_it_or_its_border_has_a_masked_pixel(home: Any) -> None:
    mask = square() + 0.4 * torch.ones(1, 64, 64)  # gray below one half does not count
    cells = prepared(home, picture(), mask)[2]["noise_mask"]
    assert cells.shape == (1, 1, 8, 8) and torch.equal(cells[0, 0], expected_cells(mask[0]))
    # Rows 17 to 31 are cells 2 and 3; row 31 is beside cell 4. Columns 24 and 39 are beside cells 2 and 5.
    assert cells[0, 0].nonzero().amin(dim=0).tolist() == [2, 2] and cells[0, 0].nonzero().amax(dim=0).tolist() == [4, 5]


@torch.inference_mode()
def test_inpaint_only_keeps_the_latent_and_pasted_pixels_bit_for_bit(home: Any) -> None:
    run, _, vae, *_ = home
    image, mask = picture(), square()
    made = prepared(home, image, mask)
    after, before, cells = sampled(home, made), made[2]["samples"], made[2]["noise_mask"].bool().expand(1, 4, -1, -1)
    assert torch.equal(after[~cells], before[~cells])
    assert float((after - before)[cells].abs().mean()) > 0.05
    (decoded,) = run("VAEDecode", samples={"samples": after}, vae=vae)
    (pasted,) = run("CNCore_PasteBack", source=image, result=decoded, mask=mask, feather=2.0)
    outside = mask[0] == 0
    assert torch.equal(pasted[0][outside], image[0][outside])
    assert not torch.equal(decoded[0][outside], image[0][outside])
    assert float((pasted - image)[0][~outside].abs().mean()) > 0.05


@torch.inference_mode()
def test_global_harmonious_samples_everything(home: Any) -> None:
    """No mask of the latent, the same hint; a low denoise stays near the image."""
    image, mask = picture(), square()
    only, both = prepared(home, image, mask), prepared(home, image, mask, HARMONIOUS)
    assert set(both[2]) == {"samples"} and torch.equal(both[2]["samples"], only[2]["samples"])
    hints = [made[0][0][1]["control"][0].hint for made in (only, both)]
    assert torch.equal(*hints)
    outside = ~only[2]["noise_mask"].bool().expand(1, 4, -1, -1)
    change = {
        denoise: float((sampled(home, both, denoise=denoise) - both[2]["samples"])[outside].abs().mean())
        for denoise in (0.2, 1.0)
    }
    assert 0.0 < change[0.2] < change[1.0]


@pytest.mark.parametrize("value", [-1.0, 0.0])
def test_the_hint_marks_the_masked_pixels(home: Any, value: float) -> None:
    image, mask = picture(), square()
    hint = prepared(home, image, mask, masked_value=value)[0][0][1]["control"][0].hint[0].movedim(0, -1)
    inside = mask[0] > 0.5
    assert bool((hint[inside] == value).all()) and torch.equal(hint[~inside], image[0][~inside])


@torch.inference_mode()
def test_sizes_that_are_no_multiple_of_8(home: Any) -> None:
    """Hint and mask are cropped as the encoder crops the image, and Paste Back puts the result where it was."""
    run, _, vae, *_ = home
    image, mask = picture(69, 77), square(69, 77)
    made = prepared(home, image, mask)
    hint = made[0][0][1]["control"][0].hint
    assert hint.shape == (1, 3, 64, 72) and made[2]["noise_mask"].shape == (1, 1, 8, 9)
    cropped = image[0, 2:66, 2:74].movedim(-1, 0)
    kept = hint[0] >= 0
    assert torch.equal(hint[0][kept], cropped[kept]) and bool((~kept).any())
    (decoded,) = run("VAEDecode", samples={"samples": sampled(home, made)}, vae=vae)
    (pasted,) = run("CNCore_PasteBack", source=image, result=decoded, mask=mask, feather=0.0)
    outside = mask[0] == 0
    assert torch.equal(pasted[0][outside], image[0][outside]) and not torch.equal(pasted, image)


def test_without_a_net_only_the_latent_is_made(home: Any) -> None:
    positive, negative, latent = prepared(home, picture(), square(), control_net=None)
    assert positive is home[4][0] and negative is home[4][1] and "noise_mask" in latent


def test_a_small_mask_is_resized_and_batches_are_matched(home: Any) -> None:
    masks = torch.cat([square(32, 64), square(32, 64).flip(2)])
    made = prepared(home, picture().expand(2, -1, -1, -1), masks)
    assert made[2]["noise_mask"].shape == (2, 1, 8, 8)
    hint = made[0][0][1]["control"][0].hint
    assert torch.equal(hint[0] < 0, (hint[1] < 0).flip(2))


BAD = {
    "an empty mask": (torch.zeros(1, 64, 64), "the mask has no white pixel"),
    "NaN": (torch.full((1, 64, 64), float("nan")), "the mask contains NaN"),
    "three masks for two images": (square().expand(3, -1, -1), "the batches have different lengths"),
}


@pytest.mark.parametrize("name", sorted(BAD))
def test_bad_masks_end_in_one_clear_line(home: Any, name: str) -> None:
    mask, words = BAD[name]
    with pytest.raises(CoreError) as caught:
        prepared(home, picture().expand(2, -1, -1, -1), mask)
    assert words in str(caught.value) and "\n" not in str(caught.value)
