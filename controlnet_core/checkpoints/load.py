"""Loading: strict, on meta tensors, with no copy of the weights.

A model is built without memory, then its parameters become the tensors of the file, mapped from
disk. A weight is converted only where another dtype or device is asked for. Every key of the file has
to be a weight of the model or stand in the table of droppable keys; every weight of the model has to be
in the file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from ..config import (
    OPENCLIP_G,
    OPENCLIP_H,
    SD15,
    SDXL,
    ControlNetConfig,
    ModelConfig,
    TextConfig,
    UNetConfig,
    VAEConfig,
)
from ..errors import CheckpointError, ValueRangeError
from ..models.control import ControlModel
from ..models.controlnet import ControlNet
from ..models.narrow import NARROW, held
from ..models.text_encoder import ClipTextModel, DualTextEncoder, TextEncoder
from ..models.tokenizer import ClipTokenizer, VocabMap
from ..models.unet import UNet
from ..models.union import ControlNetUnion
from ..models.vae import AutoencoderKL
from .detect import Identity, base_config, identify, read_as
from .files import Header, TensorInfo
from .io import read_header, read_tensors
from .keymap import KeyMap, Renamed, matcher, prefixed
from .layouts import EXTRA_PREFIX, LAYOUTS, TEXT_NAMES, checkpoint_rules, find_texts, part
from .open_clip import unfused

MODEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
STORED_AS: Mapping[torch.dtype, torch.dtype] = {torch.float64: torch.float32, **dict.fromkeys(NARROW, torch.float16)}
"""Types in which weights are stored and not computed with; float16 holds every float8 value exactly."""
Narrow: TypeAlias = torch.dtype | Literal["stored"] | None
"""float8: hold a net's matrices so, rounded to it; "stored": those that the file has so; None: none.

