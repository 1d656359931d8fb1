"""The pack inside the real host: it loads there, its sockets carry the host's own objects, and pictures are
the same in three homes.

Needs COMFYUI_DIR, a checkout of the host; COMFYUI_PYTHON names the interpreter of that installation where it
is another one. The host runs in programs of their own (`comfyui_host.py`), on a random model of the demo's
kind in a copy of this pack, whose folder has spaces, dashes and parentheses in its name.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
from comfyui_controlnet_core.controlnet_core.checkpoints import ldm
from comfyui_controlnet_core.controlnet_core.checkpoints.adapters import ADAPTER_RULES
from comfyui_controlnet_core.controlnet_core.checkpoints.fileconfig import CONFIG_KEY, config_to_json
from comfyui_controlnet_core.controlnet_core.checkpoints.keymap import KeyMap
from comfyui_controlnet_core.controlnet_core.checkpoints.load import load_controlnet, load_unet
from comfyui_controlnet_core.controlnet_core.checkpoints.save import save_checkpoint, save_controlnet
from comfyui_controlnet_core.controlnet_core.config import DEMO, SD15, AdapterConfig, UnionConfig
from comfyui_controlnet_core.controlnet_core.control.report import Recorder
from comfyui_controlnet_core.controlnet_core.control.weights import BlockWeights
from comfyui_controlnet_core.controlnet_core.models.adapter import Adapter
from comfyui_controlnet_core.controlnet_core.models.controlnet import ControlNet
from comfyui_controlnet_core.controlnet_core.models.text_encoder import ClipTextModel
from comfyui_controlnet_core.controlnet_core.models.tokenizer import ClipTokenizer, VocabMap
from comfyui_controlnet_core.controlnet_core.models.unet import UNet
from comfyui_controlnet_core.controlnet_core.models.union import ControlNetUnion
from comfyui_controlnet_core.controlnet_core.models.vae import AutoencoderKL
from comfyui_controlnet_core.controlnet_core.pipeline import SampleSettings
from comfyui_controlnet_core.controlnet_core.run_options import RunOptions
from comfyui_controlnet_core.nodes import build_nodes, own_nodes
from comfyui_controlnet_core.nodes.replacements import REPLACEMENTS
from comfyui_controlnet_core.nodes.standalone.host import StandaloneHost
from comfyui_controlnet_core.nodes.values import SamplerInputs
from comfyui_controlnet_core.preprocessors.learned.pidinet import PiDiNet
from comfyui_controlnet_core.preprocessors.learned.teed import TEED
from load_script import load_script
from pretended_card import BUILT_FOR_CUDA
from safetensors.torch import load_file, save_file

pytestmark = [
    pytest.mark.comfyui,
    pytest.mark.skipif("COMFYUI_DIR" not in os.environ, reason="COMFYUI_DIR is not set: no host to run in"),
]

ROOT = Path(__file__).parents[2]
PROGRAM = Path(__file__).with_name("comfyui_host.py")
PARTS = ("controlnet_core", "nodes", "preprocessors", "workflows", "web", "locales", "__init__.py", "pyproject.toml")
WORDS = ("a", "red", "sphere", "on", "grey", "ground")
AUX = "comfyui_controlnet_aux"
MEAN = 1e-3
"""Mean |difference| of decoded pictures in [0, 1] that the three homes may have."""
CLOSE = 1e-5
EXACT_SCENARIOS = (
    "against_native", "known_to_the_host", "accelerated_runs", "accelerated_lora", "accelerated_families"
)  # fmt: skip
TIMEOUT = float(os.environ.get("COMFYUI_TIMEOUT", "600"))


program = load_script(PROGRAM)  # its settings and pictures are used here too


def python() -> str:
    """The interpreter of the host's installation."""
    return os.environ.get("COMFYUI_PYTHON", sys.executable)


def random_demo(assets: Path) -> None:
    """A base and a net of the demo's kind with random weights; the zero convolutions are not zero."""
    torch.manual_seed(0)
    vocab = VocabMap.from_words(ClipTokenizer.load(), WORDS)
    config = replace(
        DEMO,
        unet=replace(DEMO.unet, widths=(64, 96), transformer_depth=(1, 0), context_dim=32),
        vae=replace(DEMO.vae, widths=(32, 32), scaling_factor=0.7),
        text=replace(DEMO.text, width=32, heads=2, vocab_size=vocab.rows),
        hint_widths=(16, 32, 96, 256),
    )
    unet, vae, text = UNet(config.unet), AutoencoderKL(config.vae), ClipTextModel(config.text)
    extras = {"vocab_map": vocab.to_tensor()}
    save_checkpoint(assets / "demo_base.safetensors", config, unet, vae, text, extras=extras, layout="core")
    net = ControlNet.from_unet(unet, config.controlnet)
    for parameter in net.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    save_controlnet(assets / "demo_canny.safetensors", net, layout="core")


