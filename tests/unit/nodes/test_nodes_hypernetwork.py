"""HypernetworkLoader beside the formula on hooks (`support/hypernetwork_reference.py`), on random weights."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_controlnet_core.controlnet_core.checkpoints.detect import identify_file
from comfyui_controlnet_core.controlnet_core.checkpoints.save import save_checkpoint
from comfyui_controlnet_core.controlnet_core.config import SD15, ModelConfig
from comfyui_controlnet_core.controlnet_core.control.unit import ControlUnit
from comfyui_controlnet_core.controlnet_core.errors import CheckpointError, CoreError, UnfitError
from comfyui_controlnet_core.controlnet_core.models.regions import RegionPrompts
from comfyui_controlnet_core.controlnet_core.models.text_encoder import ClipTextModel
from comfyui_controlnet_core.controlnet_core.models.unet import UNet
from comfyui_controlnet_core.controlnet_core.models.vae import AutoencoderKL
from comfyui_controlnet_core.controlnet_core.runtime.device import Runtime
from comfyui_controlnet_core.nodes import build_nodes
from comfyui_controlnet_core.nodes.standalone.host import StandaloneHost
from few import rows_of
from hypernetwork_reference import FUNCTIONS, hooked, random_file
from safetensors.torch import save_file
from torch import Tensor

TEXT, TOLERANCE = 48, 1e-5
BASE: ModelConfig = replace(
    SD15,
    unet=replace(
        SD15.unet, widths=(32, 64), res_blocks=1, transformer_depth=(1, 1), num_heads=2, context_dim=TEXT
    ),
    vae=replace(SD15.vae, widths=(32, 32), res_blocks=1, patch=4),
    text=replace(SD15.text, width=TEXT, layers=2, heads=1),
)  # fmt: skip
PLAIN = random_file((32, TEXT), activation_func="relu")
"""Without a network for the width of the second level."""
FORMS: tuple[dict[str, Any], ...] = (
    {"normalised": True}, {"normalised": True, "activation_func": "tanh"},
    {"activate_output": True, "activation_func": "relu"}, {"normalised": True, "activate_output": True,
    "activation_func": "mish"},
)  # fmt: skip


class Setting:
    """A base with random weights, on a host that runs the layers as they are; and its samplings."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("checkpoints", "hypernetworks"):
            (folder / name).mkdir()
        torch.manual_seed(0)
        parts = [UNet(BASE.unet), AutoencoderKL(BASE.vae), ClipTextModel(BASE.text)]
        save_checkpoint(folder / "checkpoints" / "base.safetensors", BASE, *parts)
        self.classes = self.on(Runtime(pack_weights=False))
        self.model, clip, _ = self.run("CheckpointLoaderSimple", ckpt_name="base.safetensors")
        self.texts = [self.run("CLIPTextEncode", clip=clip, text=text)[0] for text in ("a table", "")]

    def on(self, runtime: Runtime) -> dict[str, type]:
        return dict(build_nodes(StandaloneHost(self.folder, self.folder, [self.folder], runtime=runtime)))

    def run(self, name: str, **inputs: Any) -> Any:
        return getattr(self.classes[name](), self.classes[name].FUNCTION)(**inputs)

    def apply(self, content: Any, strength: float = 1.0, model: Any = None) -> Any:
        """The model after HypernetworkLoader with a file of this content."""
        name = f"{len(list((self.folder / 'hypernetworks').iterdir()))}.pt"
        torch.save(content, self.folder / "hypernetworks" / name)
        return self.run("HypernetworkLoader", model=model or self.model, hypernetwork_name=name, strength=strength)[0]

    def sample(self, model: Any, positive: Any = None) -> Tensor:
        settings = {"seed": 5, "steps": 2, "cfg": 3.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
        halves = {"positive": positive or self.texts[0], "negative": self.texts[1]}
        empty = {"samples": torch.zeros(1, 4, 8, 16)}
        return self.run("KSampler", model=model, latent_image=empty, **halves, **settings)[0]["samples"]

    def by_reference(self, *nets: tuple[Any, float], positive: Any = None) -> Tensor:
        calls: list[str] = []
        # A host of its own: one that has sampled under this text keeps its keys and values.
        self.classes = self.on(Runtime(pack_weights=False))
        with ExitStack() as stack:
            for content, strength in nets:
                stack.enter_context(hooked(self.model.base.unet, content, strength, calls))
            result = self.sample(self.model, positive)
        assert {name.rsplit(".", 2)[1] for name in calls} == {"attn1", "attn2"}
        return result


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    return Setting(tmp_path_factory.mktemp("models"))


def assert_close(ours: Tensor, reference: Tensor) -> None:
    assert float((ours - reference).abs().max()) <= TOLERANCE * float(reference.abs().max())


def assert_differ(a: Tensor, b: Tensor) -> None:
    assert float((a - b).abs().max()) > 1000 * TOLERANCE * float(b.abs().max())


FACTS = [*({"activation_func": name} for name in FUNCTIONS), *FORMS]


@pytest.mark.parametrize(("facts",), rows_of(((facts,) for facts in FACTS), *range(0, len(FACTS), 3)), ids=repr)
def test_it_is_the_formula(setting: Setting, facts: dict[str, Any]) -> None:
    content = random_file((32, 64, TEXT), **facts)
    ours = setting.sample(setting.apply(content, 0.7))
    assert_close(ours, setting.by_reference((content, 0.7)))
    assert_differ(ours, setting.sample(setting.model))


def test_several_act_one_after_the_other(setting: Setting) -> None:
    other = random_file((64, TEXT), activation_func="tanh", normalised=True)
    model = setting.apply(other, -0.4, setting.apply(PLAIN, 0.8))
    ours = setting.sample(model)
    assert_close(ours, setting.by_reference((PLAIN, 0.8), (other, -0.4)))
    assert_differ(ours, setting.by_reference((other, -0.4), (PLAIN, 0.8)))


def test_texts_of_regions_are_changed_too(setting: Setting) -> None:
    """A control that brings texts of its own reads them through the same layers."""
    generator = torch.Generator().manual_seed(3)
    net = RegionPrompts([torch.randn(1, 77, TEXT, generator=generator)], [1.0])
    mask = torch.zeros(1, 1, 64, 128)
    mask[..., :64] = 1.0
    positive = [[text, {**options, "control": (ControlUnit(net, mask),)}] for text, options in setting.texts[0]]
    ours = setting.sample(setting.apply(PLAIN), positive)
    assert_close(ours, setting.by_reference((PLAIN, 1.0), positive=positive))
    assert_differ(ours, setting.sample(setting.apply(PLAIN)))


def test_packed_weights_give_the_same(setting: Setting) -> None:
    model, before = setting.apply(PLAIN), setting.classes
    expected = setting.sample(model)
    setting.classes = setting.on(Runtime())
    try:
        packed = setting.sample(model)
    finally:
        setting.classes = before
    assert float((packed - expected).abs().max()) <= 1e-4 * float(expected.abs().max())


def test_strength_0_changes_nothing(setting: Setting) -> None:
    assert setting.apply(PLAIN, 0.0) is setting.model


def damaged(**changes: Any) -> dict[Any, Any]:
    content = random_file((32, TEXT))
    content[32][0].update(changes)
    return content


@pytest.mark.parametrize(
    ("content", "error", "said"),
    [
        ({"a.weight": torch.zeros(3, 3)}, UnfitError, r"is no hypernetwork but not a model this package knows"),
        (
            random_file((32,), activation_func="gauss"),
            UnfitError,
            r"has the activation 'gauss', known are linear, relu",
        ),
        (random_file((17,)), UnfitError, r"widths among \[17\], base.safetensors has none of them"),
        ({32: (random_file((32,))[32][0],)}, CheckpointError, r"is no complete hypernetwork"),
        (damaged(**{"linear.0.bias": torch.zeros(5)}), CheckpointError, r"is no complete hypernetwork"),
        (damaged(**{"linear.2.weight": torch.zeros(9, 32)}), CheckpointError, r"is no complete hypernetwork"),
        (damaged(**{"linear.1.weight": torch.zeros(32, 9)}), CheckpointError, r"is no complete hypernetwork"),
        (damaged(**{"linear.1.weight": torch.zeros(())}), CheckpointError, r"is no complete hypernetwork"),
    ],
    ids=["other", "activation", "width", "half", "bias", "layer", "chain", "number"],
)
def test_a_file_that_cannot_be_used_is_one_line(setting: Setting, content: Any, error: Any, said: str) -> None:
    with pytest.raises(error, match=said) as raised:
        setting.apply(content)
    assert "\n" not in str(raised.value) and ".pt" in str(raised.value)


class Attack:
    def __reduce__(self) -> Any:
        return (print, ("code of a file ran",))


def test_code_in_a_file_is_not_run(setting: Setting, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CoreError, match="nothing of it was run"):
        setting.apply({**PLAIN, "name": Attack()})
    assert "ran" not in capsys.readouterr().out


def test_it_is_recognised_by_its_content(tmp_path: Path) -> None:
    torch.save(random_file((320, 768)), tmp_path / "a.pt")
    save_file({"320.weight": torch.zeros(1)}, tmp_path / "b.safetensors")
    found = identify_file(tmp_path / "a.pt")
    assert (found.kind, found.folder) == ("hypernetwork", "hypernetworks")
    assert identify_file(tmp_path / "b.safetensors").kind != "hypernetwork"
