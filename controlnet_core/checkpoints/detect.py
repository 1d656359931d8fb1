"""What a file is: the signature tables, applied to its header."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from ..config import (
    SD15,
    ControlNetConfig,
    ControlNetXSConfig,
    DerivedConfig,
    ModelConfig,
    NoiseConfig,
    Parametrization,
    TextConfig,
    UNetConfig,
    VAEConfig,
)  # fmt: skip
from ..errors import CheckpointError, reading
from . import controlnet_xs, ctrlora, derived, fileconfig, lllite, open_clip, signatures, sparsectrl, structure
from .adapters import ADAPTER_RULES
from .check_config import Config, check_config
from .fileconfig import CONFIG_KEY, FAMILY_KEY
from .files import Header
from .io import read_header, read_tensors
from .layouts import LAYOUTS, Layout, find_texts, part, rename_shapes
from .signatures import FAMILIES, INPAINTING, KINDS, KeyIndex, Signature
from .structure import Shapes

Entries: TypeAlias = Mapping[str, Any]
"""A model's config.json; empty where there is none."""
ADAPTER_KINDS = frozenset(kind for kind, _ in ADAPTER_RULES)
WITHOUT_CONFIG = frozenset(name for name, kind in KINDS.items() if kind.supported and kind.config is None)
"""Kinds that are added to a model and are no models themselves."""
WITH_HINT = ControlNetConfig, ControlNetXSConfig, DerivedConfig
HINT_CHANNELS = (1, 3)
"""Channels of hints that a ControlNet can be given: a gray or an RGB picture."""
SCALED_FP8 = "scaled fp8"
_NO_SIZES = ("?", "?")
"""What a detail shows of axes that a damaged weight lacks."""
SD2_V_KEY = "output_blocks.11.1.transformer_blocks.0.norm1.bias"
SD2_V_STD = 0.09
"""Above this standard deviation of that bias, an SD2 model predicts v: no key tells, so ComfyUI guesses like this."""
V_PRED, ZTSNR = "v_pred", "ztsnr"
EDM_MEAN, EDM_STD = "edm_mean", "edm_std"
EDM_SIGMA_MAX, EDM_SIGMA_MIN = "edm_vpred.sigma_max", "edm_vpred.sigma_min"
PLAYGROUND_NOISE = NoiseConfig("edm", sigma_min=0.002, sigma_max=80.0, sigma_data=0.5)
PLAYGROUND_SCALE = 0.5
"""Noise levels and scale of the latents in models with `edm_mean` and `edm_std` (Playground 2.5)."""


@dataclass(frozen=True)
class Identity:
    """What a file is.

    kind: a kind of the signature table such as "checkpoint", "controlnet", "lora"; "unknown" for anything else.
    family: "sd15", "sd2", "sdxl", "sdxl-refiner", the name of a model of this package ("demo"), "custom" for shapes of
    no released family, "" where the file does not show it. prefix: stands before the keys of the model.
    config: the shapes, where the kind is supported. supported: whether this package loads the file; if not,
    `problem` says why. folder: where such files belong, below `models/`.
    """

    kind: str
    title: str
    layout: str
    family: str = ""
    prefix: str = ""
    details: tuple[str, ...] = ()
    config: Config | None = None
    supported: bool = False
    folder: str = ""
    problem: str = ""

    @property
    def family_title(self) -> str:
        """The family in words; empty where the file cannot tell."""
        titles = {"": "", "custom": "a model of its own shape", **{row.preset.name: row.title for row in FAMILIES}}
        return titles.get(self.family, f"the {self.family} model")

    @property
    def summary(self) -> str:
        """One line: kind, family, layout, details."""
        if self.kind == "unknown":
            return self.title
        link = "of" if self.kind in signatures.WHOLE else "for"
        family = f" {link} {self.family_title}" if self.family else ""
        details = "".join(f", {detail}" for detail in self.details)
        return f"{self.title}{family} ({self.layout} layout{details})"


def identify_file(path: str | Path) -> Identity:
    """What the file or diffusers folder is, from its header. Raises as `read_header` does."""
    return identify(read_header(path))


