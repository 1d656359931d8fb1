"""What every kind of control offers to the engine, so that a new kind needs no branch in it.

Control enters a UNet at one target per block: the output of each block of its encoder (the skips,
12 in SD1.5), then the middle's. A kind of control says, for each target, what it wants to add:

    net.resolve(unet)        files that are complete only with their base (differences, Control-LoRA)
                             become a net; all others return themselves
    net.fits(config)         whether the net was made for a base of this shape
    net.load(sitting)        how much that will take and keep, told from shapes
    net.bind(seat) -> Bound  once per run and unit: all that does not depend on x is computed here
    bound.features(x, sigma) at each evaluation: one feature map per target, lazily, None for "nothing"
    bound.outlets            one per target: how a feature map becomes the residual (a zero convolution;
                             `Direct` where it is one already; a pooled one for the shuffle net)
    bound.entry              "skips": added behind the encoder, as ControlNet does; "encoder": added
                             while the encoder runs, so that its next block reads the sum (T2I-Adapter)

Everything else is the engine's and the same for all kinds: strength, curve over sigma, window, block
weights, mode, halves of the guidance, factor per picture, masks, rows, the check for finite numbers.

To add a kind: write a `ControlModel` in this folder with a frozen `Bound` beside it (see
`models/controlnet.py`), and give its file a row in the detection table. What a unit says to the net
beyond its picture (further pictures, the kind of each) comes through `Seat.hints`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor, nn

from ..config import UNetConfig
from ..errors import UnfitError
from .unet import Stack, UNet, encoder_widths

Embed = Callable[[Tensor, "Tensor | None"], Tensor]
"""Timesteps (B,) and the label vector, where there is one -> (B, embed_dim)."""


class Outlet(Protocol):
    """How a feature map becomes a residual. `ZeroConv` is one."""

    def __call__(self, h: Tensor) -> Tensor:
        """Feature -> residual that broadcasts to the target. This is the definition."""
        ...

    def accumulate(self, target: Tensor, h: Tensor, weight: float) -> Tensor:
        """`target + weight * self(h)`, written into `target`."""
        ...


class Direct:
    """The feature map is the residual."""

    def __call__(self, h: Tensor) -> Tensor:
        """(B, C, h, w) as it is."""
        return h

    def accumulate(self, target: Tensor, h: Tensor, weight: float) -> Tensor:
        """`target + weight * h`, in place."""
        return target.add_(h, alpha=weight)


class Pooled:
    """The mean over the picture of what an outlet gives, everywhere the same (the shuffle net).

    An outlet is a 1x1 convolution, so the mean goes through it: W mean(h) + b.
    """

    def __init__(self, outlet: Outlet) -> None:
        self.outlet = outlet

    def __call__(self, h: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, 1, 1)."""
        return self.outlet(h.mean(dim=(2, 3), keepdim=True))

    def accumulate(self, target: Tensor, h: Tensor, weight: float) -> Tensor:
        """`target + weight * mean`, in place."""
        return target.add_(self(h), alpha=weight)


class Projections(Protocol):
    """A net's timestep projections by sigma, with its keys and values of the text."""

    def at(self, sigma: float) -> Stack:
        """What the net needs besides x at this sigma."""
        ...

    def joined(self, others: Sequence[Projections]) -> Projections:
        """The same for the rows of several seats, one after the other."""
        ...


class Seat(Protocol):
    """Where a net is to act in one run, and what it may ask for while it is bound.

    rows: number of rows of x that it will see, the whole batch for each condition. distinct: how many of them
    differ, the first; the others are copies of them in turn. size: (h, w) of x.
    kinds: what each hint of the unit shows, "" where the unit does not say. pool: whether the unit wants
    residuals averaged over the picture. base: the UNet that is controlled.
    """

    @property
    def rows(self) -> int: ...

    @property
    def distinct(self) -> int: ...

    @property
    def size(self) -> tuple[int, int]: ...

    @property
    def kinds(self) -> tuple[str, ...]: ...

    @property
    def pool(self) -> bool: ...

    @property
    def base(self) -> UNetConfig: ...

    def hint(self, channels: int) -> Tensor:
        """The unit's picture, (1 or batch, channels, 8h, 8w), on the device, in the net's dtype and layout.

        Raises ShapeError when the unit has several, or one that does not fit.
        """
        ...

    def hints(self, channels: int) -> list[Tensor]:
        """All pictures of the unit, in the order of `kinds`, each as `hint` gives it."""
        ...

    def spread(self, x: Tensor) -> Tensor:
        """(b, ...) -> (1 or rows, ...): what is made once per picture, laid out for the rows."""
        ...

    def project(self, net: nn.Module, embed: Embed | None = None) -> Projections:
        """Text and timesteps of the run, projected for a net that has the parts of a UNet.

        embed: in place of `net.embed`, for nets that put more into the timestep embedding.
        """
        ...


