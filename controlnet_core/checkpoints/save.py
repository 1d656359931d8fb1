"""Saving in this package's own layout, LDM / cldm, or diffusers: atomically, with the config in the metadata."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from ..config import ModelConfig
from ..errors import CheckpointError, ValueRangeError
from ..models.controlnet import ControlNet
from ..models.text_encoder import ClipTextModel
from ..models.unet import UNet
from ..models.vae import AutoencoderKL
from .check_config import Config
from .detect import EDM_MEAN, EDM_SIGMA_MAX, EDM_SIGMA_MIN, EDM_STD, V_PRED, ZTSNR
from .fileconfig import CONFIG_KEY, FAMILY_KEY, config_to_json
from .io import check_dtype, write_safetensors
from .keymap import KeyMap, add_prefix
from .layouts import EXTRA_PREFIX, LAYOUTS, LDM, Layout, checkpoint_rules, usual_texts
from .open_clip import fuse

LayoutName = Literal["core", "ldm", "diffusers"]
LAYOUT_NAMES: tuple[LayoutName, ...] = ("core", "ldm", "diffusers")


def save_checkpoint(
    path: str | Path,
    config: ModelConfig,
    unet: UNet,
    vae: AutoencoderKL | None = None,
    text_model: ClipTextModel | None = None,
    text_model2: ClipTextModel | None = None,
    *,
    extras: Mapping[str, Tensor] | None = None,
    layout: LayoutName = "ldm",
    dtype: torch.dtype | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a whole model as one safetensors file.

    layout: "diffusers" uses the names of that layout below `unet.`, `vae.`, `text_encoder.`. dtype: float32,
    float16, bfloat16, or None for the models' own. extras: tensors of this package's own, written as they
    are. Raises CheckpointError when the file cannot be written; no half-written file is left.
    """
    table = _layout(layout)
    modules = {"unet.": unet, "vae.": vae, "text.": text_model, "text2.": text_model2}
    keymap = KeyMap(checkpoint_rules(table, config.unet, len(config.vae.widths), usual_texts(table, config)))
    tensors: dict[str, Tensor] = {}
    for prefix, module in modules.items():
        if module is not None:
            tensors.update(_rename(module, keymap, prefix))
    if table is LDM:
        tensors = fuse(tensors)
    dtypes = _dtypes(tensors, dtype)
    # The markers come after `_dtypes`: numbers such as sigma_max keep their own type.
    if table is LDM:
        tensors.update(markers(config, dtype or next(unet.parameters()).dtype))
    tensors.update({EXTRA_PREFIX + name: tensor for name, tensor in (extras or {}).items()})
    write_safetensors(path, tensors, _metadata(config, config.name, metadata), dtypes)


def markers(config: ModelConfig, dtype: torch.dtype) -> dict[str, Tensor]:
    """The marker keys by which ComfyUI and other tools recognise what a single file was trained on.

    Models that predict noise have none. dtype: type of the markers that are empty, so that the file has one type.
    """
    noise, vae = config.noise, config.vae
    if config.parametrization == "edm":
        return {
            key: torch.tensor(values).reshape(1, -1, 1, 1)
            for key, values in ((EDM_MEAN, vae.latent_mean), (EDM_STD, vae.latent_std))
            if values is not None
        }
    if config.parametrization != "v":
        return {}
    if noise.kind == "edm":
        levels = {EDM_SIGMA_MAX: noise.sigma_max, EDM_SIGMA_MIN: noise.sigma_min}
        return {key: torch.tensor(level, dtype=torch.float64) for key, level in levels.items()}
    keys = (V_PRED, ZTSNR) if noise.zero_terminal_snr else (V_PRED,)
    return {key: torch.zeros(0, dtype=dtype) for key in keys}


def save_controlnet(
    path: str | Path,
    net: ControlNet,
    *,
    family: str = "",
    layout: LayoutName = "ldm",
    dtype: torch.dtype | None = None,
    narrow: torch.dtype | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a ControlNet as one safetensors file; `ldm` is the cldm layout with `control_model.`.

    family: name of the base it is made for ("sd15", "demo"). narrow: float8, to which the matrices of encoder and
    middle are rounded; what reads the hint and what is added to the base stays in `dtype`. Other arguments and errors
    as `save_checkpoint`.
    """
    table, config = _layout(layout), net.config
    keymap = KeyMap(add_prefix(table.controlnet_rules(config.unet, 2 * len(config.hint_widths)), table.control_prefix))
    tensors = dict(_rename(net, keymap))
    dtypes = _dtypes(tensors, dtype)
    if narrow is not None:
        # Vectors stay wide: they have few values, and normalisation and bias are sensitive.
        matrices = (n for n, w in net.state_dict().items() if w.ndim > 1 and n.startswith(("encoder.", "middle.")))
        dtypes.update({str(keymap.to_theirs(name)): narrow for name in matrices})
    write_safetensors(path, tensors, _metadata(config, family, metadata), dtypes)


def save_vae(
    path: str | Path,
    vae: AutoencoderKL,
    *,
    layout: LayoutName = "ldm",
    dtype: torch.dtype | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write an autoencoder as a file of its own. Arguments and errors as `save_checkpoint`."""
    tensors = dict(_rename(vae, KeyMap(_layout(layout).vae_rules(len(vae.config.widths)))))
    write_safetensors(path, tensors, _metadata(vae.config, "", metadata), _dtypes(tensors, dtype))


def _layout(name: str) -> Layout:
    if name not in LAYOUT_NAMES:
        raise ValueRangeError(f"layout is {name!r}, expected one of {', '.join(LAYOUT_NAMES)}")
    return LAYOUTS[name]


def _rename(module: nn.Module, keymap: KeyMap, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Weights of a module under the names of a layout."""
    for name, tensor in module.state_dict().items():
        key = keymap.to_theirs(prefix + name)
        if key is None:
            raise CheckpointError(f"the layout has no name for the weight {prefix}{name}: save in layout 'core'")
        yield key, tensor.flatten(1) if tensor.ndim > 2 and keymap.is_linear(prefix + name) else tensor


def _dtypes(tensors: Mapping[str, Tensor], dtype: torch.dtype | None) -> dict[str, torch.dtype]:
    """The type in which each weight is written."""
    check_dtype(dtype)
    return {key: dtype or tensor.dtype for key, tensor in tensors.items()}


def _metadata(config: Config, family: str = "", metadata: Mapping[str, str] | None = None) -> dict[str, str]:
    """Metadata of a file. Other tools look for `format`; the config holds what shapes cannot tell."""
    own = {"format": "pt", CONFIG_KEY: config_to_json(config), **({FAMILY_KEY: family} if family else {})}
    return {**(metadata or {}), **own}