def identify(header: Header) -> Identity:
    """What a header describes. A damaged model of a known kind is recognised, with its `problem`."""
    # Pickles may have markers such as `difference` as plain values; in safetensors they are empty tensors.
    index = KeyIndex((*header.tensors, *(header.metadata if header.format == "pickle" else ())))
    found = index.match() or _match_learned_word(header)
    if found is None:
        examples = ", ".join(list(header.tensors)[:3])
        title = f"not a model this package knows; its keys look like {examples}"
        return Identity("unknown", title, "unknown", problem="its layout is not known")
    signature, prefix = found
    kind, shapes = signature.kind, header.shapes
    family = header.metadata.get(FAMILY_KEY) or _find_family(index, shapes, kind, prefix)
    details = tuple(_find_details(index, shapes, kind, prefix, family))
    if family == "sd2" and INPAINTING not in details and _predicts_v(header, prefix):
        details = (*details, signatures.V_PREDICTION)
    if any(info.scale for info in header.tensors.values()):
        details = (*details, SCALED_FP8)
    identity = Identity(kind, signature.name, signature.layout, family, prefix, details, folder=KINDS[kind].folder)
    return _add_config(header, identity, signature)


def _match_learned_word(header: Header) -> tuple[Signature, str] | None:
    """A file with one vector, or a few in one tensor, under a name that no module has."""
    if len(header.tensors) != 1:
        return None
    ((key, info),) = header.tensors.items()
    small = len(info.shape) == 1 or (len(info.shape) == 2 and info.shape[0] <= signatures.LEARNED_WORD_ROWS)
    is_word = not key.endswith((".weight", ".bias"))
    return (signatures.LEARNED_WORD, "") if small and is_word and info.dtype.is_floating_point else None


def _find_family(index: KeyIndex, shapes: Shapes, kind: str, prefix: str) -> str:
    if kind == lllite.KIND:
        return next((family for needle, family in lllite.FAMILIES.items() if index.find(needle)), "")
    if kind in ADAPTER_KINDS:
        return signatures.ADAPTER_FAMILIES.get(_input_size(index, shapes, signatures.ADAPTER_NEEDLES, prefix) or 0, "")
    context = _input_size(index, shapes, signatures.CONTEXT_NEEDLES, prefix)
    label = _input_size(index, shapes, signatures.LABEL_NEEDLES, prefix)
    for family in FAMILIES:
        unet = family.preset.unet
        # SDXL's small ControlNet reads no text; its label vector tells the family
        if unet.context_dim == context or (context is None and label and unet.label_dim == label):
            return family.preset.name
    return "" if context is None else "custom"


def _input_size(index: KeyIndex, shapes: Shapes, needles: tuple[str, ...], prefix: str) -> int | None:
    """Second size of the first tensor that one of the needles finds."""
    for needle in needles:
        shape = shapes.get(index.find(needle, prefix) or "", ())
        if len(shape) >= 2:
            return shape[1]
    return None


def _find_details(index: KeyIndex, shapes: Shapes, kind: str, prefix: str, family: str) -> Iterable[str]:
    for detail in signatures.DETAILS:
        key = index.find(detail.needle, prefix)
        if key is None or kind not in detail.kinds or (detail.families and family not in detail.families):
            continue
        if detail.unless and index.find(detail.unless, prefix):
            continue
        shape = shapes.get(key, ())
        if not detail.sizes or (detail.axis < len(shape) and shape[detail.axis] in detail.sizes):
            yield detail.text.format(*shape, *_NO_SIZES)


def _predicts_v(header: Header, prefix: str) -> bool:
    key = prefix + SD2_V_KEY
    return key in header.tensors and bool(read_tensors(header, [key])[key].float().std(correction=0) > SD2_V_STD)


# ---------------------------------------------------------------------------------------------- configs


