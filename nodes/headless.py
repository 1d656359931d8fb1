"""The host without an editor: folders on disk, the engine's own models, callbacks."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath
from time import perf_counter
from typing import Any, TypeVar

import torch
from torch import Tensor

from .. import controlnet_core
from ..controlnet_core.checkpoints.control import load_control
from ..controlnet_core.checkpoints.embeddings import ENDINGS, read_embedding
from ..controlnet_core.checkpoints.fit import fits_text, text_widths
from ..controlnet_core.checkpoints.io import read_ahead
from ..controlnet_core.checkpoints.load import Narrow, load_base, load_checkpoint, load_text_encoder, load_vae
from ..controlnet_core.checkpoints.lora import read_lora
from ..controlnet_core.control.report import Recorder, RunReport
from ..controlnet_core.control.unit import ControlUnit, Hint
from ..controlnet_core.diffusion.samplers import Step
from ..controlnet_core.diffusion.schedule import make_schedule
from ..controlnet_core.engine.activations import decode_values
from ..controlnet_core.engine.backend import Backend
from ..controlnet_core.engine.chunks import plan_run
from ..controlnet_core.engine.footprint import MB
from ..controlnet_core.engine.graphs import why_never
from ..controlnet_core.engine.job import Job
from ..controlnet_core.engine.memory import MemoryPlan, free_bytes, plan_decoding
from ..controlnet_core.engine.pack import bytes_to_come
from ..controlnet_core.engine.run import EXACT, Run, Shortcuts
from ..controlnet_core.engine.runtime import Runtime, check_cancelled, waits_for_results
from ..controlnet_core.errors import CheckpointError, OutOfMemory, ShapeError, UnfitError, ValueRangeError
from ..controlnet_core.models.control import ControlModel, check_base
from ..controlnet_core.models.controlnet import ControlNet
from ..controlnet_core.models.text_encoder import DualTextEncoder
from ..controlnet_core.models.vae import AutoencoderKL, scale_latent, unscale_latent
from ..controlnet_core.pipeline import DiffusionModel, SampleSettings, cut_sigmas, generate
from ..preprocessors.learned.library import Library
from . import folders, loras
from .conditions import to_conditions
from .values import Clip, Conditioning, Controlled, ControlNetHandle, ControlSpec, Latent, Model, Vae

ASSETS = Path(controlnet_core.__file__).parent / "assets"
KEPT_FILES = 8
WEIGHTS: Mapping[str, Narrow] = {
    "default": "stored",
    "fp8_e4m3fn": torch.float8_e4m3fn,
    "fp8_e4m3fn_fast": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
}
"""What the native loader of a UNet calls the forms to hold its weights in."""
LoadedT = TypeVar("LoadedT")
Progress = Callable[..., None]


class HeadlessHost:
    """Answers nodes from folders, and keeps what it loaded, so that the next run is quick.

    input_dir, output_dir: where pictures are read and written. models_dirs: roots of models trees with a
    folder per kind; model_folders: further folders by kind. device, dtype: as `Runtime.choose`.
    progress(done, total, preview=None) and cancelled() are called while a node runs. shortcuts: what
    sampling may leave out, whatever the model says; None for what the model says. on_measured(error, seconds,
    exact_seconds): when given, each sampling is done exactly as well, and the relative error of the latent is told,
    with times that neither packing nor preparing is part of.
    on_report hears what ran in each sampling; with `observe` also what each block added and how long each net took.
    on_note hears before each sampling how much memory it will take, and when a picture is decoded in tiles since
    memory does not suffice. runtime: in place of the one that device and dtype give.
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
        cancelled: Callable[[], bool] | None = None,
        shortcuts: Shortcuts | None = None,
        on_measured: Callable[[float, float, float], None] | None = None,
        on_report: Callable[[RunReport], None] | None = None,
        observe: bool = False,
        on_note: Callable[[str], None] | None = None,
        runtime: Runtime | None = None,
        assets_dir: str | Path = ASSETS,
    ) -> None:
        self.input_dir, self.output_dir = Path(input_dir), Path(output_dir)
        self.temp_dir = self.output_dir / "temp"
        self.models_dirs = tuple(Path(root) for root in models_dirs)
        self.model_folders = {k: tuple(Path(f) for f in v) for k, v in (model_folders or {}).items()}
        self.assets_dir = Path(assets_dir)
        self.runtime = runtime or Runtime.choose(device, dtype)
        self.backend = Backend(self.runtime)
        asked, dtype_of_vae = self.runtime, self.runtime.vae_dtype
        self.vae_backend = Backend(
            Runtime(asked.device, dtype_of_vae, dtype_of_vae, pack_weights=asked.pack_weights, winograd=asked.winograd)
        )
        self._progress, self._cancelled = progress, cancelled
        self.shortcuts, self.on_measured = shortcuts, on_measured
        self.on_report, self.observe, self.on_note = on_report, observe, on_note
        self._library: Library | None = None
        self._loaded: OrderedDict[tuple[Any, ...], Any] = OrderedDict()

    # ---- files

    def folders(self, kind: str) -> tuple[Path, ...]:
        """Folders in which files of a kind are looked for."""
        names = (kind, *folders.ALIASES.get(kind, ()))
        own = [folder for name in names for folder in self.model_folders.get(name, ())]
        return (*own, *(root / name for root in self.models_dirs for name in names))

    def files(self, kind: str) -> tuple[str, ...]:
        """Names of the files of a kind."""
        return folders.list_files(self.folders(kind), folders.MODEL_ENDINGS)

    def find(self, kind: str, name: str) -> Path:
        """The file of a kind by name. Raises PathError or MissingFileError."""
        return folders.find_file(self.folders(kind), name, kind, folders.MODEL_ENDINGS)

    # ---- models

    def load_checkpoint(self, path: Path) -> tuple[Model, Clip | None, Vae | None]:
        """MODEL, CLIP and VAE of a file; None for a part that it does not have."""
        return self._once("checkpoint", path, _open_checkpoint)

    def load_controlnet(self, path: Path, model: Model | None = None) -> ControlNetHandle:
        """CONTROL_NET of a file; one that is complete only with its base is completed with `model`'s.

        Without a model that is done when sampling starts. Raises UnfitError for a model of another base.
        """
        handle = self._once("controlnet", path, lambda p: ControlNetHandle(*load_control(p, narrow="stored"), p))
        if model is None:
            return handle
        check_base(handle.net, handle.name, model.base.config.unet, f"the model {model.path.name}")
        return replace(handle, net=self.backend.resolve(handle.net, model.diffusion.unet))

    def load_vae(self, path: Path) -> Vae:
        """VAE of a file of its own, or out of a checkpoint."""
        return self._once("vae", path, lambda p: Vae(load_vae(p), p))

    def plain_net(self, control_net: Any) -> tuple[ControlNet, str]:
        """The ControlNet in a CONTROL_NET, and its family. Raises UnfitError for other kinds."""
        net = getattr(control_net, "net", None)
        if not isinstance(net, ControlNet) or net.config.union is not None:
            handle = isinstance(control_net, ControlNetHandle)
            what = control_net.identity.title if handle else type(control_net).__name__
            raise UnfitError(f"only a plain ControlNet can be saved, this is {what}: link one")
        return net, control_net.identity.family

    def training_device(self) -> torch.device:
        """The device of all runs."""
        return self.runtime.device

    def load_unet(self, path: Path, weights: str = "default") -> Model:
        """MODEL of a UNet in a file of its own. weights: "default" as its file has them, or a form of float8."""
        narrow = WEIGHTS[weights]
        return self._once(f"unet {narrow}", path, lambda p: _open_unet(p, narrow))

    def load_clip(self, paths: Sequence[Path]) -> Clip:
        """CLIP of one file, or of SDXL's two."""
        others = [str(path) for path in paths[1:]]
        return self._once(" ".join(["clip", *others]), paths[0], lambda p: load_text_encoder([p, *paths[1:]]))

    def apply_lora(
        self, model: Model, clip: Clip | None, path: Path, strength_model: float, strength_clip: float
    ) -> tuple[Model, Clip | None]:
        """MODEL and CLIP with a LoRA on them; the ones that come in stay as they are.

        Raises CheckpointError for a file that is no LoRA, UnfitError for one of another base. Parts of it that
        the models do not have are told in the log.
        """
        return loras.apply(self._once("lora", path, read_lora), model, clip, strength_model, strength_clip)

    def embedding(self, width: int, name: str) -> Tensor:
        """Vectors (n, width) of a textual inversion, by its file's name with or without ending and folder."""
        names = {name, *(name + ending for ending in ENDINGS)}
        listed = [file for file in self.files("embeddings") if file in names or PurePosixPath(file).name in names]
        path = self.find("embeddings", min(listed, key=len, default=name))
        return self._once("embedding", path, read_embedding).of_width(width)

    def library(self) -> Library:
        """Where learned preprocessors find their nets: folders for annotators, then the models trees."""
        if self._library is None:
            named = (f for kind, found in self.model_folders.items() if "annotator" in kind for f in found)
            runtime = self.runtime
            self._library = Library([*named, *self.models_dirs], device=str(runtime.device), dtype=runtime.dtype)
        return self._library

    def _once(self, kind: str, path: Path, load: Callable[[Path], LoadedT]) -> LoadedT:
        """Load a file unless it is in memory already, as it is on disk now."""
        try:
            stat = path.stat()
        except OSError:
            return load(path)  # which says in words what is wrong with it
        key = (kind, path.resolve(), stat.st_mtime_ns, stat.st_size)
        if key not in self._loaded:
            self._loaded[key] = load(path)
            read_ahead(path)  # prompts are encoded and hints made meanwhile
            while len(self._loaded) > KEPT_FILES:
                self._loaded.popitem(last=False)
        self._loaded.move_to_end(key)
        return self._loaded[key]

    # ---- text and pictures

    def encode_prompt(self, clip: Clip | None, prompt: str, first: str | None = None) -> Conditioning:
        """CONDITIONING of a prompt. first: another one for the first of SDXL's two text encoders.

        Raises MissingFileError or UnfitError for an `embedding:name` in it.
        """
        if clip is None:
            raise CheckpointError("the checkpoint has no text encoder: load one that has")
        encoder = clip.to(device=self.runtime.device, dtype=self.runtime.dtype)
        with torch.inference_mode():
            if first is None:
                text, pooled = encoder.encode_pooled(prompt, self.embedding)
            elif isinstance(encoder, DualTextEncoder):
                text, pooled = encoder.encode_pair(first, prompt, self.embedding)
            else:
                raise UnfitError("two texts came for a model with one text encoder: use CLIPTextEncode")
        return [[text.cpu(), {"pooled_output": pooled.cpu()}]]

    def decode(self, vae: Vae | None, samples: Tensor, tile: int | None = None, overlap: int = 8) -> Tensor:
        """Latents (B, 4, h, w) -> IMAGE (B, 8h, 8w, 3).

        In tiles of `tile` cells where one is given; otherwise as memory allows, see `plan_decoding`.
        """
        model = self._vae(vae)
        rows = len(samples)
        if tile is None:
            rows, tile = self._decoding(model, samples)
        with torch.inference_mode(), self._memory("picture", samples):
            pictures = []
            for part in scale_latent(samples, model.config).split(rows):
                x = self._for_vae(part)
                made = model.decode(x) if tile is None else model.decode_tiled(x, tile, overlap)
                pictures.append(made.float().add(1.0).div(2.0).clamp(0.0, 1.0).movedim(1, -1).cpu())
            return torch.cat(pictures)

    def _decoding(self, model: AutoencoderKL, samples: Tensor) -> tuple[int, int | None]:
        """How many latents are decoded at a time, and in what tiles."""
        runtime = self.vae_backend.runtime
        rows, size, free = len(samples), (samples.shape[-2], samples.shape[-1]), free_bytes(runtime.device)
        if free is not None:
            free -= bytes_to_come(model.decoder)
        values = partial(decode_values, model.config)
        rows, tile = plan_decoding(values, rows, size, runtime.dtype.itemsize, free)
        if tile is not None:
            height, width = (side * model.config.factor for side in size)
            whole = values(1, size) * runtime.dtype.itemsize / MB
            self._note(f"memory: to decode {width}x{height} takes {whole:,.0f} MB at once: in tiles of {tile} cells")
        return rows, tile

    def encode(self, vae: Vae | None, pixels: Tensor) -> Tensor:
        """IMAGE (B, H, W, C), cropped to what the autoencoder divides -> latents (B, 4, H/8, W/8)."""
        model = self._vae(vae)
        pixels = crop_to_multiple(pixels[..., :3], model.config.factor)
        with torch.inference_mode(), self._memory("picture", pixels):
            latents = model.encode(self._for_vae(pixels.movedim(-1, 1) * 2.0 - 1.0)).float().cpu()
            return unscale_latent(latents, model.config)

    def _vae(self, vae: Vae | None) -> Any:
        if vae is None:
            raise CheckpointError("the checkpoint has no autoencoder (VAE): load one with VAELoader")
        return self.vae_backend.optimise(vae.model)

    def _for_vae(self, x: Tensor) -> Tensor:
        x = x.to(self.runtime.device, self.vae_backend.runtime.dtype)
        return self.vae_backend.layout(x)

    def _memory(self, what: str, x: Tensor) -> _NamedMemory:
        return _NamedMemory(f"the device has no memory left for a {what} of shape {tuple(x.shape)}")

    # ---- control and sampling

    def apply_control(
        self, positive: Conditioning, negative: Conditioning, specs: Sequence[ControlSpec]
    ) -> tuple[Conditioning, Conditioning]:
        """Both halves with these units. Raises UnfitError for a net of another base."""
        units = tuple(self.unit(spec) for spec in specs if spec.strength != 0.0)
        if not units:
            return positive, negative
        halves = [add_units(half, units, to_uncond=False) for half in (positive, negative)]
        return halves[0], halves[1]

    def unit(self, spec: ControlSpec) -> ControlUnit:
        """The engine's unit for a description of one."""
        net = spec.net
        if not isinstance(net, ControlNetHandle):
            raise ValueRangeError(f"the control net is a {type(net).__name__}: link a ControlNet loader")
        return unit_of(spec, net.net, hint_of(spec.image), spec.name or net.name, net.kind)

    def controlled(self, model: Model, conditioning: Conditioning) -> Controlled:
        """The units on a conditioning, each once, with the model's noise levels and shapes."""
        units = dict.fromkeys(unit for _, options in conditioning for unit in options.get("control") or ())
        return Controlled(tuple(units), model.diffusion.schedule, model.diffusion.config)

    def memory(self, model: Model, positive: Conditioning, latent: Latent, settings: SampleSettings) -> str:
        """What sampling with guidance will take, in words; the negative half is thought to be like the positive."""
        diffusion, samples = model.diffusion, latent["samples"]
        size = (samples.shape[-2], samples.shape[-1])
        conditions = to_conditions(positive, positive, size, diffusion.config, latent)
        sigmas = cut_sigmas(diffusion.schedule, settings).tolist()
        shape = tuple(samples.shape)
        job = Job(diffusion.unet, diffusion.config, diffusion.schedule, *conditions, shape, sigmas)
        shortcuts, runtime = self.shortcuts_of(model), self.backend.runtime
        run = Run(shortcuts, waits_for_results(runtime.device))
        graphs = runtime.graphs and not why_never(run, runtime.device)
        return plan_run(job, self.backend, shortcuts, graphs).words()

    def reweigh(self, model: Model, conditioning: Conditioning, unit: int, factors: Sequence[float]) -> Conditioning:
        """The same conditioning with the block weights of one unit multiplied."""
        controlled = self.controlled(model, conditioning)
        old = controlled.units[unit]
        own = old.own_weights(controlled.config.unet) or (1.0,) * len(factors)
        new = replace(old, block_weights=tuple(w * f for w, f in zip(own, factors, strict=True)))
        return [
            [text, {**options, "control": tuple(new if u is old else u for u in options.get("control") or ())}]
            for text, options in conditioning
        ]

    def sample(
        self,
        model: Model,
        positive: Conditioning,
        negative: Conditioning,
        latent: Latent,
        settings: SampleSettings,
        recorder: Recorder | None = None,
        watch: Callable[[Step], None] | None = None,
    ) -> Latent:
        """The sampled LATENT. `on_report` hears of it, unless a recorder came that does not observe.

        watch: hears of every step of the run that counts.
        """
        settings = replace(settings, rescale=model.rescale)
        told = recorder is None or recorder.observe
        if recorder is None and self.on_report is not None:
            recorder = Recorder(settings.title, self.observe)
        config = model.diffusion.config
        samples = latent["samples"]
        size = (samples.shape[-2], samples.shape[-1])
        if samples.any():  # nothing stays nothing, whatever the mean of the model's latents
            samples = scale_latent(samples, config.vae)
        conditions = to_conditions(positive, negative, size, config, {**latent, "samples": samples})
        options: dict[str, Any] = {
            "backend": self.backend,
            "noise_mask": latent.get("noise_mask"),
            "batch_index": latent.get("batch_index"),
            "on_step": self._on_step,
            "cancelled": self._cancelled,
        }

        def on_step(step: Step) -> None:
            self._on_step(step)
            if watch is not None:
                watch(step)

        heard = {"on_step": on_step, "recorder": recorder, "on_memory": self._on_memory}
        self._note_shortcuts(model)
        shortcuts = self.shortcuts_of(model)
        watched = {**options, **heard, "shortcuts": shortcuts}
        result = generate(model.diffusion, *conditions, samples, settings, **watched)
        if recorder is not None and self.on_report is not None and told:
            self.on_report(recorder.report())
        if self.on_measured is not None:
            again = partial(generate, model.diffusion, *conditions, samples, settings, **options)
            self.on_measured(*_measure(result, again, shortcuts))
        return {**latent, "samples": unscale_latent(result, config.vae)}

    def accelerate(self, model: Model, weights: str, node: str | None) -> tuple[Model, str]:
        """The MODEL as it is: here our engine is all there is, and packs weights where that helps."""
        return model, "fast path: this home has no other"

    def shorten(self, model: Model, shortcuts: Shortcuts, node: str | None) -> tuple[Model, str]:
        """The MODEL with these shortcuts, and what they are."""
        return replace(model, shortcuts=shortcuts), shortcuts.words

    def shortcuts_of(self, model: Model) -> Shortcuts:
        """What sampling of a MODEL may leave out; what the run was asked goes before what its nodes say."""
        return model.shortcuts if self.shortcuts is None else self.shortcuts

    def _note_shortcuts(self, model: Model) -> None:
        asked = self.shortcuts_of(model)
        if model.shortcuts not in (EXACT, asked):
            put_aside = model.shortcuts.words
            self._note(
                f"shortcuts: {asked.words}, as this run was asked; the workflow's own are put aside ({put_aside})"
            )

    def _on_memory(self, plan: MemoryPlan) -> None:
        self._note(plan.words())

    def _note(self, text: str) -> None:
        if self.on_note is not None:
            self.on_note(text)

    def _on_step(self, step: Step) -> None:
        self.progress(step.index + 1, step.total)

    def progress(self, done: int, total: int, preview: Any = None) -> None:
        """Tell whoever started the run; also the place where a run is stopped."""
        check_cancelled(self._cancelled)
        if self._progress is not None:
            self._progress(done, total, preview)

    def cancelled(self) -> bool:
        """Whether the user asked to stop."""
        return self._cancelled is not None and self._cancelled()