A net that holds float8 is for a `Backend`, which casts each layer at its use.
"""
VOCAB_MAP = "vocab_map"
VAE_FILE_KEY = "controlnet_core.vae_file"
"""Metadata of a checkpoint without an autoencoder: the name of the file beside it that has it."""
SHOWN_KEYS = 4

ModelT = TypeVar("ModelT", bound=nn.Module)
ConfigT = TypeVar("ConfigT")


@dataclass(frozen=True)
class Checkpoint:
    """A whole model. `vae`, `text_model` and `text_model2` are None where the file has none.

    `extras` holds tensors of this package's own, such as the demo model's vocabulary map.
    """

    config: ModelConfig
    unet: UNet
    vae: AutoencoderKL | None
    text_model: ClipTextModel | None
    identity: Identity
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    text_model2: ClipTextModel | None = None

    def text_encoder(self, tokenizer: ClipTokenizer | None = None) -> TextEncoder | DualTextEncoder:
        """The text models with their tokenizer. Raises CheckpointError where the file has no text model."""
        if self.text_model is None:
            raise CheckpointError(f"the {self.config.name} checkpoint has no text encoder: load one from another file")
        ids = self.extras.get(VOCAB_MAP)
        vocab = None if ids is None else VocabMap.from_tensor(ids)
        tokenizer = tokenizer or ClipTokenizer.load()
        first = TextEncoder.of(self.text_model, tokenizer, self.config.text, vocab)
        if self.text_model2 is None or self.config.text2 is None:
            return first
        return DualTextEncoder(first, TextEncoder.of(self.text_model2, tokenizer, self.config.text2))


@dataclass(frozen=True)
class Plan:
    """Modules to fill, by the prefix of our names, and the table that finds their weights in the file.

    `drop` lists patterns of keys to leave aside; `scope` restricts a load to keys with one of these
    prefixes, where only a part of a file is wanted; `places` are the prefixes of the parts of a checkpoint.
    """

    header: Header
    identity: Identity
    keymap: KeyMap
    modules: Mapping[str, nn.Module]
    drop: tuple[str, ...] = ()
    scope: tuple[str, ...] = ("",)
    places: Mapping[str, str] = field(default_factory=dict)


# --------------------------------------------------------------------------------------------- public


def load_checkpoint(
    path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    narrow: Narrow = None,
) -> Checkpoint:
    """Load a whole model from an LDM, diffusers (file or folder) or own checkpoint.

    dtype: float32, float16 or bfloat16; None keeps what is stored, with no copy of the weights, and float8 as
    float16. narrow: what of the UNet to hold in float8, see `Narrow`.
    Raises MissingFileError, and CheckpointError when the file is damaged, of another kind, or has
    weights missing or left over.
    """
    header, identity = open_as(path, "checkpoint")
    plan = checkpoint_plan(header, identity)
    extras = fill(plan, dtype, device, narrow)
    unet, vae, text, text2 = (plan.modules.get(name) for name in ("unet.", "vae.", *TEXT_NAMES))
    assert isinstance(unet, UNet) and isinstance(identity.config, ModelConfig)
    sibling = header.metadata.get(VAE_FILE_KEY)
    if vae is None and sibling:
        vae = load_vae(_beside(Path(path), sibling), dtype=dtype, device=device)
    return Checkpoint(identity.config, unet, vae, text, identity, extras, text2)  # type: ignore[arg-type]


def _beside(path: Path, name: str) -> Path:
    """A file in the same folder; a name with a folder in it is refused, for the metadata is not ours to trust."""
    if Path(name).name != name or name in (".", ".."):
        raise CheckpointError(
            f"{path.name} names its autoencoder as {name!r}, which is no plain file name: get the file again", path
        )
    return path.with_name(name)


def load_controlnet(
    path: str | Path, *, dtype: torch.dtype | None = None, device: str | torch.device = "cpu"
) -> tuple[ControlNet, Identity]:
    """Load a ControlNet (cldm, diffusers or own layout). Arguments and errors as `load_checkpoint`."""
    header, identity = open_as(path, "controlnet")
    plan = controlnet_plan(header, identity)
    fill(plan, dtype, device)
    net = plan.modules[""]
    assert isinstance(net, ControlNet)
    return net, identity


def load_vae(
    path: str | Path, *, dtype: torch.dtype | None = None, device: str | torch.device = "cpu"
) -> AutoencoderKL:
    """Load an autoencoder, from a file of its own or out of a checkpoint."""
    header, identity = open_as(path, "vae", "checkpoint")
    return _load_part(header, identity, "vae.", AutoencoderKL, dtype, device)


def load_unet(path: str | Path, *, dtype: torch.dtype | None = None, device: str | torch.device = "cpu") -> UNet:
    """Load a UNet, from a file of its own or out of a checkpoint."""
    header, identity = open_as(path, "unet", "checkpoint")
    return _load_part(header, identity, "unet.", UNet, dtype, device)


def load_base(
    path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    narrow: Narrow = None,
) -> Checkpoint:
    """Load a UNet as a model without text encoder and autoencoder; what it was trained on is read as in a checkpoint.

    Arguments and errors as `load_checkpoint`.
    """
    header, identity = open_as(path, "unet", "checkpoint")
    unet = _load_part(header, identity, "unet.", UNet, dtype, device, narrow)
    return Checkpoint(base_config(header, identity, unet.config), unet, None, None, identity)


def load_text_encoder(
    paths: Sequence[str | Path],
    tokenizer: ClipTokenizer | None = None,
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
) -> TextEncoder | DualTextEncoder:
    """A text encoder from one file, or SDXL's two from two files in any order.

    The layer that prompts are read from follows from the widths: OpenCLIP's H is Stable Diffusion 2's, bigG alone
    is the refiner's, any other that of Stable Diffusion 1.x. Errors as `load_checkpoint`.
    """
    models = [load_text_model(path, dtype=dtype, device=device) for path in paths]
    models.sort(key=lambda model: model.config.width)
    tokenizer = tokenizer or ClipTokenizer.load()
    uses = [text_use(models[0].config)] if len(models) == 1 else [SDXL.text, OPENCLIP_G]
    encoders = [
        TextEncoder.of(model, tokenizer, read_as(model.config, use, model.config.layers == H_LAYERS_READ))
        for model, use in zip(models, uses, strict=True)
    ]
    return encoders[0] if len(encoders) == 1 else DualTextEncoder(*encoders)


H_LAYERS_READ = OPENCLIP_H.layers - 1
"""Layers of an OpenCLIP H file that leaves out the last one, which is never read."""


def text_use(config: TextConfig) -> TextConfig:
    """How a text encoder that is alone is read."""
    return next((use for use in (OPENCLIP_H, OPENCLIP_G) if use.width == config.width), SD15.text)


def load_text_model(
    path: str | Path, *, dtype: torch.dtype | None = None, device: str | torch.device = "cpu"
) -> ClipTextModel:
    """Load a CLIP text transformer, from a file of its own or out of a checkpoint."""
    header, identity = open_as(path, "text-encoder", "checkpoint")
    return _load_part(header, identity, "text.", ClipTextModel, dtype, device)


def _load_part(
    header: Header,
    identity: Identity,
    prefix: str,
    kind: type[ModelT],
    dtype: torch.dtype | None,
    device: str | torch.device,
    narrow: Narrow = None,
) -> ModelT:
    plan = part_plan(header, identity, prefix)
    fill(plan, dtype, device, narrow)
    model = plan.modules[prefix]
    assert isinstance(model, kind)
    return model


def open_as(path: str | Path, *wanted: str) -> tuple[Header, Identity]:
    """Header and identity of a file of one of these kinds; CheckpointError when it is something else."""
    header = read_header(path)
    identity = identify(header)
    name = header.path.name
    if identity.kind == "unknown":
        raise CheckpointError(f"{name} is {identity.summary}; expected {_words(wanted[0])}", header.path)
    if identity.kind not in wanted:
        raise CheckpointError(
            f"{name} is of another kind: {identity.summary}; expected {_words(wanted[0])}. "
            f"Put it into models/{identity.folder} and load it with the node for that kind",
            header.path,
        )
    if not identity.supported:
        raise CheckpointError(
            f"{name} is recognised as {identity.summary}, but cannot be loaded: {identity.problem}",
            header.path,
        )
    return header, identity


def _words(kind: str) -> str:
    return {
        "checkpoint": "a Stable Diffusion checkpoint",
        "controlnet": "a ControlNet",
        "vae": "an autoencoder (VAE)",
        "unet": "a UNet",
        "text-encoder": "a CLIP text encoder",
        "lora": "a LoRA",
        "textual-inversion": "a textual inversion",
    }[kind]


# ---------------------------------------------------------------------------------------------- plans


def on_meta(build: Callable[[ConfigT], ModelT], config: ConfigT, header: Header) -> ModelT:
    """A model without memory. Raises CheckpointError when the file's config describes none."""
    try:
        with torch.device("meta"):
            return build(config)
    except (ValueError, TypeError, RuntimeError, IndexError, ZeroDivisionError) as error:
        raise CheckpointError(
            f"{header.path.name} describes a model that cannot be built ({error}): "
            "it is damaged or a variant that this version does not know; download it again",
            header.path,
        ) from error


