"""The layouts that this package reads and writes, each a set of key tables under common names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from ..config import UNetConfig
from . import diffusers, ldm
from .keymap import KeyMap, Rule, prefixed
from .structure import Shapes

EXTRA_PREFIX = "extra."
"""Tensors of this package's own beside the model, such as the vocabulary map of the demo model."""


@dataclass(frozen=True)
class Layout:
    """How one family of tools names the weights.

    The `*_rules` make a table from a config (or the number of the autoencoder's levels); the
    `sketch_*` read from the keys alone as much of it as a table needs. Prefixes are those of a file
    with several models in it; the first is the one that is written. `drop` and `control_drop` are
    patterns of keys that are no weights of the model.
    """

    unet_rules: Callable[[UNetConfig], tuple[Rule, ...]]
    controlnet_rules: Callable[[UNetConfig, int], tuple[Rule, ...]]
    vae_rules: Callable[[int], tuple[Rule, ...]]
    text_rules: Callable[[], tuple[Rule, ...]]
    sketch_unet: Callable[[Iterable[str]], UNetConfig]
    sketch_vae: Callable[[Iterable[str]], int]
    sketch_hint: Callable[[Iterable[str]], int]
    unet_prefixes: tuple[str, ...]
    vae_prefixes: tuple[str, ...]
    text_prefixes: tuple[str, ...]
    control_prefix: str = ""
    drop: tuple[str, ...] = ()
    control_drop: tuple[str, ...] = ()


SAME = (Rule("{rest}", "{rest}"),)

LDM = Layout(
    unet_rules=ldm.unet_rules,
    controlnet_rules=ldm.controlnet_rules,
    vae_rules=ldm.vae_rules,
    text_rules=ldm.clip_rules,
    sketch_unet=ldm.sketch_unet,
    sketch_vae=ldm.sketch_vae,
    sketch_hint=ldm.sketch_hint,
    unet_prefixes=(ldm.UNET_PREFIX,),
    vae_prefixes=(ldm.VAE_PREFIX, "vae."),
    text_prefixes=(ldm.TEXT_PREFIX,),
    control_prefix=ldm.CONTROL_PREFIX,
    drop=ldm.DROP,
    control_drop=ldm.CONTROL_DROP,
)
DIFFUSERS = Layout(
    unet_rules=diffusers.unet_rules,
    controlnet_rules=diffusers.controlnet_rules,
    vae_rules=diffusers.vae_rules,
    text_rules=diffusers.clip_rules,
    sketch_unet=diffusers.sketch_unet,
    sketch_vae=diffusers.sketch_vae,
    sketch_hint=diffusers.sketch_hint,
    unet_prefixes=(diffusers.UNET_PREFIX,),
    vae_prefixes=(diffusers.VAE_PREFIX,),
    text_prefixes=(diffusers.TEXT_PREFIX,),
    drop=diffusers.DROP,
    control_drop=diffusers.DROP,
)
CORE = Layout(
    unet_rules=lambda config: SAME,
    controlnet_rules=lambda config, hint_layers: SAME,
    vae_rules=lambda levels: SAME,
    text_rules=lambda: SAME,
    sketch_unet=lambda keys: UNetConfig(),
    sketch_vae=lambda keys: 0,
    sketch_hint=lambda keys: 0,
    unet_prefixes=("unet.",),
    vae_prefixes=("vae.",),
    text_prefixes=("text.",),
)
LAYOUTS: Mapping[str, Layout] = MappingProxyType(
    {"ldm": LDM, "cldm": LDM, "diffusers": DIFFUSERS, "transformers": DIFFUSERS, "core": CORE}
)
"""By the name that a signature gives; cldm is ldm's ControlNet, transformers is diffusers' text encoder."""


def part(shapes: Shapes, prefixes: tuple[str, ...]) -> tuple[str, Shapes]:
    """The weights below the first of these prefixes that has any, without it; and that prefix."""
    for prefix in prefixes:
        found = {key[len(prefix) :]: shape for key, shape in shapes.items() if key.startswith(prefix)}
        if found:
            return prefix, found
    return prefixes[0], {}


def renamed_shapes(shapes: Shapes, rules: Iterable[Rule]) -> Shapes:
    """Shapes under this package's names; keys that no rule knows are left out."""
    return {ours: shapes[theirs] for theirs, ours in KeyMap(rules).rename(shapes).pairs.items()}


def checkpoint_rules(
    layout: Layout, unet: UNetConfig, vae_levels: int, prefixes: tuple[str, str, str] | None = None
) -> tuple[Rule, ...]:
    """One table for a whole checkpoint, with `unet.`, `vae.` and `text.` before our names."""
    first = (layout.unet_prefixes[0], layout.vae_prefixes[0], layout.text_prefixes[0])
    unet_prefix, vae_prefix, text_prefix = prefixes or first
    return (
        *prefixed(layout.unet_rules(unet), unet_prefix, "unet."),
        *prefixed(layout.vae_rules(vae_levels), vae_prefix, "vae."),
        *prefixed(layout.text_rules(), text_prefix, "text."),
        Rule(f"{EXTRA_PREFIX}{{rest}}", f"{EXTRA_PREFIX}{{rest}}"),
    )
