"""Loading of everything that controls: ControlNets and their relatives, T2I-Adapters."""

from __future__ import annotations

from pathlib import Path

import torch

from ..config import DerivedConfig
from ..errors import CheckpointError, reading
from ..models.control import ControlModel
from .derived import DERIVED, build, names_in
from .detect import ADAPTER_KINDS, Identity
from .files import Header
from .io import read_tensors
from .load import Device, Narrow, fill
from .plan import check, control_plan, open_as

CONTROL_KINDS = ("controlnet", "controlnet-union", *DERIVED, *sorted(ADAPTER_KINDS))
"""Kinds of files that `load_control` reads."""


def load_control(
    path: str | Path, *, dtype: torch.dtype | None = None, device: Device = "cpu", narrow: Narrow = None
) -> tuple[ControlModel, Identity]:
    """Load a net of any kind that controls. Arguments and errors as `load_checkpoint`.

    A difference file or Control-LoRA is loaded as it is; its `resolve` completes it with a base.
    """
    header, identity = open_as(path, *CONTROL_KINDS)
    if identity.kind not in DERIVED:
        plan = control_plan(header, identity)
        fill(plan, dtype, device, narrow)
        return plan.module("", ControlModel), identity
    names = names_in(header, identity.kind, identity.prefix)
    tensors = {names[key]: tensor.to(device, dtype) for key, tensor in read_tensors(header, names).items()}
    assert isinstance(identity.config, DerivedConfig)
    with reading(header.path, CheckpointError):
        return build(identity.kind, identity.config, tensors), identity


def check_control(header: Header, identity: Identity) -> None:
    """Raise CheckpointError when the file cannot be loaded, from its header alone."""
    if identity.kind not in DERIVED:
        check(control_plan(header, identity))
        return
    names = names_in(header, identity.kind, identity.prefix).values()
    if not any(name.startswith("zero_convs.") for name in names):
        raise CheckpointError(f"{header.path.name} has no zero convolutions: it is incomplete, download it again")
