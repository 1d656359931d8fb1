"""ControlNet-XS as a unit of control: halves, rows, masks, windows, chains, accelerations, files.

Its numbers are compared with diffusers in `parity/test_controlnet_xs_diffusers.py`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from comfyui_controlnet_core.controlnet_core.backend import Backend
from comfyui_controlnet_core.controlnet_core.checkpoints.control import load_control
from comfyui_controlnet_core.controlnet_core.checkpoints.controlnet_xs import ORIGINAL
from comfyui_controlnet_core.controlnet_core.checkpoints.inspect import inspect_file
from comfyui_controlnet_core.controlnet_core.checkpoints.verify import verify_file
from comfyui_controlnet_core.controlnet_core.conditioning.condition import Condition
from comfyui_controlnet_core.controlnet_core.conditioning.job import Job
from comfyui_controlnet_core.controlnet_core.config import DEMO, SD15, SDXL, ModelConfig
from comfyui_controlnet_core.controlnet_core.control.report import Recorder
from comfyui_controlnet_core.controlnet_core.control.unit import ControlUnit
from comfyui_controlnet_core.controlnet_core.diffusion.schedule import scaled_linear
from comfyui_controlnet_core.controlnet_core.errors import CheckpointError, UnfitError
from comfyui_controlnet_core.controlnet_core.models.controlnet import ControlNet
from comfyui_controlnet_core.controlnet_core.models.controlnet_xs import ControlNetXS
from comfyui_controlnet_core.controlnet_core.models.unet import UNet
from comfyui_controlnet_core.controlnet_core.pipeline import (
    DiffusionModel,
    SampleSettings,
    blocked_choices,
    generate,
    plan_run,
    run_context,
)
from comfyui_controlnet_core.controlnet_core.run_options import RunOptions, Shortcuts
from comfyui_controlnet_core.controlnet_core.runtime.device import Runtime
from controlnet_xs_files import random_state, save_xs, xs_config
from engine_runs import denoiser
from few import few_of
from random_tensors import normal, relative_error
from safetensors.torch import load_file, save_file
from torch import Tensor

TOLERANCE = 1e-5
SCHEDULE = scaled_linear()
SMALL15 = replace(SD15.unet, widths=(32, 64, 64), transformer_depth=(1, 1, 0), num_heads=2, context_dim=16)
SMALLXL = replace(
    SDXL.unet, widths=(32, 64, 64), transformer_depth=(0, 1, 2), middle_depth=2, head_dim=16, context_dim=24,
    label_dim=12,
)  # fmt: skip
BASES = {"sd15": SMALL15, "sdxl": SMALLXL}


class Setting:
    """A base and a net of random weights."""

    def __init__(self, family: str, folder: Path, time_mix: float | None = 0.8) -> None:
        torch.manual_seed(0)
        self.unet = UNet(BASES[family]).eval().requires_grad_(False)
        self.xs = xs_config(self.unet.config, time_mix=time_mix)
        self.state = random_state(self.xs)
        self.path = save_xs(folder / f"{family}.safetensors", self.xs, self.state)
        self.net, self.identity = load_control(self.path)
        self.config: ModelConfig = replace(DEMO, unet=self.unet.config)
        self.x, self.sigma = normal(2, 4, 9, 12, seed=4) * 6.0, SCHEDULE.sigma(torch.tensor(400.0))
        self.hint = normal(1, 3, 72, 96, seed=5).sigmoid()
        self.texts = [normal(1, 7, self.unet.config.context_dim, seed=seed) for seed in (6, 7)]
        label = self.unet.config.label_dim
        self.labels = [None if label is None else normal(1, label, seed=seed) for seed in (8, 9)]

    def unit(self, **settings: object) -> ControlUnit:
        return ControlUnit(**{"net": self.net, "hint": self.hint, **settings})  # type: ignore[arg-type]

    def job(self, cfg: float, *units: ControlUnit, half: int = 0) -> Job:
        halves = [[Condition(t, units, label=y)] for t, y in zip(self.texts, self.labels, strict=True)]
        negative = halves[1] if cfg != 1.0 else []
        shape = tuple(self.x.shape)
        return Job(self.unet, self.config, SCHEDULE, halves[half], negative, shape, [float(self.sigma)])

    def noise(
        self, *units: ControlUnit, cfg: float = 1.0, half: int = 0, packed: bool = False, **how: object
    ) -> Tensor:
        """The prediction of the noise. half: whose text is used without guidance."""
        backend = Backend(Runtime(pack_weights=packed))
        made = denoiser(self.job(cfg, *units, half=half), backend, cfg, **how)  # type: ignore[arg-type]
        return (self.x - made(self.x, self.sigma)) / self.sigma


@pytest.fixture(scope="module", params=sorted(BASES))
def setting(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Setting:
    return Setting(request.param, tmp_path_factory.mktemp("xs"))


@torch.inference_mode()
def test_both_halves_of_the_guidance_and_one(setting: Setting) -> None:
    """The batch of both halves equals single runs, and a half without the net keeps the base's timestep too."""
    first, second = (setting.noise(setting.unit(), half=half) for half in (0, 1))
    assert relative_error(setting.noise(setting.unit(), cfg=3.0), second + 3.0 * (first - second)) <= TOLERANCE
    bare = setting.noise(half=1)
    assert relative_error(setting.noise(setting.unit(negative=0.0), cfg=3.0), bare + 3.0 * (first - bare)) <= TOLERANCE
    assert relative_error(first, setting.noise()) > 0.01


