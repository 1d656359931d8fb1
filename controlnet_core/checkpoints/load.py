"""Loading: strict, on meta tensors, without a copy of the weights.

A model is built without memory, then its parameters become the tensors of the file, mapped from disk. A weight is
converted only where another dtype or device is asked for. What a file has to hold is checked in `plan`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from ..config import OPENCLIP_G, OPENCLIP_H, SD15, SDXL, ModelConfig, TextConfig
from ..errors import CheckpointError
from ..models.control import ControlModel
from ..models.controlnet import ControlNet
from ..models.float8 import FLOAT8, storage_dtype
from ..models.text_encoder import ClipTextModel, DualTextEncoder, TextEncoder
from ..models.tokenizer import ClipTokenizer, VocabMap
from ..models.unet import UNet
from ..models.vae import AutoencoderKL
from .detect import Identity, base_config, read_as
from .files import Header, TensorInfo
from .io import check_dtype, read_tensors
from .layouts import EXTRA_PREFIX
from .plan import PARTS, Plan, check, check_is_float, checkpoint_plan, control_plan, open_as, part_plan

STORED_AS: Mapping[torch.dtype, torch.dtype] = {torch.float64: torch.float32, **dict.fromkeys(FLOAT8, torch.float16)}
"""Types in which weights are stored and not computed with; float16 holds every float8 value exactly."""
Narrow: TypeAlias = torch.dtype | Literal["stored"] | None
"""What stays in float8: a float8 dtype, all matrices of a net, rounded to it; "stored", those that the file has in
float8; None, nothing. A net with float8 weights needs a `Backend`, which converts each layer when it is used."""
VOCAB_MAP = "vocab_map"
VAE_FILE_KEY = "controlnet_core.vae_file"
"""Metadata of a checkpoint without an autoencoder: the name of the file in the same folder that has it."""
H_LAYERS_READ = OPENCLIP_H.layers - 1
"""Layers of an OpenCLIP H file without the last one, which Stable Diffusion 2 never reads."""
Device: TypeAlias = str | torch.device


@dataclass(frozen=True)
class Checkpoint:
    """A whole model. `vae`, `text_model` and `text_model2` are None where the file has none.

    extras: tensors of this package's own, such as the vocabulary map of the demo model.
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
        first = TextEncoder(self.text_model, tokenizer, self.config.text, vocab)
        if self.text_model2 is None or self.config.text2 is None:
            return first
        return DualTextEncoder(first, TextEncoder(self.text_model2, tokenizer, self.config.text2))


# ------------------------------------------------------------------------------------------ whole models


def load_checkpoint(
    path: str | Path, *, dtype: torch.dtype | None = None, device: Device = "cpu", narrow: Narrow = None
) -> Checkpoint:
    """Load a whole model from an LDM, diffusers (file or folder) or own checkpoint.

    dtype: float32, float16 or bfloat16; None keeps what is stored, without a copy of the weights, and float8 as
    float16. narrow: what of the UNet stays in float8, see `Narrow`.
    Raises MissingFileError, and CheckpointError when the file is damaged, of another kind, or has
    missing or unexpected weights.
    """
    header, identity = open_as(path, "checkpoint")
    plan = checkpoint_plan(header, identity)
    extras = fill(plan, dtype, device, narrow)
    parts = dict(plan.modules)
    sibling = header.metadata.get(VAE_FILE_KEY)
    if sibling and "vae." not in parts:
        # The metadata comes from a stranger: it may name a file in this folder and no other.
        if Path(sibling).name != sibling or sibling in (".", ".."):
            raise CheckpointError(
                f"{header.path.name} names its autoencoder as {sibling!r}, which is no plain file name: "
                "get the file again",
                path,
            )
        parts["vae."] = load_vae(Path(path).with_name(sibling), dtype=dtype, device=device)
    vae, text, text2 = (parts.get(prefix) for prefix in ("vae.", "text.", "text2."))
    assert isinstance(identity.config, ModelConfig)
    unet = plan.module("unet.", UNet)
    return Checkpoint(identity.config, unet, vae, text, identity, extras, text2)  # type: ignore[arg-type]


def load_base(path: str | Path, *, dtype: torch.dtype | None = None, narrow: Narrow = None) -> Checkpoint:
    """Load a UNet as a model without text encoder and autoencoder. Arguments and errors as `load_checkpoint`."""
    header, identity = open_as(path, "unet", "checkpoint")
    unet = _load_part(header, identity, "unet", dtype, narrow=narrow)
    return Checkpoint(base_config(header, identity, unet.config), unet, None, None, identity)


def load_controlnet(path: str | Path, *, dtype: torch.dtype | None = None) -> tuple[ControlNet, Identity]:
    """Load a ControlNet (cldm, diffusers or own layout). Arguments and errors as `load_checkpoint`."""
    header, identity = open_as(path, "controlnet")
    plan = control_plan(header, identity)
    fill(plan, dtype, "cpu")
    return plan.module("", ControlNet), identity