class Bound(Protocol):
    """A net in its seat."""

    @property
    def entry(self) -> Literal["skips", "encoder"]: ...

    @property
    def outlets(self) -> Sequence[Outlet]: ...

    def features(self, x: Tensor, sigma: float) -> Iterator[Tensor | None]:
        """One feature map per target. x: (rows, C, h, w), scaled; what the UNet reads."""
        ...


@dataclass(frozen=True)
class Sitting:
    """What is known of a seat before a net is bound to it.

    rows, base, pool: as in `Seat`. size: (h, w) of x. pixels: (H, W) of the pictures as the net reads them. hints: how
    many the unit has, each of them `pictures` times: once, or for each picture of the batch. cells: h_i w_i of each
    target.
    """

    rows: int
    size: tuple[int, int]
    pixels: tuple[int, int]
    hints: int
    pictures: int
    cells: tuple[int, ...]
    base: UNetConfig
    pool: bool = False

    @property
    def laid(self) -> int:
        """Rows of what is made once per picture, see `Seat.spread`."""
        return 1 if self.pictures == 1 else self.rows


@dataclass(frozen=True)
class Load:
    """How much a net takes in its seat, in numbers of values.

    kept: by what `bind` gives, without what `Seat.project` does. binding: the most at once while it is bound.
    residuals: what each evaluation makes for each target, all rows; empty where nothing is made. blocks: the shape
    whose encoder and middle are run for that, with text and timesteps projected for them; None for no such blocks.
    batch: equal for seats that run as one batch (see `ControlModel.join`); None where the net never joins any.
    """

    kept: int
    binding: int
    residuals: tuple[int, ...] = ()
    blocks: UNetConfig | None = None
    batch: Hashable = None


class ControlModel(nn.Module):
    """Base of all nets that control a UNet."""

    conditional_only = False
    """Whether the net was made for the conditional half of the guidance alone (the shuffle net)."""

    needs_base = False
    """Whether it is complete only with the weights of its base."""

    @property
    def hint_channels(self) -> int:
        """Channels of the picture that the net reads."""
        raise NotImplementedError

    @property
    def context_dim(self) -> int | None:
        """Width of the text that the net reads; None where it reads none."""
        return None

    @property
    def made_for(self) -> str:
        """The base in words, for messages."""
        raise NotImplementedError

    def fits(self, config: UNetConfig) -> bool:
        """Whether a UNet of this shape can be controlled by the net."""
        raise NotImplementedError

    def complete(self, config: UNetConfig, base: Mapping[str, Tensor]) -> ControlModel:
        """The net with weights of its base, by our names, as parameters of its own; itself where it needs none."""
        return self

    def resolve(self, unet: UNet) -> ControlModel:
        """The net that is run on this base; itself, unless it takes weights from the base.

        The result is asked for once per base and kept by the backend; it must not refer to `self`, with
        which it is dropped. Base weights are to be copied: those of the UNet may be moved or packed.
        """
        return self

    def load(self, sitting: Sitting) -> Load:
        """How much the net will take, told before the run.

        This one is for kinds that do not tell: a feature map as large as each target, made anew at each evaluation.
        """
        widths = (*encoder_widths(sitting.base), sitting.base.widths[-1])
        made = tuple(sitting.rows * cells * width for cells, width in zip(sitting.cells, widths, strict=True))
        height, width = sitting.pixels
        return Load(0, sitting.hints * sitting.pictures * self.hint_channels * height * width, made)

    def bind(self, seat: Seat) -> Bound:
        """Compute what does not depend on x. Raises ShapeError for hints that do not fit."""
        raise NotImplementedError

    def join(self, bounds: Sequence[Bound]) -> Bound | None:
        """One bound net for the rows of several seats, one after the other; None where that cannot be.

        `bounds` are this net's own, with different hints: run as one batch they cost less than in turn.
        """
        return None


def check_base(net: ControlModel, name: str, base: UNetConfig, model: str) -> None:
    """Raise UnfitError for a net that was made for another base than `model`, whose UNet is of this shape."""
    if net.fits(base):
        return
    raise UnfitError(
        f"{name} was made for {net.made_for}; {model} has widths {base.widths} and {base.context_dim} wide text: load "
        f"a ControlNet made for {model}, or the base that this one was made for (`controlnet inspect FILE` tells what "
        "a file is)"
    )