def _add_config(header: Header, identity: Identity, signature: Signature) -> Identity:
    """The identity with its config, or with the problem that keeps the file from being loaded."""
    if not signature.loads:
        family = f" for {identity.family_title}" if identity.family else ""
        return replace(identity, problem=f"this version does not load {identity.title} files{family}")
    if identity.kind in WITHOUT_CONFIG:
        return replace(identity, supported=True)
    try:
        with reading(header.path, CheckpointError):
            config = _read_config(header, identity)
            check_config(config)
    except CheckpointError as error:
        return replace(identity, problem=str(error).removeprefix(f"{header.path.name}: "))
    channels = config.hint_channels if isinstance(config, WITH_HINT) else 3
    if channels not in HINT_CHANNELS:
        problem = f"it reads hints of {channels} channels; this version gives hints of 3 (RGB) or 1 (gray)"
        return replace(identity, problem=problem)
    return replace(identity, config=config, supported=True)


def _read_config(header: Header, identity: Identity) -> Config:
    kind_of_config = KINDS[identity.kind].config
    if CONFIG_KEY in header.metadata and kind_of_config is not None:
        return fileconfig.config_from_json(header.metadata[CONFIG_KEY], kind_of_config)
    header = open_clip.split_fused(header)
    layout, entries = LAYOUTS.get(identity.layout, LAYOUTS["ldm"]), header.configs.get("", {})
    _, shapes = part(header.shapes, (identity.prefix,))
    match identity.kind:
        case "checkpoint":
            return _checkpoint_config(header, identity, layout)
        case kind if kind in ADAPTER_KINDS:
            rules = ADAPTER_RULES[kind, identity.layout](shapes)
            return structure.adapter_config(rename_shapes(shapes, rules))
        case kind if kind in derived.DERIVED:
            return structure.derived_config({ours: shapes[key] for key, ours in derived.rename(shapes).items()})
        case ctrlora.BASE:
            return structure.ctrlora_config({ours: shapes[key] for key, ours in ctrlora.rename(shapes).items()})
        case controlnet_xs.KIND:
            return controlnet_xs.read_config(shapes, identity.layout, entries)
        case sparsectrl.KIND:
            sketch = layout.sketch(shapes)
            layers = 0 if sparsectrl.HINT_CONVOLUTION in shapes else sketch.hint_layers
            return structure.sparsectrl_config(rename_shapes(shapes, sparsectrl.rules(sketch.unet, layers)))
        case lllite.KIND:
            return structure.lllite_config(rename_shapes(shapes, lllite.rules(shapes)))
        case "controlnet" | "controlnet-union":
            sketch = layout.sketch(shapes)
            rules = layout.controlnet_rules(sketch.unet, sketch.hint_layers)
            config = structure.controlnet_config(rename_shapes(shapes, rules))
            unet = fileconfig.refine_unet(config.unet, entries)
            return replace(config, unet=unet, global_pool=bool(entries.get("global_pool_conditions", False)))
        case "unet":
            return _unet_config(shapes, layout, entries)
        case "vae":
            return _vae_config(shapes, layout, entries, SD15, header)
    config = structure.text_config(rename_shapes(shapes, layout.text_rules()))
    if identity.layout == "open_clip":
        config = replace(config, activation="gelu")
    return fileconfig.refine_text(config, entries)


def _preset(family: str) -> ModelConfig:
    """The published model of a family; Stable Diffusion 1.5 for shapes of no family."""
    return next((row.preset for row in FAMILIES if row.preset.name == family), SD15)


def _checkpoint_config(header: Header, identity: Identity, layout: Layout) -> ModelConfig:
    """Config of a whole model; parts that the file lacks are assumed to be those of the family."""
    configs, shapes = header.configs, header.shapes
    _, unet = part(shapes, layout.unet_prefixes)
    _, vae = part(shapes, layout.vae_prefixes)
    preset = _preset(identity.family)
    texts = _text_configs(shapes, layout, configs, preset)
    parametrization, noise = _training(header, identity.details)
    # A diffusers folder says outright what single files show by marker keys.
    if "scheduler" in configs:
        parametrization, noise = fileconfig.training(configs["scheduler"])
    return ModelConfig(
        name=identity.family,
        unet=_unet_config(unet, layout, configs.get("unet", {})),
        vae=_vae_config(vae, layout, configs.get("vae", {}), preset, header) if vae else preset.vae,
        text=texts[0] or preset.text,
        text2=texts[1] or preset.text2,
        parametrization=parametrization,
        noise=noise,
    )