def _measure(result: Tensor, again: Callable[..., Tensor], shortcuts: Shortcuts) -> tuple[float, float, float]:
    """The error of a result that was made with shortcuts, and seconds with and without them.

    Both are timed behind the run that made the result: it has packed weights and prepared, for which else the first of
    them would pay. Where it left out guidance there is more to pack, so an exact run goes before.
    """
    if shortcuts.limits_guidance:
        again()
    began = perf_counter()
    exact = again()
    between = perf_counter()
    again(shortcuts=shortcuts)
    seconds = perf_counter() - between
    return float((result - exact).norm() / exact.norm()), seconds, between - began


class _NamedMemory:
    """Turns torch's out-of-memory error into ours, with the size that was too large."""

    def __init__(self, message: str) -> None:
        self.message = message

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if isinstance(error, torch.OutOfMemoryError):
            raise OutOfMemory(f"{self.message}: use a smaller picture or batch, or VAEDecodeTiled") from error


def _open_checkpoint(path: Path) -> tuple[Model, Clip | None, Vae | None]:
    checkpoint = load_checkpoint(path, narrow="stored")
    diffusion = DiffusionModel(checkpoint.unet, checkpoint.config, make_schedule(checkpoint.config.noise))
    return (
        Model(diffusion, checkpoint.identity, path),
        None if checkpoint.text_model is None else checkpoint.text_encoder(),
        None if checkpoint.vae is None else Vae(checkpoint.vae, path),
    )


