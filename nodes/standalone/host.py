"""The host without ComfyUI: files in folders, the engine's own models, and callbacks of the calling program."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from ... import controlnet_core
from ...controlnet_core.backend import Backend
from ...controlnet_core.checkpoints.control import load_control
from ...controlnet_core.checkpoints.detect import Identity
from ...controlnet_core.checkpoints.embeddings import ENDINGS, read_embedding
from ...controlnet_core.checkpoints.gligen import load_gligen
from ...controlnet_core.checkpoints.hypernetwork import load_hypernetwork
from ...controlnet_core.checkpoints.load import Narrow, load_text_encoder, load_vae
from ...controlnet_core.checkpoints.lora import read_lora
from ...controlnet_core.checkpoints.vision import load_vision_encoder
from ...controlnet_core.control.effect import idle_notes
from ...controlnet_core.control.picture_part import PicturePart
from ...controlnet_core.control.report import RunReport
from ...controlnet_core.control.unit import ControlUnit, Curve
from ...controlnet_core.diffusion.samplers import Step
from ...controlnet_core.errors import CheckpointError, UnfitError, ValueRangeError
from ...controlnet_core.models.control import ControlModel, check_base
from ...controlnet_core.models.controlnet import ControlNet
from ...controlnet_core.models.gligen import Gligen
from ...controlnet_core.models.hypernetwork import Hypernetwork
from ...controlnet_core.models.text_encoder import DualTextEncoder
from ...controlnet_core.models.vae import unscale_latent
from ...controlnet_core.models.vision_encoder import ClipVisionModel
from ...controlnet_core.run_options import DEFAULTS, RunOptions
from ...controlnet_core.runtime.device import Runtime, check_cancelled
from ...controlnet_core.sample import cut_sigmas
from ...preprocessors.learned.library import Library
from ..folders import ALIASES, MODEL_ENDINGS, find_file, list_models
from ..speed import describe_ignored
from ..units import add_units, hint_of, on_curve, replace_unit, unit_of
from ..upscale import enlarge
from ..values import Conditioning, Controlled, ControlSpec, Halves, Latent, SamplerInputs
from . import loras
from .autoencoder import decode_latents, encode_pictures
from .file_cache import FileCache, open_checkpoint, open_unet
from .sampling_job import describe_memory, sampling_job
from .upscaling import open_upscaler
from .values import Clip, ControlNetHandle, Model, Vae

ASSETS = Path(controlnet_core.__file__).parent / "assets"
WEIGHT_DTYPES: Mapping[str, Narrow] = {
    "default": "stored",
    "fp8_e4m3fn": torch.float8_e4m3fn,
    "fp8_e4m3fn_fast": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
}
"""How weights are kept in memory, by the options of ComfyUI's UNETLoader."""
Progress = Callable[..., None]


def ignore(*facts: Any) -> None:
    """A callback for facts that nobody wants to know."""