def base_config(header: Header, identity: Identity, unet: UNetConfig) -> ModelConfig:
    """Config of a model whose UNet is in the file; the other parts are those of the family."""
    if isinstance(identity.config, ModelConfig):
        return identity.config
    with reading(header.path, CheckpointError):
        parametrization, noise = _training(header, identity.details)
    return replace(
        _preset(identity.family), name=identity.family, unet=unet, parametrization=parametrization, noise=noise
    )


def _training(header: Header, details: tuple[str, ...]) -> tuple[Parametrization, NoiseConfig]:
    """What the model predicts and on which noise levels, by the marker keys of single files, as ComfyUI reads them."""
    if signatures.EDM in details:
        return "edm", PLAYGROUND_NOISE
    if signatures.EDM_V_PREDICTION in details:
        found = read_tensors(header, [key for key in (EDM_SIGMA_MAX, EDM_SIGMA_MIN) if key in header.tensors])
        levels = {key.rpartition(".")[2]: float(value) for key, value in found.items()}
        return "v", replace(NoiseConfig("edm"), **levels)
    if signatures.V_PREDICTION in details:
        return "v", NoiseConfig(zero_terminal_snr=signatures.ZERO_TERMINAL_SNR in details)
    return "eps", NoiseConfig()


def _text_configs(
    shapes: Shapes, layout: Layout, configs: Mapping[str, Entries], preset: ModelConfig
) -> tuple[TextConfig | None, TextConfig | None]:
    """Configs of the first and the second text encoder; None where there is none."""
    found: list[TextConfig] = []
    for place, usual in zip(find_texts(layout, shapes).values(), (preset.text, preset.text2), strict=False):
        _, text = part(shapes, (place.prefix,))
        config = structure.text_config(rename_shapes(text, place.rules()))
        if place.rules is open_clip.text_rules:
            config = replace(config, activation="gelu")
        config = fileconfig.refine_text(config, configs.get(place.prefix.rstrip("."), {}))
        found.append(read_as(config, usual or preset.text, layout is LAYOUTS["diffusers"]))
    return (*found, None, None)[:2]  # type: ignore[return-value]


def read_as(config: TextConfig, usual: TextConfig, cut: bool = False) -> TextConfig:
    """The config of a text encoder, to be read at the layer and with the padding of `usual`.

    cut: whether the file may lack the layers behind the one that is read.
    """
    # diffusers leaves out SD2's last layer: of its 23 layers the last is read, where OpenCLIP reads the last but one
    stop = -1 if cut and usual.norms_stop_layer else usual.stop_layer
    return replace(config, stop_layer=stop, norms_stop_layer=usual.norms_stop_layer, padding=usual.padding)


def _unet_config(shapes: Shapes, layout: Layout, entries: Entries) -> UNetConfig:
    ours = rename_shapes(shapes, layout.unet_rules(layout.sketch(shapes).unet))
    return fileconfig.refine_unet(structure.unet_config(ours), entries)


def _vae_config(shapes: Shapes, layout: Layout, entries: Entries, preset: ModelConfig, header: Header) -> VAEConfig:
    config = structure.vae_config(rename_shapes(shapes, layout.vae_rules(layout.sketch(shapes).vae_levels)))
    config = replace(config, scaling_factor=preset.vae.scaling_factor)
    # Playground's latents have a mean and a deviation of their own in each channel.
    if EDM_MEAN in header.tensors and EDM_STD in header.tensors:
        mean, std = (tuple(t.flatten().tolist()) for t in read_tensors(header, [EDM_MEAN, EDM_STD]).values())
        config = replace(config, scaling_factor=PLAYGROUND_SCALE, latent_mean=mean, latent_std=std)
    return fileconfig.refine_vae(config, entries)