def _open_unet(path: Path, narrow: Narrow) -> Model:
    loaded = load_base(path, narrow=narrow)
    return Model(DiffusionModel(loaded.unet, loaded.config, make_schedule(loaded.config.noise)), loaded.identity, path)


def add_units(conditioning: Conditioning, units: Sequence[ControlUnit], *, to_uncond: bool) -> Conditioning:
    """CONDITIONING with units after those that it has. Raises UnfitError where text and net do not fit.

    to_uncond: whether negatives without control of their own are to get the same units.
    """
    result: Conditioning = []
    for text, options in conditioning:
        for unit in units:
            check_text(unit, text)
        control = (*(options.get("control") or ()), *units)
        result.append([text, {**options, "control": control, "control_apply_to_uncond": to_uncond}])
    return result


def unit_of(spec: ControlSpec, net: ControlModel, hint: Tensor, name: str, kind: str = "") -> ControlUnit:
    """The engine's unit for a description; kind: what the net was told that its hint shows, if the unit does not."""
    options, mask = spec.options, spec.mask
    return ControlUnit(
        net=net,
        hint=hint,
        strength=spec.strength,
        start=spec.start,
        end=spec.end,
        mask=None if mask is None else mask.float().reshape(-1, *mask.shape[-2:]),
        block_weights=spec.block_weights,
        mode=spec.mode,
        name=name,
        kind=options.kind or kind,
        more_hints=tuple(Hint(hint_of(more.image), more.kind) for more in spec.hints),
        curve=spec.schedule,
        positive=options.positive,
        negative=options.negative,
        items=options.items or None,
        fit=options.fit,
        pool=options.pool,
    )


