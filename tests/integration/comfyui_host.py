"""Runs this pack inside the real host: `python comfyui_host.py COMFYUI_DIR PACK OUT`, or
`python comfyui_host.py --serve COMFYUI_DIR PACK PORT` for its server on loopback.

Started as a program of its own by `test_comfyui.py`, so that the host's modules and settings never meet the
tests' process. PACK is the pack's folder in a `custom_nodes`; OUT a folder that gets `facts.json` and
`tensors.safetensors`. Each scenario is a function below; what it finds is held to in the test.
"""

from __future__ import annotations

import asyncio
import compileall
import gc
import importlib.abc
import importlib.util
import inspect
import json
import logging
import os
import runpy
import struct
import sys
import time
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import torch

SAMPLERS = (
    ("euler", "normal"),
    ("euler_ancestral", "normal"),
    ("dpmpp_2m", "karras"),
    ("dpmpp_2m_sde", "karras"),
)
SEED, STEPS, CFG = 7, 4, 4.0
SIDE = 64
PROMPT, NEGATIVE = "a red sphere, (on grey:1.3) ground", "grey"
MODES = ("balanced", "prompt", "control", "cfg-rw", "cfg-rw-literal", "mid-only")
UNUSED = ("torchvision", "torchaudio")
KINDS = ("difference", "control-lora", "adapter")
HEAVY = ("cv2", "transformers", "scipy.stats", "diffusers")


@dataclass(frozen=True)
class Case:
    """A run that every home makes.

    units: what each unit says beside the defaults. start: image to image. masked: only the left half is painted.
    area: the positive prompt counts twice in a rectangle. lora: one stands before the sampler.
    """

    units: tuple[Mapping[str, Any], ...] = ({},)
    settings: Mapping[str, Any] = field(default_factory=dict)
    batch: int = 1
    start: bool = False
    masked: bool = False
    area: bool = False
    lora: bool = False

    def conditioning(self, home: Any, apply: Callable[..., Any]) -> Any:
        """Both prompts of a home (which has `prompts` and `node`), with the units applied."""
        positive, negative = home.prompts
        if self.area:
            (there,) = home.node("ConditioningSetArea", conditioning=positive, **AREA)
            (positive,) = home.node("ConditioningCombine", conditioning_1=there, conditioning_2=positive)
        halves = (positive, negative)
        for unit in self.units:
            halves = apply(halves, **unit)
        return halves

    def latent(self, home: Any) -> dict[str, Any]:
        """What a home starts from."""
        side = SIDE // 8
        latent = {"samples": torch.zeros(self.batch, 4, side, side)}
        if self.start or self.masked:
            (latent,) = home.node("VAEEncode", pixels=start_picture(), vae=home.vae)
        return {**latent, "noise_mask": mask()} if self.masked else latent

    def model(self, home: Any) -> Any:
        """What a home samples with."""
        if not self.lora:
            return home.model
        return home.node("LoraLoaderModelOnly", model=home.model, lora_name="query.safetensors", strength_model=1.0)[0]


AREA = {"width": 32, "height": 48, "x": 16, "y": 8, "strength": 1.0}
CASES = {
    "one net": Case(),
    "two nets": Case(units=({}, {"strength": 0.5, "upside_down": True})),
    "windows": Case(units=({"start_percent": 0.2, "end_percent": 0.6},)),
    "cfg 1": Case(settings={"cfg": 1.0}),
    "cfg 7": Case(settings={"cfg": 7.0}),
    "batch": Case(batch=3),
    "img2img": Case(start=True, settings={"denoise": 0.6}),
    "lora": Case(lora=True),
    "inpaint": Case(masked=True),
    "area": Case(area=True),
}
RUNS = tuple(
    (name, *sampler) for name in CASES for sampler in (SAMPLERS if name not in ("inpaint", "area") else SAMPLERS[:1])
)
"""Every case by every sampler, those that are the guidance's own business by the first."""


class Anything:
    """Stands in for attributes of a module that nothing here uses."""

    def __getattr__(self, name: str) -> Any:
        return Anything()

    def __call__(self, *args: object, **kwargs: object) -> Any:
        return Anything()


