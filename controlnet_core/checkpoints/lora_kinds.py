"""What a LoRA file adds to one weight: the kinds of low-rank updates and their arithmetic.

    W' = W + strength * scale * delta                                     scale = alpha / rank
    DoRA: W' = W + strength * (m * (W + scale * delta) / norm - W)        m the trained magnitude

Sources: Hu et al. 2021 (LoRA), Hyeon-Woo et al. 2022 (FedPara: LoHa), Edalati et al. 2022 and Yeh et al.
2024 (LyCORIS: LoKr, and the Tucker forms for convolutions), Liu et al. 2024 (DoRA). All in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

Parts = Mapping[str, Tensor]
"""The float32 tensors of one update by their part in it, such as "up" and "down"."""
NormOf = Literal["base", "sum"]


@dataclass(frozen=True)
class Kind:
    """One form in which files store the change of a weight.

    complete: sets of parts; an update is complete if it has all parts of one of them. delta: (parts, shape of the
    weight) -> the change, in that shape; raises RuntimeError where the parts do not make it. rank: parts -> the rank,
    by which alpha is divided; None where alpha has no effect.
    """

    name: str
    complete: tuple[frozenset[str], ...]
    delta: Callable[[Parts, torch.Size], Tensor]
    rank: Callable[[Parts], int | None]


def _low_rank(parts: Parts, shape: torch.Size) -> Tensor:
    """up (out,r[,1,1]), down (r,in[,k,k]); with mid (r,r,k,k), the Tucker form: down (r,in,1,1)."""
    down = parts["down"]
    if "mid" in parts:
        down = torch.einsum("o j k l, j i -> o i k l", parts["mid"], down.flatten(1))
    return (parts["up"].flatten(1) @ down.flatten(1)).reshape(shape)


def _hadamard(parts: Parts, shape: torch.Size) -> Tensor:
    """w1_a (out,r), w1_b (r,in*k*k); with t1 (r,r,k,k): w1_a (r,out), w1_b (r,in). The same for 2."""
    first, second = (_tucker(parts.get(f"t{i}"), parts[f"w{i}_a"], parts[f"w{i}_b"]) for i in (1, 2))
    return (first * second).reshape(shape)


def _kronecker(parts: Parts, shape: torch.Size) -> Tensor:
    """w1 (o1,i1) or w1_a w1_b; w2 (o2,i2[,k,k]) or w2_a w2_b, with t2 in Tucker form."""
    w1 = parts["w1"] if "w1" in parts else parts["w1_a"] @ parts["w1_b"]
    w2 = parts["w2"] if "w2" in parts else _tucker(parts.get("t2"), parts["w2_a"], parts["w2_b"])
    if w2.ndim == 4:
        w1 = w1[:, :, None, None]
    return torch.kron(w1, w2.contiguous()).reshape(shape)


def _kronecker_rank(parts: Parts) -> int | None:
    """Rows of w2_b, else of w1_b; None where both factors are written out."""
    inner = parts.get("w1_b") if "w2" in parts else parts.get("w2_b", parts.get("w1_b"))
    return None if inner is None else len(inner)


def _tucker(core: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
    """a (out,r) @ b (r,in); with a core (r,r,k,k): a (r,out), b (r,in) -> (out,in,k,k)."""
    return a @ b if core is None else torch.einsum("i j k l, j n, i m -> m n k l", core, b, a)


# up @ down. A convolution's kernel is in `down`, or in `mid`.
LOW_RANK = Kind("LoRA", (frozenset({"up", "down"}),), _low_rank, lambda parts: len(parts["down"]))
# The elementwise product of two low-rank matrices, each with a Tucker core for convolutions.
HADAMARD = Kind("LoHa", (frozenset({"w1_a", "w1_b", "w2_a", "w2_b"}),), _hadamard, lambda parts: len(parts["w1_b"]))
# The Kronecker product of two factors, either of which may be a product of two itself.
KRONECKER = Kind(
    "LoKr",
    tuple(
        frozenset({*first, *second}) for first in (("w1",), ("w1_a", "w1_b")) for second in (("w2",), ("w2_a", "w2_b"))
    ),
    _kronecker,
    _kronecker_rank,
)
# The change itself, as trainers store it for normalisations and biases.
DIFFERENCE = Kind(
    "difference", (frozenset({"diff"}),), lambda parts, shape: parts["diff"].reshape(shape), lambda parts: None
)


@dataclass(frozen=True, eq=False)
class Update:
    """A change of one weight.

    alpha: as in the file; None for scale 1. magnitude: DoRA's m, one number per output row, or per input column.
    norm_of: the matrix whose norm of rows m replaces. It is the base in LyCORIS files (`dora_scale`), as ComfyUI reads
    them, and the sum in PEFT files, as in the paper. For columns it is always the sum.
    root: divide alpha by the root of the rank (rank-stabilised LoRA, Kalajdzievski 2023).
    """

    kind: Kind
    parts: Parts
    alpha: float | None = None
    magnitude: Tensor | None = None
    norm_of: NormOf = "base"
    root: bool = False

    @property
    def scale(self) -> float:
        """Factor of the change: alpha / rank."""
        rank = self.kind.rank(self.parts)
        if self.alpha is None or rank is None:
            return 1.0
        return self.alpha / (rank**0.5 if self.root else rank)

    def delta(self, shape: torch.Size) -> Tensor:
        """scale * delta, float32, in the shape of the weight."""
        return self.kind.delta(self.parts, shape) * self.scale

    def to(self, device: torch.device) -> Update:
        """The same update with its tensors in float32 on a device."""
        parts = {name: tensor.to(device, torch.float32) for name, tensor in self.parts.items()}
        magnitude = None if self.magnitude is None else self.magnitude.to(device, torch.float32)
        return replace(self, parts=parts, magnitude=magnitude)

    def apply(self, weight: Tensor, strength: float) -> Tensor:
        """The changed weight. weight: float32, is not changed; returns a new tensor of its shape."""
        own = self.to(weight.device)
        delta = own.delta(weight.shape)
        if own.magnitude is None:
            return weight + strength * delta
        return torch.lerp(weight, decompose(weight, delta, own.magnitude, own.norm_of), strength)


def decompose(weight: Tensor, delta: Tensor, magnitude: Tensor, norm_of: NormOf) -> Tensor:
    """DoRA: m * (W + delta) / norm, the norm taken of each output row, or of each input column.

    weight, delta: (out, in[, k, k]). magnitude: out numbers, or in numbers as (1, in[, 1, 1]).
    """
    merged = weight + delta
    ones = (1,) * (weight.ndim - 2)
    if magnitude.shape[0] == weight.shape[0]:
        measured = weight if norm_of == "base" else merged
        norm = measured.flatten(1).norm(dim=1).reshape(-1, 1, *ones)
        m = magnitude.reshape(-1, 1, *ones)
    else:
        norm = merged.transpose(0, 1).flatten(1).norm(dim=1).reshape(1, -1, *ones)
        m = magnitude.reshape(1, -1, *ones)
    return merged * (m / (norm + torch.finfo(weight.dtype).eps))