BASES = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 2048: "SDXL", 1280: "SDXL's refiner"}


def check_text(unit: ControlUnit, text: Tensor) -> None:
    """Raise UnfitError for a net whose base reads text of another width."""
    has = text.shape[-1]
    if not fits_text(unit.net, has):
        made_for = " or ".join(_base(width) for width in text_widths(unit.net))
        raise UnfitError(
            f"{unit.name} was made for {made_for}, the prompt was encoded by {_base(has)}: "
            f"load a ControlNet made for {_base(has)}, or the checkpoint that this one was made for"
        )


def _base(width: int) -> str:
    return f"{BASES.get(width, 'a model of its own kind')} ({width} wide text)"


def hint_of(image: Tensor) -> Tensor:
    """IMAGE (B, H, W, C) or (H, W, C) -> hint (B, C, H, W). Raises ShapeError or ValueRangeError."""
    if image.ndim == 3:
        image = image[None]
    if image.ndim != 4 or 0 in image.shape:
        raise ShapeError(f"the hint picture has shape {tuple(image.shape)}, expected (batch, height, width, 3)")
    if not bool(torch.isfinite(image).all()):
        raise ValueRangeError("the hint picture holds NaN or infinity: check the node that made it")
    return image.float().movedim(-1, 1)


def crop_to_multiple(pixels: Tensor, factor: int) -> Tensor:
    """(B, H, W, C) cropped at the centre to multiples of `factor`. Raises ShapeError when nothing is left."""
    height, width = pixels.shape[1:3]
    if height < factor or width < factor:
        raise ShapeError(f"the picture is {width}x{height}, at least {factor}x{factor} is needed: enlarge it")
    top, left = height % factor // 2, width % factor // 2
    return pixels[:, top : top + height // factor * factor, left : left + width // factor * factor]
