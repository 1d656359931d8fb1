"""The interface that every kind of control implements, so that a new kind needs no branch in the engine.

Control enters a UNet at one target per block: the output of each encoder block (the skips, 12 in SD1.5), then the
output of the middle block. A kind of control provides one feature map per target:

    net.resolve(unet)            a file that is complete only with its base (difference, Control-LoRA) becomes a net;
                                 all other kinds return themselves
    net.fits(config)             whether the net was made for a base of this shape
    net.bind(context)            once per run and unit: compute all that does not depend on x
    bound.inputs_at(sigma)       the tensors that the net reads at this noise level besides x
    net.features(x, inputs)      at each evaluation: one feature map per target, lazily; None adds nothing
    net.projections(inputs)      one per target: how a feature map becomes the residual (a zero convolution, or nothing)
    net.entry                    "skips": added after the encoder has run (ControlNet); "encoder": added while the
                                 encoder runs, so that its next block reads the sum (T2I-Adapter); "attention": changes
                                 what is read or added inside transformer blocks (ControlNet-LLLite); "exchange": as
                                 "encoder", by a net that reads the base's feature maps in turn (ControlNet-XS)

A kind whose entry is "attention" has `net.attention_change` instead of features and projections. "reference" is a kind
that first runs the UNet itself on its hint (`models.reference`).

Strength, schedule, window, block weights, mode, guidance halves, factors per image and masks are the same for all
kinds. The engine applies them (`control.residuals`).

To add a kind, write a `ControlModel` in this folder with a frozen record for its bound form (see `BoundControlNet`).
CONTRIBUTING.md says what its files need.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from ..config import UNetConfig
from ..errors import ShapeError, UnfitError
from .layers import AttentionChange
from .projections import Embed, Projections, Timesteps
from .unet import UNet

ResidualProjection: TypeAlias = Callable[[Tensor], Tensor]
"""Feature map (B, C, h, w) -> residual that broadcasts to the target. `ZeroConv` is one."""
Entry: TypeAlias = Literal["skips", "encoder", "attention", "reference", "exchange"]


class Place(NamedTuple):
    """Where a transformer block is. stack: "encoder", "middle" or "decoder". block: in the stack. depth: in block."""

    stack: str
    block: int
    depth: int


def place_level(place: Place, levels: int, res_blocks: int) -> int:
    """The level of a transformer block in a base of so many levels: 0 is the latent's resolution."""
    per_level = res_blocks + 1
    if place.stack == "middle":
        return levels - 1
    # The encoder's block 0 is the first convolution; a downsampling stands between two levels.
    return (place.block - 1) // per_level if place.stack == "encoder" else levels - 1 - place.block // per_level


def level_side(side: int, level: int) -> int:
    """The side of a level's feature maps for a latent side; a halving rounds up."""
    for _ in range(level):
        side = (side + 1) // 2
    return side