class StandaloneHost:
    """Serves nodes from folders, and keeps loaded files for the next run.

    input_dir, output_dir: where pictures are read and written.
    models_dirs: folders that are laid out as ComfyUI's `models`, with a subfolder for each kind of file.
    model_folders: further folders by kind ("checkpoints", "loras", ...).
    device, dtype: see `Runtime.choose`; runtime: used instead of the two where it is given.
    progress(done, total, preview=None), cancelled(): called while a node runs.
    options: used in place of those that nodes set on a MODEL; None leaves those.
    on_measured(error, seconds, exact_seconds): where given, every sampling is repeated exactly, and this is called
    with the relative error of the latent and both times.
    on_report: called with the report of each sampling. observe: also record what each block added and the time of
    each net.
    on_note: called with one line before each sampling (the memory that it needs) and where a picture is decoded in
    tiles.
    """

    def __init__(
        self,
        input_dir: str | Path = "input",
        output_dir: str | Path = "output",
        models_dirs: Sequence[str | Path] = (),
        model_folders: Mapping[str, Sequence[str | Path]] | None = None,
        device: str = "auto",
        dtype: str = "auto",
        *,
        progress: Progress | None = None,
        cancelled: Callable[[], bool] = bool,  # bool() is False
        options: RunOptions | None = None,
        on_measured: Callable[[float, float, float], None] | None = None,
        on_report: Callable[[RunReport], None] | None = None,
        observe: bool = False,
        on_note: Callable[[str], None] = ignore,
        runtime: Runtime | None = None,
        assets_dir: str | Path = ASSETS,
    ) -> None:
        self.input_dir, self.output_dir = Path(input_dir), Path(output_dir)
        self.temp_dir = self.output_dir / "temp"
        # Further folders of pictures, by the first part of a picture's name.
        self.input_folders: Mapping[str, Path] = {}
        self.models_dirs = tuple(Path(root) for root in models_dirs)
        self.model_folders = {k: tuple(Path(f) for f in v) for k, v in (model_folders or {}).items()}
        self.assets_dir = Path(assets_dir)
        self.runtime = asked = runtime or Runtime.choose(device, dtype)
        self.backend = Backend(asked)
        # The autoencoder has a precision of its own: SD1.5's overflows in fp16.
        self.vae_backend = Backend(
            Runtime(asked.device, asked.vae_dtype, asked.vae_dtype, asked.pack_weights, winograd=asked.winograd)
        )
        self._progress, self._cancelled = progress or ignore, cancelled
        self.options, self.on_measured = options, on_measured
        self.on_report, self.observe, self.on_note = on_report, observe, on_note
        self._cache = FileCache(ahead=self.backend.kept is None)

    # ---- files

    def folders(self, kind: str) -> tuple[Path, ...]:
        """Folders in which files of a kind are looked for."""
        # Folders that were named for a kind go before the subfolders of a models folder, as in ComfyUI.
        names = (kind, *ALIASES.get(kind, ()))
        own = [folder for name in names for folder in self.model_folders.get(name, ())]
        return (*own, *(root / name for root in self.models_dirs for name in names))

    def files(self, kind: str) -> tuple[str, ...]:
        """Names of the files of a kind."""
        return list_models(self.folders(kind))

    def find(self, kind: str, name: str) -> Path:
        """The file of a kind by name. Raises PathError or MissingFileError."""
        return find_file(self.folders(kind), name, kind, MODEL_ENDINGS)

    # ---- models

    def load_checkpoint(self, path: Path) -> tuple[Model, Clip | None, Vae | None]:
        """MODEL, CLIP and VAE of a file; None for a part that the file does not have."""
        return self._cache.get("checkpoint", path, open_checkpoint)

    def load_controlnet(self, path: Path, model: Model | None = None) -> ControlNetHandle:
        """CONTROL_NET of a file.

        A file that holds only differences to a base model is completed with `model`, or at the start of the sampling
        where none is given. Raises UnfitError for a model of another base.
        """
        handle = self._cache.get("controlnet", path, lambda p: ControlNetHandle(*load_control(p, narrow="stored"), p))
        if model is None:
            return handle
        check_base(handle.net, handle.name, model.base.config.unet, f"the model {model.path.name}")
        return replace(handle, net=self.backend.resolve(handle.net, model.diffusion.unet))

    def load_vae(self, path: Path) -> Vae:
        """VAE of a file that holds one alone, or of a checkpoint."""
        return self._cache.get("vae", path, lambda p: Vae(load_vae(p), p))

    def load_unet(self, path: Path, weights: str = "default") -> Model:
        """MODEL of a file that holds a UNet alone. weights: a key of `WEIGHT_DTYPES`."""
        narrow = WEIGHT_DTYPES[weights]
        return self._cache.get(f"unet {narrow}", path, lambda p: open_unet(p, narrow))

    def load_clip(self, paths: Sequence[Path]) -> Clip:
        """CLIP of one file, or of SDXL's two."""
        # The cache has one path as key, so the other files are part of the kind.
        others = [str(path) for path in paths[1:]]
        return self._cache.get(" ".join(["clip", *others]), paths[0], lambda p: load_text_encoder([p, *paths[1:]]))

    def load_vision_encoder(self, path: Path) -> ClipVisionModel:
        """CLIP_VISION of a file of its own, or of a checkpoint."""
        return self._cache.get("vision", path, load_vision_encoder)

    def load_gligen(self, path: Path) -> Gligen:
        """GLIGEN of a file."""
        return self._cache.get("gligen", path, load_gligen)

    def load_hypernetwork(self, path: Path) -> Hypernetwork:
        """The networks of a file."""
        return self._cache.get("hypernetwork", path, load_hypernetwork)

    def load_upscaler(self, path: Path) -> Any:
        """UPSCALE_MODEL of a file; see `open_upscaler`."""
        return self._cache.get("upscaler", path, open_upscaler)

    def model_patch_control(self, model_patch: Any, vae: Any, image: Any, mask: Any) -> Any:
        """Raises UnfitError: this engine has no diffusion transformers."""
        raise UnfitError("model patches belong to Qwen-Image and Z-Image, which run in ComfyUI only: run it there")

    def plain_net(self, control_net: Any) -> tuple[ControlNet, str]:
        """The ControlNet in a CONTROL_NET, and its family. Raises UnfitError for other kinds of control."""
        net = getattr(control_net, "net", None)
        if not isinstance(net, ControlNet) or net.config.union is not None:
            handle = isinstance(control_net, ControlNetHandle)
            what = control_net.identity.title if handle else type(control_net).__name__
            raise UnfitError(f"only a plain ControlNet can be saved, this is {what}: link one")
        return net, control_net.identity.family

    def control_of(self, net: ControlModel, name: str) -> ControlNetHandle:
        """CONTROL_NET of a net that a node made."""
        return ControlNetHandle(net, Identity(name, name, "none"), Path(name))

    def training_device(self) -> torch.device:
        """The device of all runs."""
        return self.runtime.device

    def apply_lora(
        self, model: Model, clip: Clip | None, path: Path, strength_model: float, strength_clip: float
    ) -> tuple[Model, Clip | None]:
        """New MODEL and CLIP with a LoRA.

        Logs updates for which the models have no weight. Raises CheckpointError for a file that is no LoRA,
        UnfitError for a LoRA of another base.
        """
        return loras.apply_lora(self._cache.get("lora", path, read_lora), model, clip, strength_model, strength_clip)

    def embedding_file(self, name: str) -> Path:
        """The file of a textual inversion, by its name with or without ending and folder. Raises MissingFileError."""
        names = {name, *(name + ending for ending in ENDINGS)}
        listed = [file for file in self.files("embeddings") if file in names or PurePosixPath(file).name in names]
        return self.find("embeddings", min(listed, key=len, default=name))

    def embedding(self, width: int, name: str) -> Tensor:
        """Vectors (n, width) of a textual inversion, by its name as in `embedding_file`."""
        return self._cache.get("embedding", self.embedding_file(name), read_embedding).of_width(width)

    def library(self) -> Library:
        """Where learned preprocessors find their networks: folders for annotators first, then the models folders."""
        return self._library

    @cached_property
    def _library(self) -> Library:
        # Packs name these folders differently, but with this word in it: controlnet_annotators, annotator_ckpts.
        named = (f for kind, found in self.model_folders.items() if "annotator" in kind for f in found)
        return Library([*named, *self.models_dirs], device=str(self.runtime.device), dtype=self.runtime.dtype)

    # ---- text and pictures

    def encode_prompt(self, clip: Clip | None, prompt: str, first: str | None = None) -> Conditioning:
        """CONDITIONING of a prompt. first: another prompt for the first of SDXL's two text encoders.

        Raises MissingFileError or UnfitError for an `embedding:name` in it.
        """
        if clip is None:
            raise CheckpointError("the checkpoint has no text encoder: load one that has")
        # CLIP is loaded on the CPU; it is moved at its first prompt, and stays.
        encoder = clip.to(device=self.runtime.device, dtype=self.runtime.dtype)
        with torch.inference_mode():
            if first is None:
                text, pooled = encoder.encode_pooled(prompt, self.embedding)
            elif isinstance(encoder, DualTextEncoder):
                text, pooled = encoder.encode_pair(first, prompt, self.embedding)
            else:
                raise UnfitError("two prompts for a model with one text encoder: use CLIPTextEncode")
        return [[text.cpu(), {"pooled_output": pooled.cpu()}]]

    def decode(self, vae: Vae | None, samples: Tensor, tile: int | None = None, overlap: int = 8) -> Tensor:
        """Latents (B, 4, h, w) -> IMAGE (B, 8h, 8w, 3); see `decode_latents`."""
        return decode_latents(vae, samples, self.vae_backend, tile, overlap, self.on_note)

    def hint_encoder(self, vae: Vae | None) -> Callable[[Tensor], Tensor]:
        """IMAGE -> latents of this VAE."""
        return partial(self.encode, vae)

    def encode(self, vae: Vae | None, pixels: Tensor, tile: int | None = None, overlap: int = 64) -> Tensor:
        """IMAGE (B, H, W, C) -> latents (B, 4, H/8, W/8); see `encode_pictures`."""
        return encode_pictures(vae, pixels, self.vae_backend, tile, overlap)

    def enlarge(self, upscale_model: Any, image: Tensor) -> Tensor:
        """IMAGE enlarged by an UPSCALE_MODEL; see `upscale.enlarge`."""
        return enlarge(upscale_model, image, self.runtime.device, lambda: self.progress(0, 1))

    # ---- control and sampling

    def apply_control(self, positive: Conditioning, negative: Conditioning, specs: Sequence[ControlSpec]) -> Halves:
        """Both halves of the guidance with these units. Raises UnfitError for a net of another base."""
        units = tuple(self.unit(spec) for spec in specs if spec.strength != 0.0)
        if not units:
            return positive, negative
        halves = [add_units(half, units, to_uncond=False) for half in (positive, negative)]
        return halves[0], halves[1]

    def unit(self, spec: ControlSpec) -> ControlUnit:
        """The engine's unit for a description."""
        net = spec.control_net
        if not isinstance(net, ControlNetHandle):
            raise ValueRangeError(f"the control net is a {type(net).__name__}: link a ControlNet loader")
        return unit_of(spec, net.net, hint_of(spec.image), spec.name or net.name, net.kind)

    def controlled(self, model: Model, conditioning: Conditioning) -> Controlled:
        """The units on a conditioning, each once, with the model's noise levels and shapes."""
        # Both halves and several prompts share units: a dict keeps each once and in order.
        units = dict.fromkeys(unit for _, options in conditioning for unit in options.get("control") or ())
        return Controlled(tuple(units), model.diffusion.schedule, model.diffusion.config)

    def memory(self, inputs: SamplerInputs) -> str:
        """The memory that sampling with guidance will take, in words."""
        return describe_memory(inputs, self.options_of(inputs.model), self.backend)

    def reweigh(self, model: Model, conditioning: Conditioning, unit: int, factors: Sequence[float]) -> Conditioning:
        """The same conditioning with the block weights of one unit multiplied."""
        controlled = self.controlled(model, conditioning)
        old = controlled.units[unit]
        own = old.own_weights(controlled.config.unet) or (1.0,) * len(factors)
        new = replace(old, block_weights=tuple(w * f for w, f in zip(own, factors, strict=True)))
        return replace_unit(conditioning, old, new)

    def with_curve(
        self, model: Model, positive: Conditioning, negative: Conditioning, unit: int, curve: Curve
    ) -> Halves:
        """Both halves with the strength of one unit multiplied by a curve."""
        old = self.controlled(model, positive).units[unit]
        new = on_curve(old, curve)  # one for both halves, which share the old one
        return replace_unit(positive, old, new), replace_unit(negative, old, new)

    def decode_prediction(self, model: Model, vae: Vae | None, prediction: Tensor) -> Tensor:
        """IMAGE of the prediction of a step."""
        return self.decode(vae, unscale_latent(prediction.float().cpu(), model.diffusion.config.vae))

    def crop_control(self, positive: Conditioning, negative: Conditioning, part: PicturePart) -> Halves:
        """Both halves with units that know this part of the picture alone."""
        made: dict[ControlUnit, ControlUnit | None] = {}

        def cropped(half: Conditioning) -> Conditioning:
            # Both halves share units, so each is cropped once.
            for unit in (unit for _, options in half for unit in options.get("control") or () if unit not in made):
                made[unit] = part.unit(unit)
            return [
                [text, {**options, "control": tuple(cut for u in units if (cut := made[u]))} if units else options]
                for text, options in half
                for units in [options.get("control") or ()]
            ]

        return cropped(positive), cropped(negative)

    def sample(self, inputs: SamplerInputs, options: RunOptions = DEFAULTS) -> Latent:
        """The sampled LATENT.

        A run that is recorded but not observed is not reported by `on_report`. `on_step` of the options is not called
        in the repetitions that measure.
        """
        model, settings = inputs.model, inputs.settings
        reports = None if options.records and not options.observes else self.on_report
        if reports is not None and not options.records:
            options = options.with_recorder(settings.title, self.observe)

        def on_step(step: Step) -> None:
            self.progress(*options.progress(step.index + 1, step.total))
            if options.on_step is not None:
                options.on_step(step)

        used = self.options_of(model)
        ignored = describe_ignored(model.options, used)
        if ignored:
            self.on_note(ignored)
        # Runs of one node are about alike: the memory of the first is reported for all.
        on_memory = None if options.part[0] else lambda plan: self.on_note(plan.summary())
        callbacks = {"on_step": on_step, "on_memory": on_memory, "cancelled": self._cancelled}
        run = replace(options.with_shortcuts_of(used), **callbacks)
        job = sampling_job(inputs, self.backend)
        result = job.run(run)
        if options.records:
            units = [unit for _, given in (*inputs.positive, *inputs.negative) for unit in given.get("control") or ()]
            base = model.diffusion
            sigmas = cut_sigmas(base.schedule, settings).tolist()[:-1]
            options.note(*idle_notes(units, sigmas, base.schedule, base.config.unet))
        if reports is not None:
            reports(options.report())
        if self.on_measured is not None:
            self.on_measured(*job.measure(result, replace(run.without_report(), on_step=self._on_step)))
        return job.to_latent(result)

    def accelerate(self, model: Model, weights: str, node: str | None) -> tuple[Model, str]:
        """The same MODEL: without ComfyUI our engine always runs, and packs weights where that helps."""
        return model, "fast path: without ComfyUI every model runs on this engine"

    def with_options(self, model: Model, options: RunOptions, node: str | None) -> Model:
        """The MODEL with these options."""
        return replace(model, options=options)

    def options_of(self, model: Model) -> RunOptions:
        """Options of this run where it was started with some, else those of the MODEL."""
        return self.options or model.options

    # ---- what is reported while a node runs

    def progress(self, done: int, total: int, preview: Any = None) -> None:
        """Report progress. Raises Interrupted where the user has cancelled."""
        check_cancelled(self._cancelled)
        self._progress(done, total, preview)

    def cancelled(self) -> bool:
        """Whether the user has cancelled."""
        return self._cancelled()

    def _on_step(self, step: Step) -> None:
        self.progress(step.index + 1, step.total)