def files_of_other_kinds(assets: Path, folder: Path) -> None:
    """A difference file, a Control-LoRA and a T2I-Adapter for the random demo, from what its own net adds."""
    base = load_unet(assets / "demo_base.safetensors")
    net, _ = load_controlnet(assets / "demo_canny.safetensors")
    torch.manual_seed(3)
    to_cldm = KeyMap(ldm.controlnet_rules(net.config.unet)).to_theirs
    whole = {str(to_cldm(key)): tensor for key, tensor in net.state_dict().items()}
    unet = {str(to_cldm(key)): tensor for key, tensor in base.state_dict().items() if key in net.state_dict()}
    own = {key: tensor for key, tensor in whole.items() if key not in unet}
    noise = {key: 0.1 * torch.randn_like(tensor) for key, tensor in unet.items()}
    difference = {f"control_model.{key}": tensor for key, tensor in {**noise, **own}.items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_file({**difference, "difference": torch.tensor(1.0)}, folder / "difference.safetensors")
    lora = {"lora_controlnet": torch.zeros(0), **own}
    for key, tensor in unet.items():
        if tensor.ndim > 1:
            stem, columns = key.removesuffix(".weight"), tensor.shape[1:]
            lora |= {f"{stem}.up": 0.1 * torch.randn(len(tensor), 2), f"{stem}.down": 0.1 * torch.randn(2, *columns)}
    save_file(lora, folder / "control-lora.safetensors")
    adapter = Adapter(AdapterConfig(widths=net.config.unet.widths))
    names = KeyMap(ADAPTER_RULES["t2i-adapter", "diffusers"](())).to_theirs
    state = {f"adapter.{names(key)}": tensor for key, tensor in adapter.state_dict().items()}
    save_file(state, folder / "adapter.safetensors")
    union = ControlNetUnion(replace(net.config, union=UnionConfig(6, net.config.unet.widths[0], 1, 16)))
    for parameter in union.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    named = {str(to_cldm(key)): tensor for key, tensor in union.state_dict().items()}
    # The number of heads stands in no weight, so this file of a shape of its own says it as ours do.
    save_file(named, folder / "union.safetensors", {CONFIG_KEY: config_to_json(union.config)})


def files_of_the_host(models: Path) -> None:
    """A base and a net of Stable Diffusion 1.5's kind, as narrow as the host still knows it, and a LoRA."""
    torch.manual_seed(1)
    unet_config = replace(SD15.unet, widths=(320, 320), res_blocks=1, transformer_depth=(1, 0))
    config = replace(SD15, unet=unet_config)
    unet = UNet(unet_config)
    save_checkpoint(models / "checkpoints" / "reduced.safetensors", config, unet, layout="ldm")
    net = ControlNet.from_unet(unet, config.controlnet)
    for parameter in net.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    save_controlnet(models / "controlnet" / "reduced.safetensors", net, layout="ldm")
    key = "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q"
    weights = {"up": torch.randn(64, 2), "down": torch.randn(2, 64)}
    (models / "loras").mkdir(parents=True)
    save_file({f"{key}.lora_{side}.weight": w for side, w in weights.items()}, models / "loras" / "query.safetensors")


def files_of_annotators(models: Path, custom_nodes: Path) -> None:
    """Two small annotators with random weights: one in the models folder, one where another pack keeps its files."""
    torch.manual_seed(2)
    files = {
        models / "annotators" / "table5_pidinet.pth": PiDiNet(),
        custom_nodes / AUX / "ckpts/bdsqlsz/qinglong_controlnet-lllite/Annotators/7_model.pth": TEED(),
    }
    for path, net in files.items():
        path.parent.mkdir(parents=True)
        for value in net.state_dict().values():
            value.copy_(torch.randn(value.shape) * value[:1].numel() ** -0.5)
        torch.save(net.state_dict(), path)


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pack as a clone in a `custom_nodes` folder, beside one with folders named nodes and tests."""
    custom_nodes = tmp_path_factory.mktemp("host") / "custom_nodes"
    folder = custom_nodes / "ControlNet Core-main (1)"
    unwanted = shutil.ignore_patterns("__pycache__", "*.safetensors")
    for part in PARTS:
        source = ROOT / part
        if source.is_dir():
            shutil.copytree(source, folder / part, ignore=unwanted)
        elif source.exists():
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, folder / part)
    random_demo(folder / "controlnet_core" / "assets")
    files_of_the_host(custom_nodes.parent / "models")
    files_of_other_kinds(folder / "controlnet_core" / "assets", custom_nodes.parent / "models" / "controlnet")
    files_of_annotators(custom_nodes.parent / "models", custom_nodes)
    for name in ("nodes", "tests"):
        neighbour = custom_nodes / "another_pack" / name
        neighbour.mkdir(parents=True)
        (neighbour / "__init__.py").write_text("raise RuntimeError('another pack was imported')\n")
    (custom_nodes / "another_pack" / "__init__.py").write_text("NODE_CLASS_MAPPINGS = {}\n")
    return folder


@pytest.fixture(scope="module")
def found(pack: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """What the scenarios of `comfyui_host.py` found: facts and tensors."""
    return run_scenarios(pack, tmp_path_factory.mktemp("found"))


def run_scenarios(pack: Path, out: Path, **environment: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """What `comfyui_host.py` found. environment: SCENARIOS, all if not given, and HOST_ARGS."""
    command = [python(), str(PROGRAM), os.environ["COMFYUI_DIR"], str(pack), str(out)]
    whole = {**os.environ, **environment}
    run = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, env=whole)
    assert run.returncode == 0, run.stderr[-4000:]
    return json.loads((out / "facts.json").read_text()), load_file(out / "tensors.safetensors")


@pytest.fixture(scope="module")
def exact(pack: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The same of a host that was started with torch's attention, as it is by itself on a GPU.

    What it takes by itself on a CPU is slower, and not followed (see `nodes/comfyui/layers.py`); with this one
    there is nothing that both sides compute in different ways.
    """
    given = {"SCENARIOS": " ".join(EXACT_SCENARIOS), "HOST_ARGS": "--use-pytorch-cross-attention"}
    return run_scenarios(pack, tmp_path_factory.mktemp("exact"), **given)[1]


def run_wide(
    pack: Path, out: Path, more: str = "", **environment: str
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Facts and tensors of `comfyui_card.py`, in float32 with torch's attention."""
    wide = f"--force-fp32 --fp32-vae --fp32-text-enc --use-pytorch-cross-attention {more}"
    return run_scenarios(pack, out, SCENARIOS="on_a_card", HOST_ARGS=wide, **environment)


def skip_with_cuda() -> None:
    """Skip where the host's torch is built for CUDA; see `pretended_card.py`."""
    asked = [python(), "-c", "import torch; print(torch.backends.cuda.is_built())"]
    if subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip() == "True":
        pytest.skip(BUILT_FOR_CUDA)


@pytest.fixture(scope="module")
def off_card(pack: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The same as on a pretended card, on the processor."""
    skip_with_cuda()
    return run_wide(pack, tmp_path_factory.mktemp("off"))


@pytest.fixture(scope="module")
def facts(found: tuple[dict[str, Any], dict[str, torch.Tensor]]) -> dict[str, Any]:
    return found[0]


@pytest.fixture(scope="module")
def tensors(found: tuple[dict[str, Any], dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return found[1]


class Headless:
    """The third home: the same nodes on the same files, in this process."""

    def __init__(self, pack: Path, output: Path) -> None:
        models, assets = pack.parents[1] / "models", pack / "controlnet_core" / "assets"
        self.host = StandaloneHost(models_dirs=[models], output_dir=output, assets_dir=assets)
        self.classes = build_nodes(self.host)
        self.model, self.clip, self.vae = self.node("CNCore_LoadCheckpoint", checkpoint="demo (built in)")
        (self.net,) = self.node("CNCore_LoadControlNet", control_net="demo canny (built in)")
        texts = {"prompt": program.PROMPT, "negative_prompt": program.NEGATIVE}
        self.prompts = self.node("CNCore_EncodePrompt", clip=self.clip, **texts)

    def node(self, name: str, /, **inputs: Any) -> Any:
        cls = self.classes[name]
        return getattr(cls(), cls.FUNCTION)(**inputs)

    def controlled(self, before: Any, **unit: Any) -> Any:
        """Both halves with one more unit."""
        positive, negative = before
        given = {"mode": "balanced", "control_net": self.net, **program.unit_settings(**unit)}
        return self.node("CNCore_ApplyControlNet", positive=positive, negative=negative, **given)

    def picture(self, conditioning: Any, latent: Any = None, model: Any = None, **settings: Any) -> torch.Tensor:
        """The decoded picture of a run."""
        samples = {"samples": self.latent(conditioning, latent, model, **settings)}
        return self.node("VAEDecode", samples=samples, vae=self.vae)[0]

    def latent(self, conditioning: Any, latent: Any = None, model: Any = None, **settings: Any) -> torch.Tensor:
        """The latent of a run."""
        known = {"seed": program.SEED, "steps": program.STEPS, "cfg": program.CFG, **settings}
        latent = latent or program.Case().latent(self)
        result = self.host.sample(SamplerInputs(model or self.model, *conditioning, latent, SampleSettings(**known)))
        return result["samples"]


@pytest.fixture(scope="module")
def headless(pack: Path, tmp_path_factory: pytest.TempPathFactory) -> Headless:
    return Headless(pack, tmp_path_factory.mktemp("headless"))


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """Mean |a - b|."""
    assert a.shape == b.shape
    return float((a - b).abs().mean())


# ---- it loads


def test_the_pack_loads_without_a_word(facts: dict[str, Any]) -> None:
    load = facts["load"]
    assert load["loaded"] is True
    assert load["warnings"] == []
    assert load["heavy"] == []
    assert load["bare"] == []
    assert load["described"] == ""
    print(f"import of the pack: {1000 * median(load['seconds']):.0f} ms of processor time")
    assert median(load["seconds"]) <= 0.15
    assert load["nodes"] == load["names"] == sorted(own_nodes())


def test_sockets_carry_the_hosts_own_objects(facts: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    assert facts["sockets"] == dict.fromkeys(("model", "clip", "vae", "net", "same text"), True)
    assert not torch.equal(tensors["text"], tensors["text.skip"])


def test_texts_are_those_of_the_other_home(headless: Headless, tensors: dict[str, torch.Tensor]) -> None:
    torch.testing.assert_close(tensors["text"], headless.prompts[0][0][0])


# ---- the autoencoder under native nodes


def test_autoencoder_under_native_nodes(
    headless: Headless, facts: dict[str, Any], tensors: dict[str, torch.Tensor]
) -> None:
    (latent,) = headless.node("VAEEncode", pixels=program.start_picture(), vae=headless.vae)
    torch.testing.assert_close(tensors["vae.latent"], latent["samples"], atol=CLOSE, rtol=0)
    (picture,) = headless.node("VAEDecode", samples=latent, vae=headless.vae)
    torch.testing.assert_close(tensors["vae.picture"], picture, atol=CLOSE, rtol=0)
    torch.testing.assert_close(tensors["vae.tiled"], tensors["vae.picture"], atol=CLOSE, rtol=0)
    torch.testing.assert_close(tensors["vae.encode tiled"], tensors["vae.latent"], atol=CLOSE, rtol=0)
    side = program.SIDE
    assert facts["vae"] == {"small tiles": [1, side, side, 3], "inpaint": [1, 4, side // 8, side // 8]}


# ---- three homes, one picture


@pytest.mark.parametrize(("name", "sampler", "scheduler"), program.RUNS)
def test_three_homes(
    name: str,
    sampler: str,
    scheduler: str,
    headless: Headless,
    facts: dict[str, Any],
    tensors: dict[str, torch.Tensor],
) -> None:
    """Native nodes, our nodes in the host, our nodes without it."""
    ours, native = tensors[f"ours.{name}.{sampler}"], tensors[f"native.{name}.{sampler}"]
    assert ours.std() > 0.01
    assert difference(ours, native) <= MEAN
    case = program.CASES[name]
    conditioning = case.conditioning(headless, headless.controlled)
    settings = {"sampler": sampler, "scheduler": scheduler, **case.settings}
    start, model = case.latent(headless), case.model(headless)
    picture = headless.picture(conditioning, start, model, ancestral=facts["convention"], **settings)
    assert difference(picture, native) <= MEAN


def test_the_release_is_one_whose_noise_is_known(facts: dict[str, Any]) -> None:
    release = tuple(int(part) for part in facts["release"].split("."))
    assert facts["convention"] == ("shifted" if release >= (0, 7, 0) else "same")


@pytest.mark.parametrize("name", [name for name in program.CASES if name not in ("one net", "batch")])
def test_each_case_is_another_picture(name: str, tensors: dict[str, torch.Tensor]) -> None:
    assert difference(tensors[f"ours.{name}.euler"], tensors["ours.one net.euler"]) > MEAN


def test_a_masked_unit(headless: Headless, tensors: dict[str, torch.Tensor]) -> None:
    assert difference(tensors["masked.ours"], tensors["masked.native"]) <= MEAN
    picture = headless.picture(headless.controlled(headless.prompts, mask=program.mask()))
    assert difference(picture, tensors["masked.native"]) <= MEAN
    assert difference(picture, tensors["ours.one net.euler"]) > MEAN


@pytest.mark.parametrize("mode", program.MODES)
def test_modes_under_the_native_sampler(mode: str, headless: Headless, tensors: dict[str, torch.Tensor]) -> None:
    picture = headless.picture(headless.controlled(headless.prompts, mode=mode))
    assert difference(picture, tensors[f"mode.{mode}"]) <= MEAN
    if mode != "balanced":
        assert difference(tensors[f"mode.{mode}"], tensors["mode.balanced"]) > 1e-6


def test_block_weights_under_the_native_sampler(headless: Headless, tensors: dict[str, torch.Tensor]) -> None:
    weights = BlockWeights((0.5, 1.5, 1.0, 1.0), 0.0)
    picture = headless.picture(headless.controlled(headless.prompts, block_weights=weights))
    assert difference(picture, tensors["weights"]) <= MEAN


CONTROL_CASES = (
    "schedule", "preset", "preset with ends", "positive half", "negative half", "both halves", "per picture", "pool",
    "masked pool", "stretch", "inner-fit", "pad",
)  # fmt: skip


@pytest.mark.parametrize("name", CONTROL_CASES)
def test_controls_under_the_native_sampler(name: str, headless: Headless, tensors: dict[str, torch.Tensor]) -> None:
    cases = program.control_cases(headless.node)
    assert set(cases) == set(CONTROL_CASES)
    side = program.SIDE // 8
    latent = {"samples": torch.zeros(3, 4, side, side)}

    def picture(unit: dict[str, Any]) -> torch.Tensor:
        return headless.picture(headless.controlled(headless.prompts, **unit), {**latent})

    mine = picture(cases[name])
    assert difference(mine, tensors[f"control.{name}"]) <= MEAN
    # Not the same as without: else a control that nobody reads would pass.
    assert not torch.equal(picture({**cases[name], **UNSAID}), mine)


UNSAID: dict[str, Any] = {"schedule": None, "options": None, "block_weights": None, "mask": None}


@pytest.mark.parametrize("name", [name for name in CONTROL_CASES if name != "masked pool"])
def test_what_a_native_net_cannot_do_is_an_error(name: str, facts: dict[str, Any]) -> None:
    assert facts["control.foreign"][name].startswith("ValueRangeError: ")
    assert "was loaded by ComfyUI" in facts["control.foreign"][name]


@pytest.mark.parametrize("name", program.KINDS)
def test_other_kinds_of_control(
    name: str, headless: Headless, facts: dict[str, Any], tensors: dict[str, torch.Tensor]
) -> None:
    """Completed when the run begins, or with a model when they are loaded; alone and in a chain."""
    (net,) = headless.node("CNCore_LoadControlNet", control_net=f"{name}.safetensors")
    mine = headless.picture(headless.controlled(headless.prompts, control_net=net))
    assert difference(mine, tensors[f"kind.{name}"]) <= MEAN
    assert difference(mine, tensors["ours.one net.euler"]) > 10 * CLOSE
    assert difference(tensors[f"kind.chain.{name}"], tensors[f"kind.{name}"]) > 10 * CLOSE
    found = facts[f"kind.{name}"]
    assert found["again"]
    assert found["completed"] <= CLOSE
    assert (found["models"], found["kept"]) == (1, 0)


# ---- nets that nodes make, and unions


nets = load_script(PROGRAM.with_name("comfyui_nets.py"))


def test_a_net_trained_in_the_host_is_the_one_trained_without_it(
    headless: Headless, facts: dict[str, Any], tensors: dict[str, torch.Tensor]
) -> None:
    net, *_ = headless.node("CNCore_TrainControlNet", **nets.TRAINING, **nets.examples())
    mine = headless.picture(headless.controlled(headless.prompts, control_net=net))
    assert difference(mine, tensors["net.trained"]) <= MEAN
    assert difference(mine, tensors["net.none"]) > 10 * CLOSE
    trained, saved = (load_controlnet(Path(facts["nets"][name]))[0].state_dict() for name in ("trained", "saved"))
    assert all(torch.equal(saved[key], tensor) for key, tensor in trained.items())


def test_a_trained_control_lora_is_the_same_in_comfyuis_own_loader(tensors: dict[str, torch.Tensor]) -> None:
    ours, theirs, none = (tensors[f"net.{name}"] for name in ("lora", "lora, native", "none"))
    assert difference(ours, theirs) <= MEAN
    assert difference(ours, none) > 10 * CLOSE


def test_a_net_moved_to_its_own_base_is_itself(facts: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    assert Path(facts["nets"]["moved"]).is_file()
    torch.testing.assert_close(tensors["net.moved"], tensors["net.canny"], atol=CLOSE, rtol=0)
    assert difference(tensors["net.canny"], tensors["net.none"]) > 10 * CLOSE


@pytest.mark.parametrize("name", ["silent", "told", "two hints"])
def test_a_union_is_the_same_in_both_homes(name: str, headless: Headless, tensors: dict[str, torch.Tensor]) -> None:
    unit = nets.union_units(headless.node)[name]
    mine = headless.picture(headless.controlled(headless.prompts, **unit))
    assert difference(mine, tensors[f"net.{name}"]) <= MEAN


def test_the_hosts_own_node_tells_a_union_its_type(tensors: dict[str, torch.Tensor]) -> None:
    assert torch.equal(tensors["net.told by the host"], tensors["net.told"])
    pictures = [tensors[f"net.{name}"] for name in ("silent", "told", "two hints", "none")]
    for i, one in enumerate(pictures):
        assert not any(torch.equal(one, other) for other in pictures[i + 1 :])


# ---- CONTROL_NET


CHAINS = ("one", "ours native", "native ours", "sandwich")


@pytest.mark.parametrize("name", CHAINS)
def test_ours_is_the_native_net_in_every_chain(name: str, tensors: dict[str, torch.Tensor]) -> None:
    mixed, native = tensors[f"chain.mixed.{name}"], tensors[f"chain.native.{name}"]
    assert float((native - tensors["chain.none"]).abs().max()) > 1e-2
    assert float((mixed - native).abs().max()) <= CLOSE * float(native.abs().max())


@pytest.mark.parametrize("name", CHAINS)
def test_ours_is_the_native_net_bit_by_bit(name: str, exact: dict[str, torch.Tensor]) -> None:
    assert torch.equal(exact[f"chain.mixed.{name}"], exact[f"chain.native.{name}"])


def test_files_that_the_host_knows_bit_by_bit(exact: dict[str, torch.Tensor]) -> None:
    for name in ("ours", "sampled"):
        assert torch.equal(exact[f"reduced.{name}"], exact["reduced.native"])


def test_native_nets_under_our_apply_node(facts: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    assert torch.equal(tensors["foreign.ours"], tensors["foreign.native"])
    masked, own = tensors["foreign.masked"], tensors["foreign.own masked"]
    assert float((masked - own).abs().max()) <= CLOSE * float(own.abs().max())
    assert float((masked - tensors["foreign.ours"]).abs().max()) > 1e-3
    assert facts["foreign"]["mode"].startswith("ValueRangeError") and "cfg-rw" in facts["foreign"]["mode"]
    assert facts["foreign"]["nonsense"].startswith("ValueRangeError")


def test_a_unit_of_strength_0_changes_nothing_and_is_named(facts: dict[str, Any]) -> None:
    (said,) = facts["left out"]["said"]
    assert said.endswith(" had no effect: its strength is 0") and ".safetensors" in said
    assert facts["left out"]["same"] is True


def test_costs_and_what_is_kept(facts: dict[str, Any]) -> None:
    costs = facts["costs"]
    assert costs["hint runs"] == 1
    kept = [costs[f"kept after {what}"] for what in ("a run", "an interruption", "a failure")]
    assert kept == [0, 0, 0]
    assert costs["models"] == ["ControlNet"]
    assert costs["memory"] > 0
    assert costs["interrupted"].startswith("InterruptProcessingException")
    assert costs["failed"] == "RuntimeError: on purpose"
    assert costs["next run is equal"] is True
    assert costs["other base"].startswith("UnfitError")


def test_mishaps_leave_nothing_and_say_what_to_do(facts: dict[str, Any]) -> None:
    """The editor adds the node's name to what is said."""
    found = facts["mishaps"]
    assert found["hint"].startswith("ShapeError: ") and "2 channels" in found["hint"]
    assert found["memory"].startswith("OutOfMemory: ") and "use a smaller picture" in found["memory"]
    assert found["held"] == 0
    assert found["next run is equal"] is True


def test_a_clone_and_an_installed_package_side_by_side(facts: dict[str, Any]) -> None:
    assert facts["second copy"] == [True, True]


def test_a_native_lora_in_front_of_our_sampler(tensors: dict[str, torch.Tensor]) -> None:
    ours, native, none = (tensors[f"lora.{name}"] for name in ("ours", "native", "none"))
    assert float((ours - native).abs().max()) <= CLOSE * float(native.abs().max())
    assert float((ours - none).abs().max()) > 1e-4


def test_files_that_the_host_knows(facts: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    none, native = tensors["reduced.none"], tensors["reduced.native"]
    assert float((native - none).abs().max()) > 1e-2
    for name in ("ours", "sampled"):
        assert float((tensors[f"reduced.{name}"] - native).abs().max()) <= CLOSE * float(native.abs().max())
    assert facts["reduced"]["kinds"] == ["CoreControl", "ControlNet"]
    assert facts["reduced"]["demo net"].startswith("UnfitError")


def test_plan_on_the_hosts_objects(facts: dict[str, Any]) -> None:
    assert "demo_canny.safetensors" in facts["plan"]
    assert f"of {program.STEPS} evaluations" in facts["plan"]
    assert "not run: after its window, which ends at 50%" in facts["plan"]


def test_report_and_sensitivity_on_the_hosts_objects(facts: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    assert torch.equal(tensors["watched"], tensors["unwatched"])
    ran = facts["plan"].split("runs in ")[1].split()[0]
    assert f"demo_canny.safetensors ran in {ran} of {program.STEPS} in " in facts["report"]
    assert max(facts["sensitivity"]) == 1.0 > min(facts["sensitivity"]) > 0.0


def test_auto_strength_gives_what_its_strength_gives(facts: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    assert 0.0 < facts["found strength"] <= 1.5
    scale = float(tensors["strength.again"].abs().max())
    assert float((tensors["strength.found"] - tensors["strength.again"]).abs().max()) <= CLOSE * scale


def test_sample_to_target_corrects_the_strength(facts: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    plain, start = tensors["closed.plain"], 0.8  # the strength of the unit
    scale = float(plain.abs().max())
    assert float((tensors["closed.off"] - plain).abs().max()) <= CLOSE * scale and facts["closed off"][0] == start
    assert float((tensors["closed.on"] - plain).abs().max()) > 1e-3 * scale
    strengths = [float(line.split()[-1]) for line in facts["closed on"][1].splitlines()[2:]]
    assert len(strengths) == 4 and strengths[0] == start < max(strengths) <= 1.5


def test_a_plan_with_a_finished_latent_proposes_a_window(facts: dict[str, Any]) -> None:
    measured = next(part for part in facts["closed plan"].split("\n\n") if "information about its strength" in part)
    shares = [float(line.split()[-1].rstrip("%")) for line in measured.splitlines()[2:6]]
    assert sum(shares) == pytest.approx(100.0, abs=0.3) and min(shares) > 0.0
    assert "proposed window: start_percent 0.000" in measured


# ---- our engine under native samplers

COPIES = ("shared", "packed")
RUNS = (
    "plain", "batch", "cfg 1", "dpmpp_2m", "ancestral", "heun", "long text", "two texts", "area", "img2img",
    "our net", "our net, both texts", "native net", "chain", "chain, ours last", "two of ours",
)  # fmt: skip
STREAMED = ("our net", "our net, both texts", "chain, ours last", "two of ours")
"""Where the last net of the chain is ours, so that its residuals are added as they are made."""


def relative(tensors: dict[str, torch.Tensor], name: str) -> float:
    """Largest difference of a run with the engine from the native one, in parts of the largest value."""
    fast, native = tensors[f"{name}.fast"], tensors[f"{name}.native"]
    return float((fast - native).abs().max() / native.abs().max())


@pytest.mark.parametrize("weights", COPIES)
@pytest.mark.parametrize("name", RUNS)
def test_accelerated_runs_are_the_native_ones(
    name: str, weights: str, facts: dict[str, Any], tensors: dict[str, torch.Tensor]
) -> None:
    assert relative(tensors, f"accelerate.{weights}.{name}") <= CLOSE
    report = facts["accelerate"][f"{weights} {name}"]
    assert report["fast"] >= program.STEPS
    assert report["native"] == {}
    assert report["streamed"] == (report["fast"] if name in STREAMED else 0)


@pytest.mark.parametrize("name", RUNS)
def test_shared_weights_give_the_native_run_bit_by_bit(name: str, exact: dict[str, torch.Tensor]) -> None:
    assert torch.equal(exact[f"accelerate.shared.{name}.fast"], exact[f"accelerate.shared.{name}.native"])


@pytest.mark.parametrize("place", ["behind", "in front"])
@pytest.mark.parametrize("step", ["added", "changed", "removed"])
def test_shared_weights_with_a_lora_bit_by_bit(step: str, place: str, exact: dict[str, torch.Tensor]) -> None:
    name = f"accelerate lora.shared.{place}.{step}"
    assert torch.equal(exact[f"{name}.fast"], exact[f"{name}.native"])


def test_shared_weights_copy_nothing_and_packed_ones_are_counted(facts: dict[str, Any]) -> None:
    found = facts["accelerate"]
    assert (found["shared copied"], found["shared counted"]) == (0, [])
    (counted,) = found["packed counted"]
    assert 0.6 * counted < found["packed copied"] <= counted  # told is the most, with tiles' filters for every size
    assert [found[f"{weights} expected"] for weights in COPIES] == [f"fast path with {w} weights" for w in COPIES]


@pytest.mark.parametrize("weights", COPIES)
@pytest.mark.parametrize("place", ["behind", "in front"])
def test_a_lora_comes_changes_and_goes(
    place: str, weights: str, facts: dict[str, Any], tensors: dict[str, torch.Tensor]
) -> None:
    runs = {step: f"accelerate lora.{weights}.{place}.{step}" for step in ("none", "added", "changed", "removed")}
    for name in runs.values():
        assert relative(tensors, name) <= CLOSE
    fast = {step: tensors[f"{name}.fast"] for step, name in runs.items()}
    assert torch.equal(fast["none"], fast["removed"])
    assert float((fast["added"] - fast["none"]).abs().max()) > 1e-2
    assert float((fast["changed"] - fast["added"]).abs().max()) > 1e-2
    assert facts["accelerate lora"][f"{weights} {place}"] == {}


FAMILIES = ("sd15", "sd21", "sdxl")


@pytest.mark.parametrize("weights", COPIES)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_takes_the_fast_path(
    family: str, weights: str, facts: dict[str, Any], tensors: dict[str, torch.Tensor]
) -> None:
    name = f"accelerate family.{family}.{weights}"
    for case, streamed in (("plain", 0), ("our net", 2)):
        assert relative(tensors, f"{name}.{case}") <= CLOSE
        found = facts["accelerate families"][f"{family} {weights} {case}"]
        assert found == {"fast": 2, "native": {}, "streamed": streamed}
    plain, controlled = (tensors[f"{name}.{case}.fast"] for case in ("plain", "our net"))
    assert float((plain - controlled).abs().max()) > 1e-2


@pytest.mark.parametrize("family", FAMILIES)
def test_a_unet_of_full_size_is_bound_at_once(family: str, facts: dict[str, Any]) -> None:
    seconds = median(facts["accelerate bind"][family])
    print(f"{family} of full size is bound in {1000 * seconds:.1f} ms of processor time")
    assert seconds < 0.1


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_bit_by_bit(family: str, exact: dict[str, torch.Tensor]) -> None:
    for case in ("plain", "our net"):
        name = f"accelerate family.{family}.shared.{case}"
        assert torch.equal(exact[f"{name}.fast"], exact[f"{name}.native"])


@pytest.mark.parametrize("weights", COPIES)
@pytest.mark.parametrize(("option", "stored"), [("fp16_unet", "float16"), ("fp8_e4m3fn_unet", "float8_e4m3fn")])
def test_weights_that_the_host_casts(
    option: str, stored: str, weights: str, facts: dict[str, Any], tensors: dict[str, torch.Tensor]
) -> None:
    found = facts["accelerate cast"][f"{option} {weights}"]
    assert found["stored"] == f"torch.{stored}"
    assert (found["fast"], found["native"]) == (program.STEPS, {})
    assert ("shared weights were used" in found["note"]) == (weights == "packed")
    assert relative(tensors, f"accelerate cast.{option}.{weights}") <= CLOSE


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("block patch", "patches act on"),
        ("attention patch", "patches replace attention"),
        ("wrapper", "another wrapper"),
        ("object patch", "parts of the UNet were replaced"),
        ("injection", "injects code"),
        ("context window", "context windows"),
        ("residual", "meets a skip of shape"),
        ("other inputs", "inputs that are not"),
        ("replaced forward", "replaced the forward of middle_block"),
        ("hooked block", "hooked middle_block.0"),
        ("our net", "patches act on"),
    ],
)
def test_what_the_engine_would_not_do_as_the_host_does(
    name: str, reason: str, facts: dict[str, Any], tensors: dict[str, torch.Tensor]
) -> None:
    assert torch.equal(tensors[f"fallback.{name}.fast"], tensors[f"fallback.{name}.native"])
    found = facts["fallbacks"][name]
    assert found["fast"] == 0
    (said,) = found["native"]
    assert reason in said


@pytest.mark.parametrize(("name", "reason"), [("noise levels", "rows are at"), ("weight hook", "a hook changes")])
def test_calls_that_go_to_the_host_one_by_one(
    name: str, reason: str, facts: dict[str, Any], tensors: dict[str, torch.Tensor]
) -> None:
    assert relative(tensors, f"fallback.{name}") <= CLOSE
    (said,) = facts["fallbacks"][name]["native"]
    assert reason in said


def test_refusals_that_need_another_machine_or_model(facts: dict[str, Any]) -> None:
    found = facts["refusals"]
    assert found["nothing"] == found["half, fused"] == ""
    for name, words in (
        ("half", "attention runs in float32"),
        ("override", "attention function is overridden"),
        ("device", "second device"),
        ("heads", "4 heads where 2"),
        ("shape", "differs from Stable Diffusion's at time_embed.linear1"),
        ("flux", "native: the model is not Stable Diffusion"),
    ):
        assert words in found[name]
    assert found["compiling"] == [False, True]
    as_it_is, *changed = found["edges"]
    assert as_it_is == "" and all("another pack changed" in said for said in changed) and len(changed) == 3
    said, equal = found["outside"]
    assert "outside of a sampler" in said
    assert equal is True


def test_shared_weights_are_the_hosts_and_nothing_outlives_a_run(facts: dict[str, Any]) -> None:
    found = facts["accelerate memory"]
    assert found["during"] == [[True, 1]] * (program.STEPS - 1)
    for end in ("a run", "a failure", "an interruption"):
        assert found[end] == [0, 0, 0]
    assert found["error of a failure"] == "RuntimeError: on purpose"
    assert found["error of an interruption"].startswith("InterruptProcessingException")
    assert found["next run is equal"] is True
    assert found["unloading"] == [True, True]


@pytest.mark.parametrize("name", ["one", "two", "large"])
def test_a_net_holds_no_more_than_the_host_was_told(name: str, facts: dict[str, Any]) -> None:
    """Bytes of all tensors alive at the peak of its first call, which embeds the hint and projects the text."""
    found = facts["peaks"][name]
    print(f"{name}: {found['peak'] / 2**20:.1f} MiB at the peak, {found['counted'] / 2**20:.1f} counted")
    assert found["peak"] <= found["counted"] <= 5 * found["peak"]


# ---- shortcuts

short = load_script(PROGRAM.with_name("comfyui_shortcuts.py"))


@pytest.mark.parametrize("name", short.RUNS)
def test_shortcuts_are_those_of_the_other_home(
    name: str, headless: Headless, facts: dict[str, Any], tensors: dict[str, torch.Tensor]
) -> None:
    """The same latent as without the editor, from as many runs of the nets."""
    case = short.RUNS[name]
    given = {key: value[1]["default"] for key, value in short_inputs().items() if "default" in value[1]}
    model, words = headless.node("CNCore_Shortcuts", model=headless.model, **{**given, **case.fields})["result"]
    settings = SampleSettings(program.SEED, short.STEPS, program.CFG, **case.settings)
    recorder = Recorder()
    conditioning, latent = case.conditioning(headless), case.latent(headless)
    inputs = SamplerInputs(model, *conditioning, latent, settings)
    mine = headless.host.sample(inputs, RunOptions(recorder=recorder))["samples"]
    found, exact = tensors[f"short.{name}"], tensors[f"short.{name}.exact"]
    between, saved = (float((found - other).abs().max() / mine.abs().max()) for other in (mine, exact))
    print(f"{name}: {between:.1e} from the other home, {saved:.1e} from exact")
    assert between <= CLOSE
    assert saved > 50 * CLOSE
    if not any("file" in unit for unit in case.units):
        assert facts["shortcuts"][name]["nets"] == sum(unit.ran for unit in recorder.report().units)
    assert facts["shortcuts"][name]["words"] == words
    assert facts["shortcuts"][name]["warnings"] == []


def short_inputs() -> dict[str, Any]:
    """The fields of the node."""
    declared = own_nodes()["CNCore_Shortcuts"].INPUT_TYPES()
    return {**declared["required"], **declared["optional"]}


def test_shortcuts_that_are_off_change_no_bit(facts: dict[str, Any]) -> None:
    assert facts["shortcuts off"] == [True] * 6


def test_shortcuts_where_halves_are_split_and_looked_at_twice(facts: dict[str, Any]) -> None:
    assert len(facts["shortcuts split"]) == 10
    assert max(facts["shortcuts split"].values()) <= 10 * CLOSE


@pytest.mark.parametrize(
    ("name", "words", "acts"),
    [
        ("no engine", "deep_every 2 does nothing: put Accelerate", False),
        ("native net", "ControlNet runs in every evaluation: load it with", False),
        ("no net", "no ControlNet of this pack acted", False),
        ("cfg 1", "there was no negative half (cfg 1)", False),
        ("patched", "patches act on the UNet's blocks", False),
    ],
)
def test_a_shortcut_that_cannot_act_says_so(
    name: str, words: str, acts: bool, facts: dict[str, Any], tensors: dict[str, torch.Tensor]
) -> None:
    assert any(words in line for line in facts["shortcuts loud"][name]), facts["shortcuts loud"][name]
    assert torch.equal(tensors[f"loud.{name}"], tensors[f"loud.{name}.exact"]) is not acts


def test_shortcuts_do_not_limit_a_guider_of_three_prompts_and_say_so(facts: dict[str, Any]) -> None:
    said = facts["shortcuts loud"]["three prompts"]
    assert any("this guider has more than two" in line for line in said) and said[-1] == "equal: True"


def test_plan_and_report_speak_of_shortcuts(facts: dict[str, Any]) -> None:
    said = "\n".join(facts["shortcuts loud"]["plan"])
    assert "shortcuts on this model: nets once in 2" in said
    assert "demo_canny.safetensors ran in 4 of 6, acted in 6" in said


def test_nothing_of_a_sampling_with_shortcuts_outlives_it(facts: dict[str, Any]) -> None:
    found = facts["shortcuts held"]
    assert found["before"] == 0 < found["during"]
    for end in ("a run", "a failure", "an interruption"):
        assert found[end] == 0
    assert found["error of a run"] == "" and found["error of a failure"] == "RuntimeError: on purpose"
    assert found["error of an interruption"].startswith("InterruptProcessingException")
    assert found["options"] == [False, False]
    assert found["next run is equal"] is True


# ---- hints


def test_hint_nodes_give_the_same_in_both_homes(
    pack: Path, facts: dict[str, Any], tensors: dict[str, torch.Tensor]
) -> None:
    scenario = load_script(PROGRAM.with_name("comfyui_preprocess.py"))
    host = StandaloneHost(models_dirs=[pack.parents[1] / "models", pack.parent / AUX], device="cpu", dtype="fp32")
    classes = build_nodes(host)
    calls = scenario.calls({name: classes[name] for name in own_nodes()})
    assert {f"hint.{key}" for key in calls} == {key for key in tensors if key.startswith("hint.")}
    for key, (name, given) in calls.items():
        hint, *_, text = classes[name]().run(**given)["result"]
        torch.testing.assert_close(tensors[f"hint.{key}"], hint, atol=CLOSE, rtol=0, msg=key)
        assert facts["preprocess"]["texts"][key] == text
    assert torch.equal(tensors["hint again"], tensors["hint.soft_edge_teed"])


def test_nets_of_annotators_live_in_the_hosts_memory(facts: dict[str, Any]) -> None:
    found = facts["preprocess"]
    assert found["nets"] == ["PiDiNet", "TEED"]
    assert {"PiDiNet", "TEED"} <= set(found["held"])
    assert found["kept"] is True
    assert found["interrupted"].startswith("InterruptProcessingException")
    for part in ("MissingFileError", "ControlNetHED.pth", "models", "https://", "Apache-2.0", "soft_edge needs no"):
        assert part in found["missing"]
    assert found["side"] == 512


# ---- the server


@pytest.fixture(scope="module")
def server(pack: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The host's server on loopback with this pack; its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log.txt"
    command = [python(), str(PROGRAM), "--serve", os.environ["COMFYUI_DIR"], str(pack), str(port)]
    with log.open("w") as written:
        process = subprocess.Popen(command, stdout=written, stderr=subprocess.STDOUT)
    address = f"http://127.0.0.1:{port}"
    try:
        end = time.monotonic() + TIMEOUT
        while not answers(f"{address}/object_info/CNCore_Sample"):
            assert process.poll() is None and time.monotonic() < end, log.read_text()[-4000:]
            time.sleep(0.5)
        yield address
    finally:
        process.terminate()
        process.wait(30)


def answers(url: str) -> bool:
    """Whether a GET succeeds."""
    try:
        return bool(get(url))
    except OSError:
        return False


def get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=60) as reply:
        return reply.read()


def test_the_server_lists_our_nodes(server: str) -> None:
    listed = json.loads(get(f"{server}/object_info"))
    for name, cls in own_nodes().items():
        assert listed[name]["display_name"] == cls.DISPLAY_NAME
        assert listed[name]["output"] == list(cls.RETURN_TYPES)
        assert listed[name]["category"].startswith("ControlNet Core")
        assert listed[name]["description"] == cls.DESCRIPTION
    kind, options = listed["CNCore_LoadCheckpoint"]["input"]["required"]["checkpoint"]
    assert "demo (built in)" in (options["options"] if kind == "COMBO" else kind)


def test_a_workflow_runs_in_the_server_and_headless(server: str, headless: Headless, tmp_path: Path) -> None:
    """canny_to_image as it is shipped, with fewer steps: the same PNG in both homes."""
    from comfyui_controlnet_core.workflows.execution import execute
    from graphs import load_graph, validate
    from PIL import Image

    graph = load_graph(ROOT / "workflows" / "canny_to_image.json", headless.classes)
    (sampler,) = (node.id for node in graph.nodes.values() if node.class_type == "CNCore_Sample")
    graph = graph.with_value(sampler, "steps", 2)
    body = json.dumps({"prompt": graph.to_api()}).encode()
    request = urllib.request.Request(f"{server}/prompt", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as reply:
        answer = json.loads(reply.read())
    assert answer["node_errors"] == {}
    entry = wait_for(server, answer["prompt_id"])
    assert entry["status"]["status_str"] == "success", entry["status"]
    (saver,) = (node.id for node in graph.nodes.values() if node.class_type == "SaveImage")
    shown = entry["outputs"][saver]["images"][0]
    query = urllib.parse.urlencode({key: shown[key] for key in ("filename", "subfolder", "type")})
    theirs = Image.open(io.BytesIO(get(f"{server}/view?{query}"))).convert("RGB")

    host = StandaloneHost(output_dir=tmp_path, assets_dir=headless.host.assets_dir)
    classes = build_nodes(host)
    execute(validate(graph, classes), classes)
    ours = Image.open(next(tmp_path.glob("*.png"))).convert("RGB")
    pair = [torch.frombuffer(bytearray(p.tobytes()), dtype=torch.uint8).float() / 255 for p in (ours, theirs)]
    assert difference(*pair) <= MEAN


def test_nodes_of_packs_that_are_not_there_become_ours(server: str) -> None:
    """In a prompt that is queued; the editor asks for the same list."""
    try:
        offered = json.loads(get(f"{server}/node_replacements"))
    except OSError:
        pytest.skip("this release replaces no nodes")
    assert {one.old for one in REPLACEMENTS} <= offered.keys()
    picture = {"class_type": "CNCore_ExampleImage", "inputs": {"picture": "coins", "view": "picture", "size": 64}}
    canny = {"low_threshold": 60, "high_threshold": 140, "resolution": 64, "image": ["1", 0]}
    names = {"2": "CannyEdgePreprocessor", "3": "CNCore_Canny"}
    ours = {"low": 60, "high": 140, "resolution": 64, "image": ["1", 0]}
    inputs = {"2": canny, "3": ours}
    nodes = {"1": picture, **{n: {"class_type": names[n], "inputs": inputs[n]} for n in names}}
    nodes |= {f"{n}0": {"class_type": "PreviewImage", "inputs": {"images": [n, 0]}} for n in names}
    prompt = {name: {**node, "_meta": {"title": name}} for name, node in nodes.items()}
    body = json.dumps({"prompt": prompt}).encode()
    request = urllib.request.Request(f"{server}/prompt", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as reply:
        entry = wait_for(server, json.loads(reply.read())["prompt_id"])
    assert entry["status"]["status_str"] == "success", entry["status"]
    shown = [entry["outputs"][f"{n}0"]["images"][0] for n in names]
    query = [urllib.parse.urlencode({key: one[key] for key in ("filename", "subfolder", "type")}) for one in shown]
    replaced, own = (get(f"{server}/view?{text}") for text in query)
    assert pixels(replaced) == pixels(own)


def pixels(data: bytes) -> bytes:
    """The pixels of a picture file."""
    from PIL import Image

    return Image.open(io.BytesIO(data)).convert("RGB").tobytes()


def wait_for(server: str, prompt: str) -> dict[str, Any]:
    """The history of a run, once it is there."""
    end = time.monotonic() + TIMEOUT
    while time.monotonic() < end:
        history = json.loads(get(f"{server}/history/{prompt}"))
        if history.get(prompt, {}).get("status", {}).get("completed") is not None:
            return history[prompt]
        time.sleep(0.2)
    raise AssertionError("the run did not end in time")


# ---- a model of full size


@pytest.mark.skipif("COMFYUI_FULL" not in os.environ, reason="COMFYUI_FULL is not set: 8 GB and minutes")
def test_accelerate_on_a_model_of_full_size(pack: Path, tmp_path: Path) -> None:
    """Random weights of Stable Diffusion 1.5, two steps at cfg 7; again with a LoRA that comes, changes and goes."""
    program_of_it = PROGRAM.with_name("comfyui_full.py")
    command = [python(), str(program_of_it), os.environ["COMFYUI_DIR"], str(pack), str(tmp_path), "sd15"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=3 * TIMEOUT)
    assert run.returncode == 0, run.stderr[-4000:]
    found, tensors = json.loads((tmp_path / "facts.json").read_text()), load_file(tmp_path / "tensors.safetensors")
    shared, packed = found["shared"], found["packed"]
    assert shared["copied"] == 0 and all(shared["shared"])
    assert shared["grown"] < 0.02 * found["weights"]
    assert max(shared["bind"], packed["bind"]) < 0.1
    assert packed["copied"] <= 16 / 9 * found["weights"]  # if all of them were filters of tiles
    # The difference of one call; two steps at cfg 7 make more of it, and packed products are rounded otherwise.
    for weights, most in (("shared", CLOSE), ("packed", 4 * CLOSE)):
        assert max(found[weights]["calls"]) <= CLOSE / 2
        for step in ("none", "added", "changed", "removed"):
            assert relative(tensors, f"full.sd15.{weights}.{step}") <= most


@pytest.mark.parametrize("memory", ["", "--novram"], ids=["resident", "layer by layer"])
def test_on_a_card_our_nets_wait_once_per_call_and_give_the_processors_latents(
    memory: str, pack: Path, off_card: tuple[dict[str, Any], dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    """However many nets: the noise level is read once. Accelerate reads the timestep as well."""
    facts, tensors = run_wide(pack, tmp_path, memory, PRETENDED_CARD="1")
    told, (off, expected) = facts["card"], off_card
    assert (told.pop("device"), off["card"]["device"]) == ("cuda:0", "cpu")
    assert told.pop("races") == []
    for name, waits in told.items():
        nets, accelerated = not name.startswith("no net"), name.endswith("accelerated")
        assert waits == nets + accelerated, name
    for name, tensor in tensors.items():
        assert float((tensor - expected[name]).abs().max()) <= 1e-4 * float(expected[name].abs().max()), name
