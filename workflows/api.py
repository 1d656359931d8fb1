"""The short Python API: load a model, make hints, generate pictures.

    import comfyui_controlnet_core as cn

    pipe = cn.load("demo")
    hint = cn.preprocess("canny", "photo.jpg")
    image = pipe("a red ball", controls=[cn.control("canny", hint, strength=0.8)], seed=7)

It calls the same host and nodes' functions as the command line, so a workflow with the same settings gives the
same picture. The package's `__init__` imports this file when one of the names is first used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .. import preprocessors
from ..controlnet_core.errors import MissingFileError, ShapeError, ValueRangeError
from ..controlnet_core.picture_files import read_picture
from ..controlnet_core.sample import SampleSettings
from ..controlnet_core.training.controlnet_training import NATIVE_SIZES
from ..nodes import builtin
from ..nodes.standalone.host import StandaloneHost
from ..nodes.standalone.values import Clip, Model, Vae
from ..nodes.values import ControlSpec, SamplerInputs, UnitOptions
from ..preprocessors.image_ops import as_batch, rgb_frame, to_numpy, unit_range
from .model_paths import model_folders

Picture: TypeAlias = str | Path | Image.Image | np.ndarray | Tensor
"""A file, a PIL image, or an array or tensor (H, W), (H, W, C) or (1, H, W, C): floats in [0, 1], uint8 or uint16."""

Models: TypeAlias = str | Path | Sequence[str | Path]
"""Models folders of ComfyUI, or their extra_model_paths.yaml."""


@dataclass(frozen=True, eq=False)
class Control:
    """One ControlNet with its hint and settings; `control` describes the fields."""

    net: str
    hint: np.ndarray
    strength: float
    start: float
    end: float
    mode: str
    mask: np.ndarray | None
    kind: str


def load(model: str | Path = "demo", *, models: Models = (), device: str = "auto", dtype: str = "auto") -> Pipe:
    """Load a checkpoint with its text encoder and autoencoder.

    model: "demo" for the built-in model, a path to a checkpoint, or the name of a file in `models`/checkpoints.
    models: ComfyUI models folders, or their extra_model_paths.yaml; also searched for ControlNets and embeddings.
    device: "auto", "cpu", "cuda", "cuda:1", "mps". dtype: "auto", "fp32", "fp16", "bf16".

    Raises MissingFileError or CheckpointError for the file, ValueRangeError for the device or the dtype.
    """
    host = _host(models, device, dtype)
    demo = {path.stem.removesuffix("_base"): path for path in builtin.checkpoints(host.assets_dir).values()}
    return Pipe(host, *host.load_checkpoint(_model_file(host, "checkpoints", model, demo)))


def preprocess(kind: str, picture: Picture, *, models: Models = (), **options: Any) -> np.ndarray:
    """Make a hint from a picture. Returns an array (H, W, 3), float32 in [0, 1]; inpaint marks its pixels by -1.

    kind: a preprocessor such as "canny"; `preprocessors.names()` lists them all. models: where the networks of
    learned kinds are. options: the parameters of the kind, and those of `preprocessors.run.process`, such as
    `resolution=512, resize="shortest"`.

    Raises ValueRangeError for an unknown kind, ParameterError for a wrong option, WeightsError for a missing network,
    MissingFileError, DamagedFileError or PictureError for the picture.
    """
    if kind not in preprocessors.names():
        raise ValueRangeError(f"there is no preprocessor {kind!r}: choose one of {', '.join(preprocessors.names())}")
    entry = preprocessors.get(kind)
    library = _host(models).library() if entry.weights else None
    return preprocessors.process(entry, _pixels(picture)[None], library=library, **options)[0]


def control(
    net: str | Path,
    hint: Picture,
    *,
    strength: float = 1.0,
    start: float = 0.0,
    end: float = 1.0,
    mode: str = "balanced",
    mask: Picture | None = None,
    kind: str = "",
) -> Control:
    """Describe one ControlNet for a call of a pipe.

    net: the name of a demo net (canny, lines, soft_edge, scribble, openpose, segmentation, normal, depth, lineart or
    union), a path to a file, or the name of a file in the models folder that was given to `load`. hint: the picture
    that it reads, for example from `preprocess`. strength: factor, 0 or more. start, end: the window on the timestep
    axis; 0 is pure noise, 1 the finished picture. mode: "balanced", "prompt", "control", "cfg-rw", "cfg-rw-literal" or
    "mid-only". mask: the net acts where it is white. kind: what the hint shows ("depth", ...), for a ControlNet Union.

    Raises MissingFileError, DamagedFileError or PictureError for a picture; the pipe checks the rest.
    """
    # Alpha is not laid over white here: a mask that was painted on a transparent layer would become all white.
    where = None if mask is None else _values(mask)[..., 0]
    return Control(str(net), _pixels(hint), strength, start, end, mode, where, kind)


@dataclass(frozen=True, eq=False)
class Pipe:
    """A loaded model. Call it with a prompt; see `__call__`."""

    host: StandaloneHost
    model: Model
    clip: Clip | None
    vae: Vae | None

    def __call__(
        self,
        prompt: str,
        *,
        negative: str = "",
        controls: Sequence[Control] = (),
        seed: int = 0,
        steps: int = 20,
        cfg: float = 7.0,
        size: int | tuple[int, int] | None = None,
        sampler: str = "euler",
        scheduler: str = "normal",
    ) -> Image.Image:
        """Generate one picture.

        negative: the negative prompt. controls: from `control`; their residuals add up. seed: of the noise, as in
        ComfyUI. cfg: scale of classifier-free guidance; 1 is none. size: side in pixels or (width, height), multiples
        of 8; None is the size that the model was trained at. sampler, scheduler: by ComfyUI's names.

        Raises CoreError and its subclasses, with what was given, what was expected, and what to do.
        """
        width, height = self._size(size)
        specs = [self._spec(one) for one in controls]
        positive, negative_text = (self.host.encode_prompt(self.clip, text) for text in (prompt, negative))
        conditions = self.host.apply_control(positive, negative_text, specs)
        empty = torch.zeros(1, self.model.base.config.vae.latent_channels, height // 8, width // 8)
        settings = SampleSettings(seed=seed, steps=steps, cfg=cfg, sampler=sampler, scheduler=scheduler)
        latent = self.host.sample(SamplerInputs(self.model, *conditions, {"samples": empty}, settings))
        pixels = self.host.decode(self.vae, latent["samples"])[0].numpy()
        # cut to bytes, not rounded: ComfyUI's SaveImage does so, and the files shall be equal
        return Image.fromarray((255.0 * pixels).astype(np.uint8))

    def _size(self, size: int | tuple[int, int] | None) -> tuple[int, int]:
        native = NATIVE_SIZES.get(self.model.base.config.name, 512)
        width, height = size if isinstance(size, tuple) else (size or native,) * 2
        if min(width, height) < 8 or width % 8 or height % 8:
            raise ShapeError(f"the size is {width}x{height} pixels: give multiples of 8, such as {native}")
        return width, height

    def _spec(self, one: Control) -> ControlSpec:
        demo = {path.stem.removeprefix("demo_"): path for path in builtin.controlnets(self.host.assets_dir).values()}
        net = self.host.load_controlnet(_model_file(self.host, "controlnet", one.net, demo), self.model)
        image = torch.from_numpy(one.hint)[None]
        mask = None if one.mask is None else torch.from_numpy(one.mask)[None]
        options = UnitOptions(kind=one.kind)
        return ControlSpec(net, image, one.strength, one.start, one.end, one.mode, mask, options=options)


def _host(models: Models, device: str = "auto", dtype: str = "auto") -> StandaloneHost:
    """The host that the command line uses, on these models folders."""
    roots, by_kind = model_folders([models] if isinstance(models, (str, Path)) else models)
    return StandaloneHost(models_dirs=roots, model_folders=by_kind, device=device, dtype=dtype)


def _model_file(host: StandaloneHost, kind: str, name: str | Path, demo: Mapping[str, Path]) -> Path:
    """The file of a built-in name, of a path, or of a name in the models folders, in this order."""
    path = demo.get(str(name), Path(name).expanduser())
    if path.exists():
        return path
    if str(name) in host.files(kind):
        return host.find(kind, str(name))
    folders = ", ".join(str(folder) for folder in host.folders(kind)) or "no models folder was given to `load`"
    raise MissingFileError(
        f"there is no file {name}, and no {kind} of that name ({folders}): give a path to a file, or one of the "
        f"built-in names {', '.join(demo)}",
        path,
    )


def _pixels(picture: Picture) -> np.ndarray:
    """One picture -> (H, W, 3) float32, with alpha laid over white as by `controlnet preprocess`."""
    return rgb_frame(_values(picture))


def _values(picture: Picture) -> np.ndarray:
    """One picture -> (H, W, C) float32; bytes become 0..1, floats stay as they are (inpainting marks pixels by -1)."""
    if isinstance(picture, (str, Path)):
        path = Path(picture).expanduser()
        if not path.is_file():
            raise MissingFileError(f"there is no picture {path}: check the path", path)
        return read_picture(path).unit()
    if isinstance(picture, Image.Image):
        # Pillow's conversion to RGB cuts off gray values of 16 bits, so those go on as they are.
        colours = "RGBA" if picture.has_transparency_data else "RGB"
        picture = np.asarray(picture if picture.mode[0] in "IF" else picture.convert(colours))
    frames = as_batch(to_numpy(picture))
    if len(frames) != 1:
        raise ShapeError(f"{len(frames)} pictures of shape {frames.shape} came, expected one: pass them one by one")
    frame = frames[0]
    return frame.astype(np.float32) if frame.dtype.kind == "f" else unit_range(frame)
