"""Plans: which modules a file fills, and which of its keys becomes which weight.

Loading is strict: every key of a file has to be a weight of the model or stand in the table of keys to drop, and every
weight of the model has to be in the file. All of this is checked on shapes, before a weight is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from ..config import ControlNetConfig, ControlNetXSConfig, LLLiteConfig, ModelConfig, SparseCtrlConfig
from ..errors import CheckpointError
from ..models.adapter import Adapter
from ..models.controlnet import ControlNet
from ..models.controlnet_xs import ControlNetXS
from ..models.lllite import ControlLLLite
from ..models.module_tree import meta_copy, on_meta
from ..models.sparsectrl import SparseCtrl
from ..models.text_encoder import ClipTextModel
from ..models.unet import UNet
from ..models.union import ControlNetUnion
from ..models.vae import AutoencoderKL
from . import controlnet_xs, lllite, sparsectrl
from .adapters import ADAPTER_RULES
from .detect import ADAPTER_KINDS, Identity, identify
from .files import Header, TensorInfo
from .io import read_header
from .keymap import KeyMap, Rule, add_prefix, matcher
from .layouts import EXTRA_PREFIX, LAYOUTS, Layout, checkpoint_rules, find_texts, part
from .open_clip import split_fused
from .signatures import KINDS

SHOWN_KEYS = 4
KNOWN_MODELS = 16
"""Models whose outlines are remembered."""

ModelT = TypeVar("ModelT", bound=nn.Module)


@dataclass(frozen=True)
class ModelPart:
    """A part of a model before it is built: the class of its module, and the config of the file."""

    kind: type[nn.Module]
    config: Any


@dataclass(frozen=True)
class Plan:
    """Parts to build and fill, by the prefix of our names, and the table that finds their weights in the file.

    drop: patterns of keys to ignore. scope: prefixes of the keys to load, where only a part of a file is wanted.
    places: the prefixes of the parts of a checkpoint.
    """

    header: Header
    identity: Identity
    keymap: KeyMap
    parts: Mapping[str, ModelPart]
    drop: tuple[str, ...] = ()
    scope: tuple[str, ...] = ("",)
    places: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def modules(self) -> Mapping[str, nn.Module]:
        """The modules to fill, without memory. Raises CheckpointError when a config describes no model."""
        return {prefix: meta_copy(outline) for prefix, outline in self.outlines().items()}

    def outlines(self) -> Mapping[str, nn.Module]:
        """Modules without memory, to look at only: other plans may have them too. Raises as `modules`."""
        with _building(self.header):
            return {prefix: _outline(part.kind, part.config) for prefix, part in self.parts.items()}

    def module(self, prefix: str, kind: type[ModelT]) -> ModelT:
        """The module of this prefix, which is of this type."""
        module = self.modules[prefix]
        assert isinstance(module, kind)
        return module


def open_as(path: str | Path, *wanted: str) -> tuple[Header, Identity]:
    """Header and identity of a file of one of these kinds. Raises CheckpointError when it is something else."""
    header = read_header(path)
    identity = identify(header)
    name, title = header.path.name, KINDS[wanted[0]].title
    expected = f"expected {'an' if title[0] in 'aeio' else 'a'} {title}"
    if identity.kind == "unknown":
        raise CheckpointError(f"{name} is {identity.summary}; {expected}", header.path)
    if identity.kind not in wanted:
        raise CheckpointError(
            f"{name} is of another kind: {identity.summary}; {expected}. "
            f"Put it into models/{identity.folder} and load it with the node for that kind",
            header.path,
        )
    if not identity.supported:
        raise CheckpointError(
            f"{name} is recognised as {identity.summary}, but cannot be loaded: {identity.problem}", header.path
        )
    return header, identity


# ---------------------------------------------------------------------------------------------- plans


@lru_cache(maxsize=KNOWN_MODELS)
def _outline(kind: type[nn.Module], config: Any) -> nn.Module:
    # Checking a workflow takes mostly this, and most workflows use the same few models.
    with on_meta():
        return kind(config)


@contextmanager
def _building(header: Header) -> Iterator[None]:
    """Raise CheckpointError for whatever building a model from the config of this file raises."""
    try:
        yield
    except (ValueError, TypeError, RuntimeError, LookupError, ArithmeticError) as error:
        raise CheckpointError(
            f"{header.path.name} describes a model that cannot be built ({error}): "
            "it is damaged or a variant that this version does not know; download it again",
            header.path,
        ) from error


def checkpoint_plan(header: Header, identity: Identity) -> Plan:
    """The plan for a whole model."""
    config = identity.config
    assert isinstance(config, ModelConfig)
    # Views replace OpenCLIP's fused tensors here, because the key tables have no rule for one tensor to three.
    layout = LAYOUTS[identity.layout]
    header = split_fused(header)
    unet_prefix, _ = part(header.shapes, layout.unet_prefixes)
    vae_prefix, vae = part(header.shapes, layout.vae_prefixes)
    texts = find_texts(layout, header.shapes)
    parts = {"unet.": ModelPart(UNet, config.unet)}
    if vae:
        parts["vae."] = ModelPart(AutoencoderKL, config.vae)
    for name, text in zip(texts, (config.text, config.text2), strict=False):
        if text is not None:
            parts[name] = ModelPart(ClipTextModel, text)
    rules = checkpoint_rules(layout, config.unet, len(config.vae.widths), texts, (unet_prefix, vae_prefix))
    places = {"unet.": unet_prefix, "vae.": vae_prefix, **{name: place.prefix for name, place in texts.items()}}
    return Plan(header, identity, KeyMap(rules), parts, layout.drop, places=places)


def control_plan(header: Header, identity: Identity) -> Plan:
    """The plan for a net that controls and is complete without its base."""
    config: Any = identity.config
    if identity.kind in ADAPTER_KINDS:
        _, keys = part(header.shapes, (identity.prefix,))
        net, rules, drop = Adapter, ADAPTER_RULES[identity.kind, identity.layout](keys), ()
    elif isinstance(config, LLLiteConfig):
        net, rules, drop = ControlLLLite, lllite.rules(header.shapes), ()
    elif isinstance(config, ControlNetXSConfig):
        rules = controlnet_xs.rules(config.unet, 2 * len(config.hint_widths), identity.layout)
        # With a prefix the file is a training checkpoint, which may hold the locked base as well.
        base = LAYOUTS["ldm"].control_drop if identity.prefix else ()
        net, drop = ControlNetXS, (*base, *(identity.prefix + key for key in controlnet_xs.DROP))
    elif isinstance(config, SparseCtrlConfig):
        net, rules, drop = SparseCtrl, sparsectrl.rules(config.unet, 2 * len(config.hint_widths)), sparsectrl.DROP
        drop = tuple(identity.prefix + key for key in drop)
    else:
        assert isinstance(config, ControlNetConfig)
        layout = LAYOUTS[identity.layout]
        net = ControlNetUnion if config.union else ControlNet
        rules = layout.controlnet_rules(config.unet, 2 * len(config.hint_widths))
        # With a prefix the file is a training checkpoint, which may hold the locked base as well.
        drop = layout.control_drop if identity.prefix else layout.drop
    parts = {"": ModelPart(net, config)}
    return Plan(header, identity, KeyMap(add_prefix(rules, identity.prefix)), parts, drop)


PARTS: Mapping[str, tuple[str, type[nn.Module], Callable[[Layout, Any], tuple[Rule, ...]]]] = {
    "unet": ("unet.", UNet, lambda layout, config: layout.unet_rules(config)),
    "vae": ("vae.", AutoencoderKL, lambda layout, config: layout.vae_rules(len(config.widths))),
    "text-encoder": ("text.", ClipTextModel, lambda layout, config: layout.text_rules()),
}
"""The parts of a model that exist as files of their own: prefix of our names, module, and table of keys."""


def part_plan(header: Header, identity: Identity, kind: str) -> Plan:
    """The plan for one part of a model ("unet", "vae", "text-encoder"), from its own file or from a checkpoint."""
    prefix, module, make_rules = PARTS[kind]
    if identity.kind == "checkpoint":
        plan = checkpoint_plan(header, identity)
        if prefix not in plan.parts:
            raise CheckpointError(
                f"{header.path.name} is {identity.summary} without the wanted part {prefix[:-1]!r}: "
                "choose a file that has it",
                header.path,
            )
        return replace(plan, parts={prefix: plan.parts[prefix]}, scope=(plan.places[prefix],))
    layout = LAYOUTS[identity.layout]
    rules = add_prefix(make_rules(layout, identity.config), identity.prefix, prefix)
    parts = {prefix: ModelPart(module, identity.config)}
    return Plan(split_fused(header), identity, KeyMap(rules), parts, layout.drop)


def plan_for(header: Header, identity: Identity) -> Plan:
    """The plan for everything in a file of any kind that is complete in itself."""
    if identity.kind == "checkpoint":
        return checkpoint_plan(header, identity)
    return part_plan(header, identity, identity.kind) if identity.kind in PARTS else control_plan(header, identity)


# ------------------------------------------------------------------------------------------- checking


def check(plan: Plan) -> dict[str, str]:
    """Compare the keys and shapes of a file with those of the models, without reading weights.

    Returns our name for each key of the file that will be loaded, extras included. Raises CheckpointError
    naming the file, what it is, and the first keys that are missing, left over or of a wrong shape.
    """
    # Any other key that is not loaded is an error: a model without one of its parts would run and be wrong.
    dropped = matcher(plan.drop)
    keys = [key for key in plan.header.tensors if key.startswith(plan.scope) and not dropped.find(key)]
    renamed = plan.keymap.rename(keys)
    expected = {
        prefix + name: tuple(tensor.shape)
        for prefix, outline in plan.outlines().items()
        for name, tensor in outline.state_dict().items()
    }
    known = {key: ours for key, ours in renamed.pairs.items() if ours in expected or ours.startswith(EXTRA_PREFIX)}
    missing = sorted(expected.keys() - known.values())
    shapes = {key: plan.header.tensors[key].shape for key in known}
    complaints = {
        "missing": [plan.keymap.to_theirs(key) or key for key in missing],
        "left over": [*renamed.unknown, *(key for key in renamed.pairs if key not in known)],
        "there twice": [" and ".join(clash) for clash in renamed.clashes],
        "of a wrong shape": [
            f"{key} is {list(shapes[key])} and should be {list(expected[ours])}"
            for key, ours in known.items()
            if ours in expected and not same_matrix(shapes[key], expected[ours])
        ],
    }
    if any(complaints.values()):
        raise CheckpointError(
            f"{plan.header.path.name} looks like {plan.identity.summary}, but does not fit that model: "
            f"{'; '.join(f'{fault}: {_shorten(found)}' for fault, found in complaints.items() if found)}. "
            "The file is incomplete or a variant that this version does not know: "
            "download it again, or use the original version of the model",
            plan.header.path,
        )
    for key in (key for key, ours in known.items() if ours in expected):
        check_is_float(plan.header, plan.header.tensors[key])
    return known


def check_is_float(header: Header, info: TensorInfo) -> None:
    """Raise CheckpointError for a weight that is stored in whole numbers, without the scales to read them by."""
    if not info.dtype.is_floating_point:
        raise CheckpointError(
            f"{header.path.name} stores {info.name} as {info.dtype}, a quantised form: "
            "use the fp16 or fp32 version of the model",
            header.path,
        )


def _shorten(keys: Iterable[str]) -> str:
    keys = list(keys)
    more = f" and {len(keys) - SHOWN_KEYS} more" if len(keys) > SHOWN_KEYS else ""
    return f"{', '.join(keys[:SHOWN_KEYS])}{more}"


def same_matrix(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    """Whether two shapes are equal, where a linear layer and a 1x1 convolution count as the same matrix."""
    return a == b or (len(a) >= 2 and len(b) >= 2 and a[:2] == b[:2] and set(a[2:] + b[2:]) <= {1})