# ------------------------------------------------------------------------------------------------- parts


def load_vae(path: str | Path, *, dtype: torch.dtype | None = None, device: Device = "cpu") -> AutoencoderKL:
    """Load an autoencoder, from its own file or from a checkpoint. Arguments and errors as `load_checkpoint`."""
    return _load_part(*open_as(path, "vae", "checkpoint"), "vae", dtype, device)


def load_unet(path: str | Path, *, dtype: torch.dtype | None = None, device: Device = "cpu") -> UNet:
    """Load a UNet, from its own file or from a checkpoint. Arguments and errors as `load_checkpoint`."""
    return _load_part(*open_as(path, "unet", "checkpoint"), "unet", dtype, device)


def load_text_model(path: str | Path, *, dtype: torch.dtype | None = None, device: Device = "cpu") -> ClipTextModel:
    """Load a CLIP text transformer, from its own file or from a checkpoint. Errors as `load_checkpoint`."""
    return _load_part(*open_as(path, "text-encoder", "checkpoint"), "text-encoder", dtype, device)


def load_text_encoder(paths: Sequence[str | Path]) -> TextEncoder | DualTextEncoder:
    """A text encoder from one file, or SDXL's two from two files in any order.

    The layer that is read follows from the widths: OpenCLIP's H is Stable Diffusion 2's, bigG alone
    is the refiner's, any other is that of Stable Diffusion 1.x. Errors as `load_checkpoint`.
    """
    models = [load_text_model(path) for path in paths]
    # CLIP L is narrower than bigG, so that the widths give the order of the files.
    models.sort(key=lambda model: model.config.width)
    tokenizer = ClipTokenizer.load()
    uses = [text_use(models[0].config)] if len(models) == 1 else [SDXL.text, OPENCLIP_G]
    encoders = [
        TextEncoder(model, tokenizer, read_as(model.config, use, model.config.layers == H_LAYERS_READ))
        for model, use in zip(models, uses, strict=True)
    ]
    return encoders[0] if len(encoders) == 1 else DualTextEncoder(*encoders)


def text_use(config: TextConfig) -> TextConfig:
    """How a base reads a text encoder of this width when it has no other."""
    return next((use for use in (OPENCLIP_H, OPENCLIP_G) if use.width == config.width), SD15.text)


def _load_part(
    header: Header, identity: Identity, kind: str, dtype: torch.dtype | None, device: Device = "cpu",
    narrow: Narrow = None,
) -> Any:  # fmt: skip
    plan = part_plan(header, identity, kind)
    fill(plan, dtype, device, narrow)
    prefix, module, _ = PARTS[kind]
    return plan.module(prefix, module)


# -------------------------------------------------------------------------------------------- filling


def fill(plan: Plan, dtype: torch.dtype | None, device: Device, narrow: Narrow = None) -> dict[str, Tensor]:
    """Give the modules of a plan their weights; returns the extras. Modules end in eval mode, without gradients.

    narrow: for UNets and nets that control; text encoders and autoencoders are never kept in float8.
    """
    check_dtype(dtype)
    names = check(plan)
    tensors = read_tensors(plan.header, names)
    # `pop` lets go of each stored tensor as soon as it is converted, so that a file is never in memory twice.
    ours = {names[key]: tensors.pop(key) for key in names}
    for prefix, module in plan.modules.items():
        stored = [plan.header.tensors[key] for key, name in names.items() if name.startswith(prefix)]
        target = dtype or stored_dtype(plan.header, stored)
        # Text encoders lose too much in float8, and autoencoders are small.
        form = narrow if isinstance(module, UNet | ControlModel) else None
        shapes = {name: tensor.shape for name, tensor in module.state_dict().items()}
        # `view` makes 1x1 convolutions of linear layers, where a layout has those; the check allows nothing else.
        state = {
            name: _convert(ours.pop(prefix + name).detach().view(shape), target, form).to(device)
            for name, shape in shapes.items()
        }
        module.load_state_dict(state, strict=True, assign=True)
        module.eval().requires_grad_(False)
    return {key.removeprefix(EXTRA_PREFIX): tensor for key, tensor in ours.items()}


def _convert(weight: Tensor, wide: torch.dtype, narrow: Narrow) -> Tensor:
    if narrow is None:
        return weight.to(wide)
    rounded = weight if narrow == "stored" else weight.to(narrow)
    return rounded.to(storage_dtype(rounded, wide))


def stored_dtype(header: Header, infos: Iterable[TensorInfo]) -> torch.dtype:
    """The type that most of a module's weights are stored in, as one that can be computed with."""
    counts: Counter[torch.dtype] = Counter()
    for info in infos:
        check_is_float(header, info)
        counts[info.dtype] += info.count
    stored = counts.most_common(1)[0][0]
    return STORED_AS.get(stored, stored)
