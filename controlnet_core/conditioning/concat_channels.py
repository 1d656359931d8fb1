"""Further input channels of inpainting and editing models, which they read beside the noisy latent.

Inpainting models (9 channels) read the latent, a mask of what is to be made, and the picture's latent with that
part taken out (Rombach et al. 2022, section 4.5). InstructPix2Pix models (8 channels) read the latent and the
latent of the picture that is to be edited (Brooks et al. 2023, section 3.2). Sizes and defaults are those of ComfyUI.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..control.hint import crop_to_aspect, repeat_to
from ..errors import UnfitError

INPAINT, EDIT = 5, 4
"""Further channels of an inpainting and of an editing model."""
GRAY = (0.8223, -0.6876, 0.6364, 0.1380)
"""The latent of a gray picture, by channel: what an inpainting model is shown where there is no picture."""


def inpaint_channels(mask: Tensor | None, picture: Tensor | None, shape: tuple[int, ...]) -> Tensor:
    """Make the further channels of an inpainting model, (B, 5, h, w): the mask, then the masked image.

    mask: (b, 1, H, W), 1 where something new is to be made. picture: scaled latent (b, 4, h', w') with the masked part
    taken out. Without one of them everything is new, and the model is shown a gray picture. shape: of the latent,
    (B, 4, h, w). Raises ShapeError when b does not divide B.
    """
    batch, channels, height, width = shape
    if mask is None or picture is None:
        gray = torch.tensor(GRAY).reshape(1, channels, 1, 1).expand(batch, channels, height, width)
        return torch.cat([torch.ones(batch, 1, height, width), gray], dim=1)
    # Rounded after it was resized: a cell is masked or not, as in the training of these models.
    mask = fit(mask.float(), shape).round()
    picture = fit(picture.float(), shape)
    return torch.cat([expand_batch(mask, batch, "mask"), expand_batch(picture, batch, "masked picture")], dim=1)


def edit_channels(picture: Tensor | None, shape: tuple[int, ...]) -> Tensor:
    """Make the further channels of an editing model, (B, 4, h, w).

    picture: the picture to edit as an unscaled latent (b, 4, h', w'); None gives zeros. shape: of the latent,
    (B, 4, h, w). Raises ShapeError when b does not divide B.
    """
    if picture is None:
        return torch.zeros(shape)
    return expand_batch(fit(picture.float(), shape), shape[0], "picture to edit")


def fit(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """(b, c, H, W) -> (b, c, h, w): cropped at the centre to the aspect ratio of `shape` (..., h, w), then bilinear."""
    height, width = shape[-2:]
    if tuple(x.shape[-2:]) == (height, width):
        return x
    return F.interpolate(crop_to_aspect(x, height, width), size=(height, width), mode="bilinear")


def expand_batch(x: Tensor, batch: int, what: str) -> Tensor:
    """(b, ...) -> (batch, ...). Raises ShapeError when b does not divide it."""
    return repeat_to(x, batch, what).expand(batch, *x.shape[1:])


def check_channels(name: str, in_channels: int, latent: int, given: Tensor | None) -> None:
    """Raise UnfitError when a model does not get the channels that it reads."""
    wanted = in_channels - latent
    has = 0 if given is None else given.shape[1]
    if wanted == has:
        return
    kinds = {INPAINT: "an inpainting model", EDIT: "an editing model"}
    raise UnfitError(
        f"the model {name} reads {in_channels} channels; the latent has {latent}, and {has} further ones were given: "
        f"{kinds.get(wanted, 'a model of another kind')} needs {wanted} (InpaintModelConditioning or "
        "InstructPixToPixConditioning gives them), a plain one none"
    )