@torch.inference_mode()
def test_a_hint_for_each_picture_and_factors(setting: Setting) -> None:
    hints = torch.cat([setting.hint, setting.hint.flip(2)])
    each = setting.noise(setting.unit(hint=hints))
    alone = setting.noise(setting.unit()), setting.noise(setting.unit(hint=hints[1:]))
    assert relative_error(each, torch.cat([alone[0][:1], alone[1][1:]])) <= TOLERANCE
    assert relative_error(*alone) > 0.001
    half = setting.noise(setting.unit(items=(1.0, 0.5)))
    both = torch.cat([alone[0][:1], setting.noise(setting.unit(strength=0.5))[1:]])
    assert relative_error(half, both) <= TOLERANCE


@torch.inference_mode()
def test_strength_0_a_black_mask_and_a_closed_window_are_no_control(tmp_path: Path) -> None:
    setting = Setting("sd15", tmp_path, time_mix=None)
    plain = setting.noise()
    assert torch.equal(setting.noise(setting.unit(strength=0.0)), plain)
    assert torch.equal(setting.noise(setting.unit(start=0.9)), plain)
    assert relative_error(setting.noise(setting.unit(mask=torch.zeros(1, 72, 96))), plain) <= 1e-6
    # A white mask is none, and one half of the picture lies between both.
    whole, mask = setting.noise(setting.unit()), torch.ones(1, 72, 96)
    assert relative_error(setting.noise(setting.unit(mask=mask)), whole) <= 1e-6
    mask[..., 48:] = 0.0
    left = setting.noise(setting.unit(mask=mask))
    assert relative_error(left, whole) > 0.001 and relative_error(left, plain) > 0.001


@torch.inference_mode()
def test_block_weights_of_0_leave_the_exchange_out(tmp_path: Path) -> None:
    """With the weight of the last skip alone, only the last encoder block and the first decoder block count."""
    setting = Setting("sd15", tmp_path, time_mix=None)
    weights = [0.0] * (len(setting.unet.encoder.blocks) + 1)
    weights[-2] = 1.0
    state = dict(setting.state)
    last = len(weights) - 2
    for name in state:
        kept = name.startswith((f"to_base.{last}.", "to_decoder.0."))
        if name.startswith(("to_base.", "to_decoder.")) and not kept:
            state[name] = torch.zeros_like(state[name])
    net, _ = load_control(save_xs(tmp_path / "one.safetensors", setting.xs, state))
    found = setting.noise(setting.unit(block_weights=tuple(weights)))
    assert relative_error(found, setting.noise(setting.unit(net=net))) <= TOLERANCE
    assert relative_error(found, setting.noise()) > 0.001


@torch.inference_mode()
def test_in_a_chain_with_a_controlnet_and_another_one(setting: Setting) -> None:
    """Residuals of a ControlNet are added when the encoder has run, so that the net does not see them."""
    torch.manual_seed(3)
    net = ControlNet.from_unet(setting.unet, replace(setting.config.controlnet, unet=setting.unet.config))
    for zero in net.zeros:
        zero.conv.weight.normal_(std=0.1)
    other, _ = load_control(save_xs(setting.path.with_name("b.safetensors"), setting.xs, random_state(setting.xs, 2)))
    plain, own = setting.unit(net=net.eval()), setting.unit()
    both = setting.noise(own, plain)
    assert relative_error(setting.noise(plain, own), both) <= TOLERANCE
    assert relative_error(both, setting.noise(own)) > 0.001 and relative_error(both, setting.noise(plain)) > 0.001
    second = setting.unit(net=other, strength=0.5)
    three = setting.noise(own, plain, second)
    assert relative_error(setting.noise(own, second, plain), three) <= TOLERANCE
    assert relative_error(three, both) > 0.001


@torch.inference_mode()
@pytest.mark.parametrize(
    "how",
    [
        {"packed": True}, {"graphs": True}, {"chunk": 1}, {"shortcuts": Shortcuts(reuse_every=2)},
        {"shortcuts": Shortcuts(encoder_every=2)}, {"shortcuts": Shortcuts(deep_every=2)},
    ],
)  # fmt: skip
def test_accelerations_give_the_same(tmp_path: Path, how: dict[str, object]) -> None:
    setting = Setting("sd15", tmp_path)
    plain = setting.noise(setting.unit(), cfg=3.0)
    assert relative_error(setting.noise(setting.unit(), cfg=3.0, **how), plain) <= 1e-4  # type: ignore[arg-type]