def checkpoint_plan(header: Header, identity: Identity) -> Plan:
    """What to build, and from where, for a whole model."""
    config = identity.config
    assert isinstance(config, ModelConfig)
    layout = LAYOUTS[identity.layout]
    header = unfused(header)
    shapes = header.shapes
    unet_prefix, _ = part(shapes, layout.unet_prefixes)
    vae_prefix, vae = part(shapes, layout.vae_prefixes)
    texts = find_texts(layout, shapes)
    modules: dict[str, nn.Module] = {"unet.": on_meta(UNet, config.unet, header)}
    if vae:
        modules["vae."] = on_meta(AutoencoderKL, config.vae, header)
    for name, text in zip(texts, (config.text, config.text2), strict=False):
        if text is not None:
            modules[name] = on_meta(ClipTextModel, text, header)
    rules = checkpoint_rules(layout, config.unet, len(config.vae.widths), texts, (unet_prefix, vae_prefix))
    places = {"unet.": unet_prefix, "vae.": vae_prefix, **{name: place.prefix for name, place in texts.items()}}
    return Plan(header, identity, KeyMap(rules), modules, layout.drop, places=places)


def controlnet_plan(header: Header, identity: Identity) -> Plan:
    """What to build, and from where, for a ControlNet."""
    config = identity.config
    assert isinstance(config, ControlNetConfig)
    layout = LAYOUTS[identity.layout]
    rules = layout.controlnet_rules(config.unet, 2 * len(config.hint_widths))
    net = on_meta(ControlNetUnion if config.union else ControlNet, config, header)
    drop = layout.control_drop if identity.prefix else layout.drop
    return Plan(header, identity, KeyMap(prefixed(rules, identity.prefix)), {"": net}, drop)