class RowScale(NamedTuple):
    """On which rows a unit acts, and how strongly.

    rows: a slice of the batch, or a tensor of indices. factor: (1 or rows, 1 or N, 1): weight, mask, factors.
    """

    rows: slice | Tensor
    factor: Tensor

    def add(self, tokens: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
        """Tokens (all rows, N, width) with factor * change(tokens) added in these rows; out of place."""
        own = tokens[self.rows]
        changed = own + self.factor.to(own.dtype) * change(own)
        if len(own) == len(tokens):
            return changed
        result = tokens.clone()
        result[self.rows] = changed
        return result


def identity(feature: Tensor) -> Tensor:
    """The projection of kinds whose feature map already is the residual."""
    return feature


def pool_residual(projection: ResidualProjection) -> ResidualProjection:
    """The residual averaged over the image, (B, C, 1, 1), as the shuffle ControlNet adds it."""
    # A zero convolution is 1x1, so the mean can be taken before it: W mean(h) + b = mean(W h + b).
    return lambda feature: projection(feature.mean(dim=(2, 3), keepdim=True))


@dataclass(frozen=True, eq=False)
class BindContext:
    """The rows that a net controls in one run, and what it needs to know about them. Data only.

    hints: the unit's images, each (1 or B, C, 8h, 8w) in [0, 1], resized, on the device and in the run's dtype.
    kinds: what each hint shows, "" if unknown. text: (rows, tokens, context_dim). label: (rows, label_dim) or None.
    timesteps: maps sigmas to timesteps. sigmas: the noise levels that are known before the run.
    image_of_row: for each row of x, the index of the image in the batch that it shows. distinct_rows: how many of the
    first rows differ; the others repeat them. size: (h, w) of x in latent cells. pool: average residuals over the
    image. base: shape of the controlled UNet. per_row: project a timestep for each row instead of once for all rows
    (the result differs in the last bit; ComfyUI does it per row).
    name: what error messages call the unit. noisy: clean latent, noise (both (b, 4, h, w)) and noise level -> what the
    UNet reads of that latent at this level.
    """

    hints: tuple[Tensor, ...]
    kinds: tuple[str, ...]
    text: Tensor
    label: Tensor | None
    timesteps: Timesteps
    sigmas: tuple[float, ...]
    image_of_row: tuple[int, ...]
    distinct_rows: int
    size: tuple[int, int]
    pool: bool
    base: UNetConfig
    per_row: bool = False
    name: str = ""
    noisy: Callable[[Tensor, Tensor, float], Tensor] | None = None

    @property
    def rows(self) -> int:
        """Number of rows of x."""
        return len(self.image_of_row)

    @property
    def hint(self) -> Tensor:
        """The only hint. Raises ShapeError if the unit has several."""
        hint, *others = self.hints
        if others:
            raise ShapeError(
                f"{self.name or 'this ControlNet'} reads one hint image and got {len(self.hints)}: apply the "
                "ControlNet once per image, or load a union ControlNet, which reads several"
            )
        return hint

    def spread(self, x: Tensor) -> Tensor:
        """(b, ...) per image -> (1 or rows, ...): one entry for each row; b = 1 stays as it is."""
        images = x.shape[0]
        if images == 1:
            return x
        order = [image % images for image in self.image_of_row]
        # Whole batches one after the other are one copy. Indexing would gather row by row.
        if order == [row % images for row in range(len(order))] and len(order) % images == 0:
            return x.repeat(len(order) // images, *(1,) * (x.ndim - 1))
        return x[order]

    def project(self, net: nn.Module, embed: Embed | None = None) -> Projections:
        """Keys and values of the text and timestep shifts for a net that has the blocks of a UNet.

        embed: replaces `net.embed`, for nets that add more to the timestep embedding.
        """
        projections = Projections(net, self.timesteps, self.text, self.label, embed, self.per_row)
        projections.prepare(self.sigmas)
        return projections


class BoundNet(Protocol):
    """What `ControlModel.bind` returns: everything about a net in one run that does not depend on x."""

    def inputs_at(self, sigma: float) -> Any:
        """Nested tuples of tensors and plain numbers for `ControlModel.features` at this noise level."""
        ...


@dataclass(frozen=True, eq=False)
class FixedInputs:
    """The bound form of a net whose inputs are the same at every noise level. inputs: see the net's `bind`."""

    inputs: Any

    def inputs_at(self, sigma: float) -> Any:
        """The inputs."""
        return self.inputs


class ControlModel(nn.Module):
    """Base class of all nets that control a UNet."""

    config: Any
    entry: ClassVar[Entry] = "skips"
    conditional_only = False
    """Whether the net was trained to act on the conditional half of the guidance only (the shuffle ControlNet)."""
    reads_latent = False
    """Whether its hint is a latent (B, 4, h, w) of any size instead of a picture."""
    reads_all_images = False
    """Whether it needs all images of a batch at once (the frames of a video)."""
    needs_base = False
    """Whether the net is complete only with the weights of its base."""

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return next(self.parameters()).dtype

    @property
    def hint_channels(self) -> int:
        """Channels of the hint image that the net reads; 1 for a kind that ignores its hint, which every unit has."""
        return getattr(self.config, "hint_channels", 1)

    @property
    def context_dim(self) -> int | None:
        """Width of the text embedding that the net reads; None if it reads no text."""
        return None

    @property
    def made_for(self) -> str:
        """The base that the net was made for, in words for error messages."""
        raise NotImplementedError

    def fits(self, config: UNetConfig) -> bool:
        """Whether the net can control a UNet of this shape."""
        raise NotImplementedError

    def complete(self, config: UNetConfig, base: Mapping[str, Tensor]) -> ControlModel:
        """The net with the weights of its base (by our names) as its own parameters; itself if it needs none."""
        return self

    def resolve(self, unet: UNet) -> ControlModel:
        """The net to run on this base; itself, unless it takes weights from the base.

        The caller keeps the result for each base. It must not refer to `self`, and must copy the base's weights,
        because those of the UNet may be moved or packed later.
        """
        return self

    def bind(self, context: BindContext) -> BoundNet:
        """Compute what does not depend on x. Raises ShapeError for hints that do not fit."""
        raise NotImplementedError

    def features(self, x: Tensor, inputs: Any) -> Iterator[Tensor | None]:
        """One feature map per target. x: (rows, C, h, w), scaled, as the UNet reads it."""
        raise NotImplementedError

    def projections(self, inputs: Any) -> Sequence[ResidualProjection]:
        """One projection per target, in the order of `features`."""
        raise NotImplementedError

    def attention_change(self, inputs: Any, place: Place, scale: RowScale) -> AttentionChange | None:
        """What the net changes in the transformer block at a place; None for nothing."""
        return None

    def output_change(self, inputs: Any, place: Place, scale: RowScale) -> Callable[[Tensor], Tensor] | None:
        """What the net changes in a block's output, in place; None for nothing. place: of the block, with depth 0."""
        return None

    def join(self, bounds: Sequence[BoundNet]) -> BoundNet | None:
        """Several bound forms of this net as one batch, rows one after the other; None if that is not possible.

        One batch for several hints costs less than one run per hint.
        """
        return None


def check_base(net: ControlModel, name: str, base: UNetConfig, model: str) -> None:
    """Raise UnfitError if the net was made for another base than `model`, whose UNet has the shape `base`."""
    if net.fits(base):
        return
    raise UnfitError(
        f"{name} was made for {net.made_for}; {model} has widths {base.widths} and {base.context_dim} wide text: load "
        f"a ControlNet made for {model}, or the base that this one was made for (`controlnet inspect FILE` tells what "
        "a file is)"
    )


class CopyControl(ControlModel):
    """Base class of nets that were made for one shape of a base. config: has `unet`, that shape.

    compared: entries in which the shape of a base has to be the same. Transformers may differ in depth, as those of
    SDXL's mid and small nets do.
    """

    compared: ClassVar[tuple[str, ...]] = ("widths", "res_blocks", "context_dim", "label_dim")

    @property
    def context_dim(self) -> int:
        """Width of the text that the net reads."""
        return self.config.unet.context_dim

    @property
    def made_for(self) -> str:
        """The base in words, for messages."""
        unet = self.config.unet
        return f"a base of widths {unet.widths} with {unet.context_dim} wide text"

    def fits(self, config: UNetConfig) -> bool:
        """Whether the base has blocks of the same widths and reads the same text."""
        return all(getattr(self.config.unet, name) == getattr(config, name) for name in self.compared)


class TextControl(ControlModel):
    """Base class of controls that bring texts of their own. config: has `text_width`, the width of these texts."""

    @property
    def context_dim(self) -> int:
        """Width of the texts."""
        return self.config.text_width

    @property
    def made_for(self) -> str:
        """The base in words, for messages."""
        return f"a base with {self.config.text_width} wide text"

    def fits(self, config: UNetConfig) -> bool:
        """Whether the base reads texts of this width."""
        return config.context_dim == self.config.text_width
