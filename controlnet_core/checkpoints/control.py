"""Loading of everything that controls: ControlNets and their relatives, T2I-Adapters."""

from __future__ import annotations

from pathlib import Path

import torch

from ..config import AdapterConfig, DerivedConfig
from ..errors import CheckpointError
from ..models.adapter import Adapter
from ..models.control import ControlModel
from .adapters import ADAPTER_RULES
from .derived import DERIVED, build, names_in
from .detect import ADAPTER_KINDS, Identity
from .files import Header
from .io import read_tensors
from .keymap import KeyMap, prefixed
from .layouts import part
from .load import Narrow, Plan, check, controlnet_plan, fill, on_meta, open_as

CONTROL_KINDS = ("controlnet", "controlnet-union", *DERIVED, *sorted(ADAPTER_KINDS))
"""Kinds of files that `load_control` reads."""


def load_control(
    path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    narrow: Narrow = None,
) -> tuple[ControlModel, Identity]:
    """Load a net of any kind that controls. Arguments and errors as `load_checkpoint`.

    A difference file or Control-LoRA is loaded as it is; its `resolve` completes it with a base.
    """
    header, identity = open_as(path, *CONTROL_KINDS)
    if identity.kind in DERIVED:
        names = names_in(header, identity.kind, identity.prefix)
        tensors = {names[key]: tensor.to(device, dtype) for key, tensor in read_tensors(header, names).items()}
        assert isinstance(identity.config, DerivedConfig)
        return build(identity.kind, identity.config, tensors), identity
    plan = control_plan(header, identity)
    fill(plan, dtype, device, narrow)
    net = plan.modules[""]
    assert isinstance(net, ControlModel)
    return net, identity


def control_plan(header: Header, identity: Identity) -> Plan:
    """What to build, and from where, for a kind that is complete in itself."""
    if identity.kind not in ADAPTER_KINDS:
        return controlnet_plan(header, identity)
    assert isinstance(identity.config, AdapterConfig)
    _, keys = part(header.shapes, (identity.prefix,))
    rules = ADAPTER_RULES[identity.kind, identity.layout](keys)
    net = on_meta(Adapter, identity.config, header)
    return Plan(header, identity, KeyMap(prefixed(rules, identity.prefix)), {"": net})


def check_control(header: Header, identity: Identity) -> None:
    """Raise CheckpointError when the file cannot be loaded, from its header alone."""
    if identity.kind not in DERIVED:
        check(control_plan(header, identity))
        return
    names = names_in(header, identity.kind, identity.prefix).values()
    if not any(name.startswith("zero_convs.") for name in names):
        raise CheckpointError(f"{header.path.name} has no zero convolutions: it is incomplete, download it again")