def part_plan(header: Header, identity: Identity, prefix: str) -> Plan:
    """What to build for one part of a model, alone in its file or out of a checkpoint."""
    if identity.kind == "checkpoint":
        plan = checkpoint_plan(header, identity)
        if prefix not in plan.modules:
            raise CheckpointError(
                f"{header.path.name} is {identity.summary} without the wanted part {prefix[:-1]!r}: "
                "choose a file that has it",
                header.path,
            )
        return replace(plan, modules={prefix: plan.modules[prefix]}, scope=(plan.places[prefix],))
    layout = LAYOUTS[identity.layout]
    header = unfused(header)
    config = identity.config
    if isinstance(config, UNetConfig):
        module, rules = on_meta(UNet, config, header), layout.unet_rules(config)
    elif isinstance(config, VAEConfig):
        module, rules = on_meta(AutoencoderKL, config, header), layout.vae_rules(len(config.widths))
    else:
        assert isinstance(config, TextConfig)
        module, rules = on_meta(ClipTextModel, config, header), layout.text_rules()
    return Plan(header, identity, KeyMap(prefixed(rules, identity.prefix, prefix)), {prefix: module}, layout.drop)


# ------------------------------------------------------------------------------------------- checking


def expected_shapes(modules: Mapping[str, nn.Module]) -> dict[str, tuple[int, ...]]:
    """Shape of every weight of the modules, by our names."""
    return {
        prefix + name: tuple(tensor.shape)
        for prefix, module in modules.items()
        for name, tensor in module.state_dict().items()
    }


def check(plan: Plan) -> dict[str, str]:
    """Compare a file's keys and shapes with the models', without the weights.

    Returns our name for each foreign key that will be loaded, extras included. Raises CheckpointError
    naming the file, what it is, and the first keys that are missing, left over or of a wrong shape.
    """
    dropped = matcher(plan.drop)
    keys = [key for key in plan.header.tensors if key.startswith(plan.scope) and not dropped.find(key)]
    renamed = plan.keymap.rename(keys)
    expected = expected_shapes(plan.modules)
    pairs = dict(renamed.pairs)
    known = {theirs: ours for theirs, ours in pairs.items() if ours in expected or ours.startswith(EXTRA_PREFIX)}
    missing = sorted(expected.keys() - known.values())
    leftover = [*renamed.unknown, *(key for key in pairs if key not in known)]
    wrong = [
        f"{theirs} is {list(shape)} and should be {list(expected[ours])}"
        for theirs, ours in known.items()
        if ours in expected and not same_matrix(shape := plan.header.tensors[theirs].shape, expected[ours])
    ]
    complaints = [*_complaints(plan.keymap, missing, leftover, renamed), *_listing("of a wrong shape", wrong)]
    if complaints:
        raise CheckpointError(
            f"{plan.header.path.name} looks like {plan.identity.summary}, but does not fit that model: "
            f"{'; '.join(complaints)}. The file is incomplete or a variant that this version does not know: "
            "download it again, or use the original version of the model",
            plan.header.path,
        )
    return known


