"""Loading of everything that controls: ControlNets and their relatives, T2I-Adapters."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..config import DerivedConfig
from ..errors import CheckpointError, reading
from ..models.control import ControlModel
from .controlnet_xs import KIND as CONTROLNET_XS
from .derived import DERIVED, names_in
from .detect import ADAPTER_KINDS, Identity
from .files import Header
from .io import read_tensors
from .lllite import KIND as LLLITE
from .load import Device, Narrow, fill
from .plan import control_plan, open_as
from .sparsectrl import KIND as SPARSECTRL

CONTROL_KINDS = ("controlnet", "controlnet-union", *DERIVED, *sorted(ADAPTER_KINDS), LLLITE, SPARSECTRL, CONTROLNET_XS)
"""Kinds of files that `load_control` reads."""


def load_control(
    path: str | Path, *, dtype: torch.dtype | None = None, device: Device = "cpu", narrow: Narrow = None
) -> tuple[ControlModel, Identity]:
    """Load a net of any kind that controls. Arguments and errors as `load_checkpoint`.

    A difference file or Control-LoRA is loaded as it is; its `resolve` completes it with a base.
    """
    header, identity = open_as(path, *CONTROL_KINDS)
    if identity.kind in DERIVED:
        names = names_in(header, identity.kind, identity.prefix)
        tensors = {names[key]: tensor.to(device, dtype) for key, tensor in read_tensors(header, names).items()}
        return _derived(header, identity, tensors), identity
    plan = control_plan(header, identity)
    fill(plan, dtype, device, narrow)
    return plan.module("", ControlModel), identity


def outline(header: Header, identity: Identity) -> ControlModel:
    """The net on the meta device, to look at only: its shapes without its weights.

    Raises CheckpointError for an incomplete file.
    """
    if identity.kind not in DERIVED:
        net = control_plan(header, identity).outlines()[""]
        assert isinstance(net, ControlModel)
        return net
    names = names_in(header, identity.kind, identity.prefix)
    weights = {name: torch.empty(header.tensors[key].shape, device="meta") for key, name in names.items()}
    return _derived(header, identity, weights)


def _derived(header: Header, identity: Identity, weights: Mapping[str, Tensor]) -> ControlModel:
    assert isinstance(identity.config, DerivedConfig)
    with reading(header.path, CheckpointError):
        return DERIVED[identity.kind](identity.config, weights)
