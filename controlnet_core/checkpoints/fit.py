"""Whether a net that controls was made for a base, from the headers of both files.

Without this check a ControlNet on the wrong base ends in "mat1 and mat2 shapes cannot be multiplied", minutes later.
"""

from __future__ import annotations

from pathlib import Path

from ..config import DEMO, SD15, SD21, SDXL, SDXL_REFINER, ModelConfig, UNetConfig
from ..models.control import ControlModel
from .control import CONTROL_KINDS, outline
from .plan import open_as

KNOWN = (SD15, SD21, SDXL, SDXL_REFINER, DEMO)
"""Models that are recognised by the width of the text that their UNet reads."""


def misfit(control: str | Path, base: str | Path) -> str:
    """Why a net cannot act on a base, in words that name both files; empty where it can.

    Reads headers only. Raises MissingFileError, and CheckpointError for a damaged file or one of another kind.
    """
    header, what = open_as(control, *CONTROL_KINDS)
    net = outline(header, what)
    _, on = open_as(base, "checkpoint", "unet")
    unet = on.config.unet if isinstance(on.config, ModelConfig) else on.config
    assert isinstance(unet, UNetConfig)
    if net.fits(unet):
        return ""
    wanted = f"a control file made for {on.family_title or 'this base'}"
    other = f"a checkpoint of {what.family_title}" if what.family else "the checkpoint that this one was made for"
    return (
        f"{Path(control).name} is {what.summary} and was made for {net.made_for}; {Path(base).name} is {on.summary} "
        f"and has widths {unet.widths} with {unet.context_dim} wide text: load {wanted}, or {other}"
    )


def text_widths(net: ControlModel) -> tuple[int, ...]:
    """Widths of the text that the bases of a net read; empty where that is not known."""
    if net.context_dim is not None:
        return (net.context_dim,)
    # A T2I-Adapter reads no text itself: it was made for the known models whose blocks are as wide as its features.
    fitting = () if net.needs_base else (model.unet for model in KNOWN if net.fits(model.unet))
    return tuple(dict.fromkeys(unet.context_dim for unet in fitting))


def fits_text(net: ControlModel, width: int) -> bool:
    """Whether a prompt of this width may come from a base of the net; True where that is not known."""
    widths = text_widths(net)
    is_known = net.context_dim is not None or width in {model.unet.context_dim for model in KNOWN}
    return width in widths or not (widths and is_known)
