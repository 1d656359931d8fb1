"""The layouts that this package reads and writes, each a set of key tables under common names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from ..config import SD21, ModelConfig, UNetConfig
from . import diffusers, ldm, open_clip
from .keymap import KeyMap, Rule, add_prefix
from .structure import Shapes, Sketch

EXTRA_PREFIX = "extra."
"""Tensors of this package's own beside the model, such as the vocabulary map of the demo model."""


@dataclass(frozen=True)
class TextPlace:
    """Where a file with several models in it keeps a text encoder: its prefix, and the table of its keys."""

    prefix: str
    rules: Callable[[], tuple[Rule, ...]]


@dataclass(frozen=True)
class Layout:
    """How one family of tools names the weights.

    The `*_rules` make a table from a config (or from the number of levels of the autoencoder); `sketch` reads from the
    keys what a table needs of a config. The prefixes are those of a file with several models in it; the first one is
    written. texts: the places of text encoders, in order. drop, control_drop: patterns of keys that are no weights.
    """

    unet_rules: Callable[[UNetConfig], tuple[Rule, ...]]
    controlnet_rules: Callable[[UNetConfig, int], tuple[Rule, ...]]
    vae_rules: Callable[[int], tuple[Rule, ...]]
    text_rules: Callable[[], tuple[Rule, ...]]
    sketch: Callable[[Iterable[str]], Sketch]
    unet_prefixes: tuple[str, ...]
    vae_prefixes: tuple[str, ...]
    texts: tuple[TextPlace, ...]
    control_prefix: str = ""
    drop: tuple[str, ...] = ()
    control_drop: tuple[str, ...] = ()


SAME = (Rule("{rest}", "{rest}"),)
TEXT_NAMES = ("text.", "text2.")
"""What our names of a model's first and second text encoder begin with."""

CLIP = TextPlace(ldm.TEXT_PREFIX, ldm.clip_rules)
OPEN_CLIP = TextPlace(ldm.OPEN_TEXT_PREFIX, open_clip.text_rules)
EMBEDDERS_CLIP = tuple(TextPlace(f"{prefix}transformer.", ldm.clip_rules) for prefix in ldm.EMBEDDER_PREFIXES)
EMBEDDERS_OPEN = tuple(TextPlace(f"{prefix}model.", open_clip.text_rules) for prefix in ldm.EMBEDDER_PREFIXES)

LDM = Layout(
    unet_rules=ldm.unet_rules,
    controlnet_rules=ldm.controlnet_rules,
    vae_rules=ldm.vae_rules,
    text_rules=ldm.clip_rules,
    sketch=ldm.sketch,
    unet_prefixes=(ldm.UNET_PREFIX,),
    vae_prefixes=(ldm.VAE_PREFIX, "vae."),
    texts=(CLIP, OPEN_CLIP, EMBEDDERS_CLIP[0], EMBEDDERS_OPEN[0], EMBEDDERS_CLIP[1], EMBEDDERS_OPEN[1]),
    control_prefix=ldm.CONTROL_PREFIX,
    drop=ldm.DROP,
    control_drop=ldm.CONTROL_DROP,
)
DIFFUSERS = Layout(
    unet_rules=diffusers.unet_rules,
    controlnet_rules=diffusers.controlnet_rules,
    vae_rules=diffusers.vae_rules,
    text_rules=diffusers.clip_rules,
    sketch=diffusers.sketch,
    unet_prefixes=(diffusers.UNET_PREFIX,),
    vae_prefixes=(diffusers.VAE_PREFIX,),
    texts=tuple(TextPlace(prefix, diffusers.clip_rules) for prefix in diffusers.TEXT_PREFIXES),
    drop=diffusers.DROP,
    control_drop=diffusers.DROP,
)
CORE = Layout(
    unet_rules=lambda config: SAME,
    controlnet_rules=lambda config, hint_layers: SAME,
    vae_rules=lambda levels: SAME,
    text_rules=lambda: SAME,
    sketch=lambda keys: Sketch(UNetConfig(), 0, 0),
    unet_prefixes=("unet.",),
    vae_prefixes=("vae.",),
    texts=tuple(TextPlace(prefix, lambda: SAME) for prefix in TEXT_NAMES),
)
LAYOUTS: Mapping[str, Layout] = {
    "ldm": LDM,
    "cldm": LDM,
    "open_clip": replace(LDM, text_rules=open_clip.text_rules, drop=("logit_scale", "attn_mask")),
    "diffusers": DIFFUSERS,
    "transformers": DIFFUSERS,
    "core": CORE,
}
"""By the name that a signature gives; cldm is ldm's ControlNet, transformers is diffusers' text encoder."""


def part(shapes: Shapes, prefixes: tuple[str, ...]) -> tuple[str, Shapes]:
    """The first of these prefixes that any key has, and the weights with it, under their names without it."""
    for prefix in prefixes:
        found = {key[len(prefix) :]: shape for key, shape in shapes.items() if key.startswith(prefix)}
        if found:
            return prefix, found
    return prefixes[0], {}


def rename_shapes(shapes: Shapes, rules: Iterable[Rule]) -> Shapes:
    """Shapes under this package's names; keys that no rule knows are left out."""
    return {ours: shapes[theirs] for theirs, ours in KeyMap(rules).rename(shapes).pairs.items()}


def find_texts(layout: Layout, shapes: Shapes) -> dict[str, TextPlace]:
    """Places of the text encoders that are there, by the name that begins our names of each."""
    found = (place for place in layout.texts if any(key.startswith(place.prefix) for key in shapes))
    return dict(zip(TEXT_NAMES, found, strict=False))


def usual_texts(layout: Layout, config: ModelConfig) -> dict[str, TextPlace]:
    """Places in which a file of this layout has the text encoders of such a model."""
    # SD1 has CLIP, SD2 OpenCLIP; SDXL and its refiner keep theirs below `conditioner.embedders`.
    if layout is not LDM:
        return dict(zip(TEXT_NAMES, layout.texts, strict=False))
    if config.text2 is not None:
        places = (EMBEDDERS_CLIP[0], EMBEDDERS_OPEN[1])
    elif config.unet.label_dim is not None:
        places = (EMBEDDERS_OPEN[0],)
    else:
        places = (OPEN_CLIP if config.unet.context_dim == SD21.unet.context_dim else CLIP,)
    return dict(zip(TEXT_NAMES, places, strict=False))


def checkpoint_rules(
    layout: Layout,
    unet: UNetConfig,
    vae_levels: int,
    texts: Mapping[str, TextPlace] | None = None,
    prefixes: tuple[str, str] | None = None,
) -> tuple[Rule, ...]:
    """One table for a whole checkpoint, with `unet.`, `vae.`, `text.` and `text2.` before our names.

    texts: places of the text encoders; prefixes: those of the UNet and the autoencoder; by default the layout's
    first ones.
    """
    places = {TEXT_NAMES[0]: layout.texts[0]} if texts is None else texts
    unet_prefix, vae_prefix = prefixes or (layout.unet_prefixes[0], layout.vae_prefixes[0])
    return (
        *add_prefix(layout.unet_rules(unet), unet_prefix, "unet."),
        *add_prefix(layout.vae_rules(vae_levels), vae_prefix, "vae."),
        *(rule for name, place in places.items() for rule in add_prefix(place.rules(), place.prefix, name)),
        Rule(f"{EXTRA_PREFIX}{{rest}}", f"{EXTRA_PREFIX}{{rest}}"),
    )