def _complaints(keymap: KeyMap, missing: list[str], leftover: list[str], renamed: Renamed) -> Iterable[str]:
    yield from _listing("missing", [keymap.to_theirs(key) or key for key in missing])
    yield from _listing("left over", leftover)
    yield from _listing("there twice", [" and ".join(clash) for clash in renamed.clashes])


def _listing(what: str, keys: list[str]) -> list[str]:
    if not keys:
        return []
    more = f" and {len(keys) - SHOWN_KEYS} more" if len(keys) > SHOWN_KEYS else ""
    return [f"{what}: {', '.join(keys[:SHOWN_KEYS])}{more}"]


def same_matrix(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    """Whether two shapes are equal, up to a linear layer and a 1x1 convolution being the same matrix."""
    return a == b or (len(a) >= 2 and len(b) >= 2 and a[:2] == b[:2] and set(a[2:] + b[2:]) <= {1})


# -------------------------------------------------------------------------------------------- filling


def fill(
    plan: Plan, dtype: torch.dtype | None, device: str | torch.device, narrow: Narrow = None
) -> dict[str, Tensor]:
    """Give the modules of a plan their weights; returns the extras. Modules end in eval mode, frozen.

    narrow: of UNets and nets that control; text encoders and autoencoders are held wide.
    """
    if dtype is not None and dtype not in MODEL_DTYPES:
        raise ValueRangeError(f"dtype is {dtype}, expected one of {', '.join(str(choice) for choice in MODEL_DTYPES)}")
    names = check(plan)
    tensors = read_tensors(plan.header, names)
    ours = {names[key]: tensors.pop(key) for key in names}
    for prefix, module in plan.modules.items():
        mine = [(key, info) for key, info in _infos(plan, names) if key.startswith(prefix)]
        target = dtype or stored_dtype(plan.header, [info for _, info in mine])
        shapes = {name: tensor.shape for name, tensor in module.state_dict().items()}
        form = narrow if isinstance(module, UNet | ControlModel) else None
        state = {
            name: _cast(ours.pop(prefix + name).detach().view(shape), target, form).to(device)
            for name, shape in shapes.items()
        }
        module.load_state_dict(state, strict=True, assign=True)
        module.eval().requires_grad_(False)
    return {key.removeprefix(EXTRA_PREFIX): tensor for key, tensor in ours.items()}


def _cast(weight: Tensor, wide: torch.dtype, narrow: Narrow) -> Tensor:
    """A weight as it is to be held."""
    if narrow is None:
        return weight.to(wide)
    rounded = weight if narrow == "stored" else weight.to(narrow)
    return rounded.to(held(rounded, wide))


def _infos(plan: Plan, names: Mapping[str, str]) -> list[tuple[str, TensorInfo]]:
    return [(ours, plan.header.tensors[theirs]) for theirs, ours in names.items() if not ours.startswith(EXTRA_PREFIX)]


def stored_dtype(header: Header, infos: Iterable[TensorInfo]) -> torch.dtype:
    """The type that most of a module's weights are stored in, as one that can be computed with."""
    counts: Counter[torch.dtype] = Counter()
    for info in infos:
        if not info.dtype.is_floating_point:
            raise CheckpointError(
                f"{header.path.name} stores {info.name} as {info.dtype}, a quantised form: "
                "use the fp16 or fp32 version of the model",
                header.path,
            )
        counts[info.dtype] += info.count
    stored = counts.most_common(1)[0][0]
    return STORED_AS.get(stored, stored)