class AnyModule(types.ModuleType):
    """A module that has every attribute."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Anything()


class StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds every module of some packages."""

    def __init__(self, packages: Sequence[str]) -> None:
        self.packages = packages

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """A package of that name, if it is one of ours."""
        return ModuleSpec(fullname, self, is_package=True) if fullname.split(".")[0] in self.packages else None

    def create_module(self, spec: ModuleSpec) -> AnyModule:
        """The module."""
        return AnyModule(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        """There is nothing to run."""


def without_torchvision() -> None:
    """The host imports torchvision, and since 2026 torchaudio, for models that are not run here."""
    importlib.import_module("transformers")  # which looks whether they are there
    missing = [name for name in UNUSED if importlib.util.find_spec(name) is None]
    sys.meta_path.append(StandIns(missing))


class Warnings(logging.Handler):
    """Keeps what is logged from warnings up."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a message."""
        self.messages.append(record.getMessage())


def hint() -> torch.Tensor:
    """IMAGE (1, SIDE, SIDE, 3) with a square and a diagonal."""
    picture = torch.zeros(1, SIDE, SIDE, 3)
    picture[:, 16:48, 16:48] = 1.0
    picture[:, torch.arange(SIDE), torch.arange(SIDE)] = 0.5
    return picture


def unit_settings(upside_down: bool = False, **unit: Any) -> dict[str, Any]:
    """What an apply node is given: a hint, and settings with defaults."""
    picture = hint().flip(1) if upside_down else hint()
    return {"strength": 0.8, "start_percent": 0.0, "end_percent": 1.0, "image": picture, **unit}


def mask() -> torch.Tensor:
    """MASK (1, SIDE, SIDE): the left half."""
    left = torch.zeros(1, SIDE, SIDE)
    left[..., : SIDE // 2] = 1.0
    return left


def control_cases(node: Callable[..., Any]) -> dict[str, dict[str, Any]]:
    """What a unit may have besides, made by our nodes, which are the same in every home."""
    options = {
        "hint_fit": "crop", "hint_type": "not said", "positive_factor": 1.0, "negative_factor": 1.0, "per_picture": "",
        "average_over_picture": False,
    }  # fmt: skip

    def with_options(**changed: Any) -> dict[str, Any]:
        return {"options": node("CNCore_ControlOptions", **{**options, **changed})[0]}

    def with_preset(**given: Any) -> dict[str, Any]:
        sliders = dict.fromkeys(("full", "half", "quarter", "eighth", "middle"), 1.0)
        return {"block_weights": node("CNCore_BlockWeights", **sliders, **given)[0]}

    wide = torch.rand(1, 2 * SIDE, 3 * SIDE, 3, generator=torch.Generator().manual_seed(1))
    (schedule,) = node("CNCore_StrengthSchedule", keyframes="0: 1.5, 0.4: 0.2 hold, 0.7: 1", easing="ease-in-out")
    return {
        "schedule": {"schedule": schedule},
        "preset": with_preset(preset="soft"),
        "preset with ends": with_preset(preset="ease-in", preset_first=0.2, preset_last=2.0),
        "positive half": with_options(negative_factor=0.0),
        "negative half": with_options(positive_factor=0.0),
        "both halves": with_options(positive_factor=1.2, negative_factor=0.4),
        "per picture": with_options(per_picture="1, 0, 0.5"),
        "pool": with_options(average_over_picture=True),
        "masked pool": {**with_options(average_over_picture=True), "mask": mask()},
        **{fit: {"image": wide, **with_options(hint_fit=fit)} for fit in ("stretch", "inner-fit", "pad")},
    }


def start_picture() -> torch.Tensor:
    """IMAGE (1, SIDE, SIDE, 3), a gradient."""
    ramp = torch.linspace(0, 1, SIDE)
    return torch.stack([ramp.expand(SIDE, SIDE), ramp[:, None].expand(SIDE, SIDE), torch.full((SIDE, SIDE), 0.4)], -1)[
        None
    ]


def v1_result(result: Any) -> Any:
    """What a V1 node would return: the outputs, with what the node shows if it shows something."""
    if not hasattr(result, "args"):
        return result
    return {"ui": result.ui, "result": result.args} if result.ui else result.args


class Session:
    """The host with the pack loaded as it loads custom nodes, and what has been found so far."""

    def __init__(self, folder: Path, pack: Path) -> None:
        sys.path.insert(0, str(folder))
        more = os.environ.get("HOST_ARGS", "").split()
        device = [] if os.environ.get("PRETENDED_CARD") else ["--cpu"]
        sys.argv = ["host", *device, "--base-directory", str(pack.parents[1]), *more]
        without_torchvision()
        importlib.import_module("comfy.options").enable_args_parsing()
        importlib.import_module("utils.extra_config")  # before `nodes` puts the folder with comfy/utils.py on the path
        self.nodes = importlib.import_module("nodes")
        self.comfy = importlib.import_module("comfy")
        importlib.import_module("latent_preview")
        self.pack = pack
        self.facts: dict[str, Any] = {}
        self.tensors: dict[str, torch.Tensor] = {}

    def load(self, folder: Path) -> Any:
        """As the host loads a pack; whether it did. Older releases do it at once, newer ones in a coroutine."""
        found = self.nodes.load_custom_node(str(folder))
        return asyncio.run(found) if inspect.iscoroutine(found) else found

    def load_pack(self) -> None:
        """As the host does at its start; a fact for each promise about it.

        Compiled first, as it is from the second start on; behind another pack, since the host imports its own
        reader of packs with the first. The times are the processor's, whatever else runs.
        """
        compileall.compile_dir(self.pack, quiet=2)
        self.load(self.pack.with_name("another_pack"))
        seconds = [self.seconds_of_a_load() for _ in range(5)]
        heard = Warnings()
        logging.getLogger().addHandler(heard)
        before = set(sys.modules)
        loaded = self.load(self.pack)
        logging.getLogger().removeHandler(heard)
        new = set(sys.modules) - before
        self.facts["load"] = {
            "loaded": loaded,
            "warnings": heard.messages,
            "seconds": seconds,
            "heavy": [name for name in HEAVY if name in new],
            "bare": [name for name in new if name.split(".")[0] in ("controlnet_core", "preprocessors", "workflows")],
            "described": self.error(self.describe),
            "nodes": sorted(n for n in self.nodes.NODE_CLASS_MAPPINGS if n.startswith("CNCore_")),
            "names": sorted(n for n in self.nodes.NODE_DISPLAY_NAME_MAPPINGS if n.startswith("CNCore_")),
        }

    def seconds_of_a_load(self) -> float:
        """Processor time in which a fork of this process loads the pack, which is new to each of them.

        Without collecting the host's own garbage, which in newer releases takes 0.3 s whenever its turn comes.
        """
        receive, send = os.pipe()
        if os.fork() == 0:
            gc.freeze()
            began = time.process_time()
            self.load(self.pack)
            os.write(send, struct.pack("d", time.process_time() - began))
            os._exit(0)
        os.wait()
        os.close(send)
        with os.fdopen(receive, "rb") as pipe:
            return struct.unpack("d", pipe.read())[0]

    def describe(self) -> str:
        """What the server sends to the browser about our nodes."""
        ours = {k: cls for k, cls in self.nodes.NODE_CLASS_MAPPINGS.items() if k.startswith("CNCore_")}
        return json.dumps({name: [cls.INPUT_TYPES(), cls.RETURN_TYPES, cls.CATEGORY] for name, cls in ours.items()})

    def part(self, name: str) -> Any:
        """A module of the loaded pack."""
        return importlib.import_module(f"{str(self.pack).replace('.', '_x_')}.{name}")

    def node(self, name: str, /, **inputs: Any) -> Any:
        """Run a node as the host does: a fresh object, its FUNCTION, by keywords. The result in the V1 form."""
        cls = self.nodes.NODE_CLASS_MAPPINGS[name]
        return v1_result(getattr(cls(), cls.FUNCTION)(**inputs))

    # ---- the workflow

    def prepare(self) -> None:
        """Model, net and prompts of the demo."""
        self.model, self.clip, self.vae = self.node("CNCore_LoadCheckpoint", checkpoint="demo (built in)")
        (self.net,) = self.node("CNCore_LoadControlNet", control_net="demo canny (built in)")
        self.prompts = self.node("CNCore_EncodePrompt", clip=self.clip, prompt=PROMPT, negative_prompt=NEGATIVE)

    def controlled(self, before: tuple[Any, Any] | None = None, **unit: Any) -> tuple[Any, Any]:
        """Both prompts with a unit of ours."""
        positive, negative = before or self.prompts
        given = {"mode": "balanced", "control_net": self.net, **unit_settings(**unit)}
        return self.node("CNCore_ApplyControlNet", positive=positive, negative=negative, **given)

    def natively_controlled(self, net: Any, before: tuple[Any, Any] | None = None, **unit: Any) -> tuple[Any, Any]:
        """Both prompts with a net applied by the native node."""
        positive, negative = before or self.prompts
        return self.node(
            "ControlNetApplyAdvanced", positive=positive, negative=negative, control_net=net, **unit_settings(**unit)
        )

    def empty(self, batch: int = 1) -> dict[str, Any]:
        """An empty LATENT."""
        return {"samples": torch.zeros(batch, 4, SIDE // 8, SIDE // 8)}

    def ksampler(self, conditioning: tuple[Any, Any], latent: Any = None, **settings: Any) -> torch.Tensor:
        """The native sampler node."""
        given = {"seed": SEED, "steps": STEPS, "cfg": CFG, "sampler_name": "euler", "scheduler": "normal", **settings}
        positive, negative = conditioning
        (result,) = self.node(
            "KSampler", model=self.model, positive=positive, negative=negative,
            latent_image=latent or self.empty(), **{"denoise": 1.0, **given},
        )  # fmt: skip
        return result["samples"]

    def own_sample(self, conditioning: tuple[Any, Any], latent: Any = None, **settings: Any) -> torch.Tensor:
        """Our sampler node."""
        given = {"seed": SEED, "steps": STEPS, "cfg": CFG, "sampler": "euler", "scheduler": "normal", **settings}
        positive, negative = conditioning
        (result,) = self.node(
            "CNCore_Sample", model=self.model, positive=positive, negative=negative,
            latent=latent or self.empty(), **{"denoise": 1.0, **given},
        )  # fmt: skip
        return result["samples"]

    def picture(self, samples: torch.Tensor) -> torch.Tensor:
        """The native decode node."""
        return self.node("VAEDecode", samples={"samples": samples}, vae=self.vae)[0]

    def native_net(self) -> Any:
        """The host's own ControlNet with the weights of the demo net."""
        cldm, ops = (importlib.import_module(f"comfy.{name}") for name in ("cldm.cldm", "ops"))
        controlnet = importlib.import_module("comfy.controlnet")
        ldm, keymap = self.part("controlnet_core.checkpoints.ldm"), self.part("controlnet_core.checkpoints.keymap")
        net = self.net.shared.net
        described = self.part("nodes.comfyui.models").native_unet_config(net.config.unet)
        described.pop("out_channels")
        module = cldm.ControlNet(**described, hint_channels=3, operations=ops.disable_weight_init, dtype=torch.float32)
        rename = keymap.KeyMap(ldm.controlnet_rules(net.config.unet)).to_theirs
        module.load_state_dict({rename(k): v for k, v in net.state_dict().items()})
        device = importlib.import_module("comfy.model_management").get_torch_device()
        return controlnet.ControlNet(module, load_device=device)

    # ---- scenarios

    def run(self, name: str) -> None:
        """A scenario: a method below, or a function of a file of its own."""
        own = getattr(self, name, None)
        if own:
            return own()
        names = (
            "accelerate",
            "preprocess",
            "nets",
            "shortcuts",
            "card",
            "packs",
            "model_patch",
            "v3",
            "attention",
            "tools",
        )
        modules = (importlib.import_module(f"comfyui_{name}") for name in names)
        return next(getattr(module, name) for module in modules if hasattr(module, name))(self)

    def socket_values(self) -> None:
        """What travels is the host's own kind."""
        patcher, sd = importlib.import_module("comfy.model_patcher"), importlib.import_module("comfy.sd")
        controlnet = importlib.import_module("comfy.controlnet")
        (encoded,) = self.node("CLIPTextEncode", clip=self.clip, text=PROMPT)
        (skipped,) = self.node("CLIPSetLastLayer", clip=self.clip, stop_at_clip_layer=-2)
        (deeper,) = self.node("CLIPTextEncode", clip=skipped, text=PROMPT)
        self.tensors["text"] = encoded[0][0]
        self.tensors["text.skip"] = deeper[0][0]
        self.facts["sockets"] = {
            "model": isinstance(self.model, patcher.ModelPatcher),
            "clip": isinstance(self.clip, sd.CLIP),
            "vae": isinstance(self.vae, sd.VAE),
            "net": isinstance(self.net, controlnet.ControlBase),
            "same text": torch.equal(encoded[0][0], self.prompts[0][0][0]),
        }

    def autoencoder(self) -> None:
        """Encode and decode, plain and tiled, by native nodes."""
        (latent,) = self.node("VAEEncode", pixels=start_picture(), vae=self.vae)
        self.tensors["vae.latent"] = latent["samples"]
        self.tensors["vae.picture"] = self.picture(latent["samples"])
        tiles = {"tile_size": 512, "overlap": 64}
        (tiled,) = self.node("VAEDecodeTiled", samples=latent, vae=self.vae, **tiles)
        (small,) = self.node("VAEDecodeTiled", samples=latent, vae=self.vae, tile_size=64, overlap=16)
        (encoded,) = self.node("VAEEncodeTiled", pixels=start_picture(), vae=self.vae, **tiles)
        inpaint = {"pixels": start_picture(), "vae": self.vae, "mask": mask(), "grow_mask_by": 6}
        (masked,) = self.node("VAEEncodeForInpaint", **inpaint)
        self.tensors["vae.tiled"], self.tensors["vae.encode tiled"] = tiled, encoded["samples"]
        self.facts["vae"] = {"small tiles": list(small.shape), "inpaint": list(masked["samples"].shape)}

    def homes(self) -> None:
        """Native nodes on the host's own nets, and our nodes; the third home is the test's own process."""
        native_net = self.native_net()
        whole = self.model
        for name, sampler, scheduler in RUNS:
            case, key = CASES[name], f"{name}.{sampler}"
            self.model = case.model(self)
            ours = case.conditioning(self, self.controlled)
            settings = {"scheduler": scheduler, **case.settings}
            samples = self.own_sample(ours, case.latent(self), sampler=sampler, **settings)
            self.tensors[f"ours.{key}"] = self.picture(samples)
            native = case.conditioning(self, partial(self.natively_controlled, native_net))
            samples = self.ksampler(native, case.latent(self), sampler_name=sampler, **settings)
            self.tensors[f"native.{key}"] = self.picture(samples)
            self.model = whole

    def noise_of_the_release(self) -> None:
        """Which of our conventions the host's own ancestral noise is."""
        x = torch.zeros(1, 4, 8, 8)
        theirs = importlib.import_module("comfy.k_diffusion.sampling").default_noise_sampler(x, seed=SEED)(1.0, 0.5)
        noise = self.part("controlnet_core.diffusion.noise")
        ours = {name: noise.ancestral_noise(x, SEED, name)(1.0, 0.5) for name in noise.FOLLOWS}
        self.facts["convention"] = next(name for name, drawn in ours.items() if torch.equal(drawn, theirs))
        self.facts["release"] = importlib.import_module("comfyui_version").__version__

    def masked_unit(self) -> None:
        """A unit with a mask under both sampler nodes; native nodes have no such thing."""
        conditioning = self.controlled(mask=mask())
        self.tensors["masked.ours"] = self.picture(self.own_sample(conditioning))
        self.tensors["masked.native"] = self.picture(self.ksampler(conditioning))

    def modes(self) -> None:
        """Every mode under the native sampler, and block weights."""
        for mode in MODES:
            self.tensors[f"mode.{mode}"] = self.picture(self.ksampler(self.controlled(mode=mode)))
        values = self.part("controlnet_core.control.weights")
        weights = values.BlockWeights((0.5, 1.5, 1.0, 1.0), 0.0)
        self.tensors["weights"] = self.picture(self.ksampler(self.controlled(block_weights=weights)))

    def controls(self) -> None:
        """Every control of our nodes under the native sampler, on a batch of three."""
        for name, unit in control_cases(self.node).items():
            self.tensors[f"control.{name}"] = self.picture(self.ksampler(self.controlled(**unit), self.empty(3)))
        unknown = {name: unit for name, unit in control_cases(self.node).items() if name not in ("masked pool",)}
        native = self.native_net()
        self.facts["control.foreign"] = {
            name: self.error(lambda u=unit: self.controlled(control_net=native, **u)) for name, unit in unknown.items()
        }

    def kinds(self) -> None:
        """Files that are no plain ControlNet, completed when the run begins or when they are loaded."""
        for name in KINDS:
            (net,) = self.node("CNCore_LoadControlNet", control_net=f"{name}.safetensors")
            self.tensors[f"kind.{name}"] = self.picture(self.ksampler(self.controlled(control_net=net)))
            again = self.picture(self.ksampler(self.controlled(control_net=net)))
            (early,) = self.node("CNCore_LoadControlNet", control_net=f"{name}.safetensors", model=self.model)
            completed = self.picture(self.ksampler(self.controlled(control_net=early)))
            mixed = self.ksampler(self.natively_controlled(net, self.controlled(control_net=self.net)))
            self.tensors[f"kind.chain.{name}"] = self.picture(mixed)
            self.facts[f"kind.{name}"] = {
                "again": torch.equal(again, self.tensors[f"kind.{name}"]),
                "completed": float((completed - again).abs().max()),
                "models": len(early.get_models()),
                "kept": len(net.shared.completed),
            }

    def against_native(self) -> None:
        """Our CONTROL_NET and the host's own with the same weights, alone and in chains."""
        native = self.native_net()
        unit = {"strength": 1.7, "start_percent": 0.1, "end_percent": 0.9}
        second = {"strength": 0.5}
        chains = {
            "one": ((self.net, unit),),
            "ours native": ((self.net, unit), (native, second)),
            "native ours": ((native, unit), (self.net, second)),
            "sandwich": ((native, unit), (self.net, second), (native, second)),
        }
        for name, chain in chains.items():
            for kind in ("mixed", "native"):
                conditioning = self.prompts
                for net, settings in chain:
                    used = net if kind == "mixed" else native
                    conditioning = self.natively_controlled(used, conditioning, **settings)
                self.tensors[f"chain.{kind}.{name}"] = self.ksampler(conditioning, self.empty(2))
        self.tensors["chain.none"] = self.ksampler(self.prompts, self.empty(2))

    def foreign_nets(self) -> None:
        """The host's own net under our apply node: strength, window and mask; what it cannot do is an error."""
        native = self.native_net()
        unit = {"control_net": native, "strength": 0.7, "start_percent": 0.1, "end_percent": 0.9}
        self.tensors["foreign.ours"] = self.ksampler(self.controlled(**unit))
        plain = {key: value for key, value in unit.items() if key != "control_net"}
        self.tensors["foreign.native"] = self.ksampler(self.natively_controlled(native, **plain))
        self.tensors["foreign.masked"] = self.ksampler(self.controlled(**unit, mask=mask()))
        self.tensors["foreign.own masked"] = self.ksampler(self.controlled(**plain, mask=mask()))
        without = self.controlled(strength=0.0)
        said = self.part("nodes.comfyui.apply").idle_control(self.model, [*without[0], *without[1]], [1.0])
        self.facts["left out"] = {
            "said": said, "same": torch.equal(self.ksampler(without), self.ksampler(self.prompts)),
        }  # fmt: skip
        self.facts["foreign"] = {
            "mode": self.error(lambda: self.controlled(**unit, mode="cfg-rw")),
            "nonsense": self.error(lambda: self.controlled(control_net=object())),
        }

    def error(self, run: Any) -> str:
        """Class and message of the error that a call raises; the host's interruption is no `Exception`."""
        interruption = importlib.import_module("comfy.model_management").InterruptProcessingException
        try:
            run()
        except (Exception, interruption) as error:
            return f"{type(error).__name__}: {error}"
        return ""

    @contextmanager
    def counting(self) -> Iterator[list[int]]:
        """A list that grows by one whenever the hint network runs."""
        net, calls = self.net.shared.net, []
        original = type(net).embed_hint

        def counted(self: Any, *args: Any) -> Any:
            calls.append(1)
            return original(self, *args)

        type(net).embed_hint = counted
        try:
            yield calls
        finally:
            type(net).embed_hint = original

    def costs(self) -> None:
        """The hint is embedded once per run; nothing of a run is kept, ended, failed or interrupted."""
        conditioning = self.controlled()
        control = conditioning[0][0][1]["control"]
        facts: dict[str, Any] = {}
        with self.counting() as calls:
            self.ksampler(conditioning)
            facts["hint runs"] = len(calls)
        facts["kept after a run"] = len(control.runs)
        facts["models"] = [type(m.model).__name__ for m in control.get_models()]
        facts["memory"] = control.inference_memory_requirements(torch.float32)
        before = self.own_sample(conditioning)
        management = importlib.import_module("comfy.model_management")
        management.interrupt_current_processing()
        facts["interrupted"] = self.error(lambda: self.own_sample(conditioning))
        gc.collect()
        facts["kept after an interruption"] = len(control.runs)
        facts["failed"] = self.error(self._failing_run(conditioning))
        gc.collect()
        facts["kept after a failure"] = len(control.runs)
        facts["next run is equal"] = torch.equal(before, self.own_sample(conditioning))
        facts["other base"] = self.other_base()
        self.facts["costs"] = facts

    def _failing_run(self, conditioning: Any) -> Callable[[], Any]:
        """A run that fails at its third step."""
        whole, calls = self.model, []

        def fail(run: Any, given: dict[str, Any]) -> Any:
            calls.append(1)
            if len(calls) == 3:
                raise RuntimeError("on purpose")
            return run(given["input"], given["timestep"], **given["c"])

        def run() -> Any:
            self.model = whole.clone()
            self.model.set_model_unet_function_wrapper(fail)
            try:
                return self.own_sample(conditioning)
            finally:
                self.model = whole

        return run

    def mishaps(self) -> None:
        """A hint that no net reads, and a device without memory: what is said, what is held, how it goes on."""
        conditioning = self.controlled()
        before, whole = self.own_sample(conditioning), self.model
        wrong = torch.rand(1, SIDE, SIDE, 2)
        facts = {"hint": self.error(lambda: self.own_sample(self.controlled(image=wrong)))}
        management = importlib.import_module("comfy.model_management")

        def no_memory(run: Any, given: dict[str, Any]) -> Any:
            raise management.OOM_EXCEPTION("no memory, on purpose")

        self.model = whole.clone()
        self.model.set_model_unet_function_wrapper(no_memory)
        facts["memory"] = self.error(lambda: self.own_sample(conditioning))
        self.model = whole
        gc.collect()
        facts["held"] = len(conditioning[0][0][1]["control"].runs)
        facts["next run is equal"] = torch.equal(before, self.own_sample(conditioning))
        self.facts["mishaps"] = facts

    def second_copy(self) -> None:
        """A net from a second copy of this package, installed beside the clone, under the clone's nodes."""
        other = importlib.import_module("comfyui_controlnet_core.nodes.comfyui.core_control")
        net = other.load(self.pack / "controlnet_core" / "assets" / "demo_canny.safetensors")
        weights = self.part("controlnet_core.control.weights").BlockWeights((0.5, 1.5, 1.0, 1.0), 0.5)
        runs = [self.ksampler(self.controlled(control_net=n, block_weights=weights)) for n in (net, self.net)]
        self.facts["second copy"] = [type(net) is not type(self.net), torch.equal(*runs)]

    def other_base(self) -> str:
        """A net on a prompt of another width."""
        text = [[torch.zeros(1, 77, 768), {}]]
        unit = {"strength": 1.0, "start_percent": 0.0, "end_percent": 1.0, "mode": "balanced"}
        return self.error(
            lambda: self.node(
                "CNCore_ApplyControlNet", positive=text, negative=text, control_net=self.net, image=hint(), **unit
            )
        )

    def lora(self) -> None:
        """A native LoRA in front of both sampler nodes."""
        whole, conditioning = self.model, self.controlled()
        (self.model,) = self.node("LoraLoaderModelOnly", model=whole, lora_name="query.safetensors", strength_model=1.0)
        self.tensors["lora.ours"] = self.own_sample(conditioning)
        self.tensors["lora.native"] = self.ksampler(conditioning)
        self.model = whole
        self.tensors["lora.none"] = self.own_sample(conditioning)

    def known_to_the_host(self) -> None:
        """Files of Stable Diffusion 1.5's kind: the host's own loaders, and ours, on the same ControlNet."""
        whole = self.model
        self.model = self.node("CNCore_LoadCheckpoint", checkpoint="reduced.safetensors")[0]
        (ours,) = self.node("CNCore_LoadControlNet", control_net="reduced.safetensors")
        (native,) = self.node("ControlNetLoader", control_net_name="reduced.safetensors")
        text = torch.sin(torch.arange(77 * 768.0)).reshape(1, 77, 768)
        prompts = [[text, {}]], [[-text, {}]]
        settings = {"steps": 2}
        self.tensors["reduced.none"] = self.ksampler(prompts, **settings)
        self.tensors["reduced.native"] = self.ksampler(self.natively_controlled(native, prompts), **settings)
        mixed = self.natively_controlled(ours, prompts)
        self.tensors["reduced.ours"] = self.ksampler(mixed, **settings)
        self.tensors["reduced.sampled"] = self.own_sample(mixed, **settings)
        self.facts["reduced"] = {
            "kinds": [type(net).__name__ for net in (ours, native)],
            "demo net": self.error(lambda: self.ksampler(self.natively_controlled(self.net, prompts), **settings)),
        }
        self.model = whole

    def plan(self) -> None:
        """The plan of a run on the host's objects."""
        given = {"steps": STEPS, "sampler": "euler", "scheduler": "normal", "denoise": 1.0}
        conditioning = self.controlled(end_percent=0.5)[0]
        shown = self.node("CNCore_ControlPlan", model=self.model, positive=conditioning, latent=self.empty(), **given)
        self.facts["plan"] = shown["result"][0]
        positive, negative = self.controlled(end_percent=0.5)
        halves = {"model": self.model, "positive": positive, "negative": negative}
        run = {**halves, "latent": self.empty(), "seed": SEED, "cfg": 4.0, **given}
        latent, text, _ = self.node("CNCore_ControlReport", **run)["result"]
        self.tensors["watched"] = latent["samples"]
        self.tensors["unwatched"] = self.node("CNCore_Sample", **run)[0]["samples"]
        told = {"model": self.model, "positive": positive, "latent": latent, "steps": 4, "samples": 2}
        weights = self.node("CNCore_BlockSensitivity", unit=1, seed=0, **told)["result"][0]
        self.facts["report"], self.facts["sensitivity"] = text, list(weights.custom)

    def found_strength(self) -> None:
        """Auto Strength, and the same run with its strength from the start."""
        hint = unit_settings()["image"]
        run = {"latent": self.empty(), "seed": SEED, "cfg": CFG, "steps": 4, "sampler": "euler", "scheduler": "normal"}
        run |= {"model": self.model, "denoise": 1.0}
        positive, negative = self.controlled()
        latent, strength, _, _ = self.node(
            "CNCore_AutoStrength", positive=positive, negative=negative, **run, vae=self.vae, hint=hint,
            kind="canny", target=0.5, tolerance=2.0, unit=1, runs=2,
        )["result"]  # fmt: skip
        again, no = self.controlled(strength=strength)
        self.tensors["strength.found"] = latent["samples"]
        self.tensors["strength.again"] = self.node("CNCore_Sample", positive=again, negative=no, **run)[0]["samples"]
        self.facts["found strength"] = strength

    def closed_loop(self) -> None:
        """Sample to Target with and without corrections, and the plain run; and what Control Plan measures on it."""
        run = {"latent": self.empty(), "seed": SEED, "cfg": CFG, "steps": 4, "sampler": "euler", "scheduler": "normal"}
        run |= {"model": self.model, "denoise": 1.0}
        positive, negative = self.controlled()
        run |= {"positive": positive, "negative": negative}
        rule = {
            "vae": self.vae, "hint": unit_settings()["image"], "kind": "canny", "target": 1.0, "tolerance": 2.0,
            "unit": 1, "every": 1, "highest": 1.5,
        }  # fmt: skip
        for name, gain in (("off", 0.0), ("on", 8.0)):
            shown = self.node("CNCore_SampleToTarget", **run, **rule, proportional=gain, integral=gain)["result"]
            self.tensors[f"closed.{name}"] = shown[0]["samples"]
            self.facts[f"closed {name}"] = shown[1:3]
        latent = self.node("CNCore_Sample", **run)[0]
        self.tensors["closed.plain"] = latent["samples"]
        given = {
            name: run[name] for name in ("model", "positive", "latent", "steps", "sampler", "scheduler", "denoise")
        }
        self.facts["closed plan"] = self.node("CNCore_ControlPlan", **given, finished=latent)["result"][0]


SCENARIOS = (
    "socket_values",
    "autoencoder",
    "noise_of_the_release",
    "homes",
    "masked_unit",
    "modes",
    "controls",
    "kinds",
    "against_native",
    "foreign_nets",
    "costs",
    "mishaps",
    "second_copy",
    "lora",
    "known_to_the_host",
    "plan",
    "found_strength",
    "closed_loop",
    "accelerated_runs",
    "accelerated_lora",
    "accelerated_casting",
    "accelerated_families",
    "accelerated_fallbacks",
    "accelerated_memory",
    "peaks",
    "preprocess_nodes",
    "nets_of_nodes",
    "shortcuts",
)


def main(folder: str, pack: str, out: str) -> None:
    from safetensors.torch import save_file

    torch.set_num_threads(1)
    sys.modules["comfyui_host"] = sys.modules[__name__]
    without_torchvision()
    with importlib.import_module("comfyui_card").card():
        session = Session(Path(folder), Path(pack))
        session.load_pack()
        with torch.inference_mode():  # as the host runs nodes
            session.prepare()
            for name in os.environ.get("SCENARIOS", " ".join(SCENARIOS)).split():
                session.run(name)
    tensors = {name: tensor.float().contiguous().clone() for name, tensor in session.tensors.items()}
    save_file(tensors, str(Path(out) / "tensors.safetensors"))
    (Path(out) / "facts.json").write_text(json.dumps(session.facts, indent=1))


def serve(folder: str, pack: str, port: str) -> None:
    """Run ComfyUI's own main program on loopback, with the `custom_nodes` of PACK as the only ones.

    HOST_ARGS: further arguments, such as `--front-end-root FOLDER` for another release of the frontend.
    """
    sys.path.insert(0, folder)
    more = os.environ.get("HOST_ARGS", "").split()
    sys.argv = [f"{folder}/main.py", "--cpu", "--base-directory", str(Path(pack).parents[1]), "--port", port, *more]
    without_torchvision()
    runpy.run_path(f"{folder}/main.py", run_name="__main__")


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        serve(*sys.argv[2:])
    else:
        main(*sys.argv[1:])