@torch.inference_mode()
@pytest.mark.parametrize(
    "shortcuts",
    few_of([Shortcuts(reuse_every=3), Shortcuts(encoder_every=3), Shortcuts(deep_every=3)], Shortcuts(deep_every=3)),
)
def test_shortcuts_that_cannot_combine_say_so_and_the_others_run(tmp_path: Path, shortcuts: Shortcuts) -> None:
    setting, backend = Setting("sd15", tmp_path), Backend(Runtime(pack_weights=False))
    job, options = setting.job(1.0, setting.unit()), RunOptions(shortcuts)
    notes = blocked_choices(job, backend, run_context(job, backend, options, checks_each_step=False))
    assert [("ControlNet-XS" in note) for note in notes] == ([] if shortcuts.deep_every > 1 else [True])

    def picture(options: RunOptions) -> Tensor:
        model = DiffusionModel(setting.unet, setting.config, SCHEDULE)
        positive = [Condition(setting.texts[0], (setting.unit(strength=0.2),))]
        settings = SampleSettings(seed=1, steps=4, cfg=1.0)
        return generate(model, positive, [], torch.zeros(1, 4, 9, 12), settings, backend=backend, options=options)

    difference = relative_error(picture(options), picture(RunOptions()))
    # DeepCache continues the lower levels; the others have nothing to continue.
    assert difference > 1e-6 if shortcuts.deep_every > 1 else difference == 0.0


@torch.inference_mode()
def test_a_report_counts_it_and_the_memory_is_known(tmp_path: Path) -> None:
    setting, backend = Setting("sd15", tmp_path), Backend(Runtime(pack_weights=False))
    options = RunOptions(recorder=Recorder("run", True))
    units = (setting.unit(start=0.9, name="late"), setting.unit(name="whole"))
    generate(
        DiffusionModel(setting.unet, setting.config, SCHEDULE), [Condition(setting.texts[0], units)], [],
        torch.zeros(1, 4, 8, 8), SampleSettings(seed=1, steps=3, cfg=1.0), backend=backend, options=options,
    )  # fmt: skip
    counts = {unit.name: (unit.acted, unit.ran) for unit in options.report().units}
    assert counts["whole"] == (3, 3) and counts["late"] == (1, 1)
    plans = [plan_run(setting.job(1.0, *units), backend) for units in ((), (setting.unit(),))]
    assert all(plan.footprint.is_known for plan in plans)
    assert plans[1].footprint.weights > plans[0].footprint.weights
    assert plans[1].footprint.step > plans[0].footprint.step


# ------------------------------------------------------------------------------------------------------- files


@torch.inference_mode()
def test_the_authors_layout_is_the_same_net(tmp_path: Path) -> None:
    """Its heads and groups are those of the released nets, since it has no config."""
    setting = Setting("sd15", tmp_path)
    assert setting.net.config == replace(setting.xs, time_mix=1.0)
    path = save_xs(tmp_path / "original.safetensors", setting.xs, setting.state, ORIGINAL)
    net, identity = load_control(path)
    assert (identity.kind, identity.layout) == ("controlnet-xs", ORIGINAL)
    # The authors give the first norm of the middle the groups of its 8 + 64 channels, diffusers those of 8 and of 64.
    assert net.config.middle_groups == (24, 8)
    assert replace(net.config, middle_groups=(8, 8)) == setting.net.config
    same = ControlNetXS(setting.net.config).eval().requires_grad_(False)
    same.load_state_dict(net.state_dict())
    assert torch.equal(setting.noise(setting.unit(net=same)), setting.noise(setting.unit()))


def test_files_are_recognised_loaded_and_verified(setting: Setting) -> None:
    assert (setting.identity.kind, setting.identity.family) == ("controlnet-xs", "custom")
    assert isinstance(setting.net, ControlNetXS) and setting.net.needs_base
    assert inspect_file(setting.path).problem == ""
    assert verify_file(setting.path).passed
    done = setting.net.resolve(setting.unet)
    assert not done.needs_base and done.resolve(setting.unet) is done


def test_another_base_is_an_error(tmp_path: Path) -> None:
    setting, wrong = Setting("sd15", tmp_path), Setting("sdxl", tmp_path)
    with pytest.raises(UnfitError, match=r"was made for a base of widths \(32, 64, 64\) with 16 wide text"):
        wrong.noise(wrong.unit(net=setting.net))
    with pytest.raises(UnfitError, match="complete only with its base"):
        setting.net.bind(None)  # type: ignore[arg-type]


def test_damaged_and_other_files_are_errors(tmp_path: Path) -> None:
    setting = Setting("sd15", tmp_path)
    state = load_file(setting.path)
    del state["up_connections.1.ctrl_to_base.2.bias"]
    save_file(state, tmp_path / "damaged.safetensors")
    with pytest.raises(CheckpointError, match=r"missing: up_connections\.1\.ctrl_to_base\.2\.bias"):
        load_control(tmp_path / "damaged.safetensors")
    joint = {"control_to_base_for_conv_in.weight": torch.zeros(32, 8, 1, 1), "base_conv_in.weight": torch.zeros(1)}
    save_file(joint, tmp_path / "joint.safetensors")
    with pytest.raises(CheckpointError, match="ControlNet-XS with its base in it"):
        load_control(tmp_path / "joint.safetensors")
