"""Our nets beside the public reference code on the same random weights: the package controlnet-aux, if installed.

    pip install --no-deps controlnet-aux

Its single modules are imported without the package, which needs much more; what they import and the nets do not
need is replaced by empty modules while the test runs.
"""

from __future__ import annotations

import functools
import importlib
import sys
import types
from collections.abc import Callable, Iterator
from importlib.util import find_spec

import pytest
import torch
import torch.nn.functional as F
from comfyui_controlnet_core.preprocessors.learned import lineart, mlsd, openpose_nets
from comfyui_controlnet_core.preprocessors.learned.hed import HED
from comfyui_controlnet_core.preprocessors.learned.pidinet import PiDiNet
from comfyui_controlnet_core.preprocessors.learned.teed import TEED
from torch import Tensor, nn

pytestmark = pytest.mark.skipif(find_spec("controlnet_aux") is None, reason="controlnet-aux is not installed")

UNUSED = ("torchvision", "torchvision.transforms", "matplotlib", "matplotlib.pyplot", "timm", "huggingface_hub")
CLOSE = 1e-4


class Empty(types.ModuleType):
    """A module whose every attribute is a function that gives None."""

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **kwargs: None


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], types.ModuleType]]:
    """module("hed") -> controlnet_aux.hed; gone again after the test."""
    found = find_spec("controlnet_aux")
    assert found is not None
    package = types.ModuleType("controlnet_aux")
    package.__path__ = list(found.submodule_search_locations or ())
    before = set(sys.modules)
    for name in UNUSED:
        if name not in sys.modules:
            empty = Empty(name)
            empty.__path__ = []
            monkeypatch.setitem(sys.modules, name, empty)
    monkeypatch.setitem(sys.modules, "controlnet_aux", package)
    yield lambda name: importlib.import_module(f"controlnet_aux.{name}")
    for name in set(sys.modules) - before:
        if name.startswith("controlnet_aux."):
            del sys.modules[name]


def randomized(net: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for name, value in net.state_dict().items():
        if value.is_floating_point():
            scale = 0.1 if value.ndim < 2 else value[0].numel() ** -0.5
            value.copy_(torch.randn(value.shape, generator=generator) * scale)
            if name.endswith("running_var"):
                value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
    return net.eval().requires_grad_(False)


def mean_of_maps(maps: list[Tensor]) -> Tensor:
    """The sigmoid of the mean of edge maps, which the reference takes outside of its net."""
    size = maps[0].shape[-2:]
    return torch.sigmoid(torch.stack([F.interpolate(m, size, mode="bilinear") for m in maps]).mean(0))


def last(maps: list[Tensor]) -> Tensor:
    return maps[-1]


def anime(load: Callable[[str], types.ModuleType]) -> nn.Module:
    norm = functools.partial(nn.InstanceNorm2d, affine=False, track_running_stats=False)
    return load("lineart_anime").UnetGenerator(3, 1, 8, 64, norm_layer=norm)


CASES = {
    "hed": (HED, lambda load: load("hed").ControlNetHED_Apache2(), mean_of_maps),
    "pidinet": (PiDiNet, lambda load: load("pidi.model").pidinet(), last),
    "teed": (TEED, lambda load: load("teed.ted").TED(), mean_of_maps),
    "mlsd": (mlsd.MLSD, lambda load: load("mlsd.models.mbv2_mlsd_large").MobileV2_MLSD_Large(), None),
    "lineart": (lineart.LineartGenerator, lambda load: load("lineart").Generator(3, 1, 3), None),
    "lineart_anime": (lineart.AnimeGenerator, anime, None),
    "openpose_body": (openpose_nets.BodyNet, lambda load: load("open_pose.model").bodypose_model(), None),
    "openpose_hand": (openpose_nets.HandNet, lambda load: load("open_pose.model").handpose_model(), None),
    "openpose_face": (openpose_nets.FaceNet, lambda load: load("open_pose.face").FaceNet(), last),
}


@pytest.mark.parametrize("name", CASES)
def test_the_same_weights_give_the_same_maps(name: str, module: Callable[[str], types.ModuleType]) -> None:
    build, reference, reduce = CASES[name]
    ours, theirs = randomized(build()), reference(module)
    state = ours.state_dict()
    wanted = list(theirs.state_dict())
    if set(wanted) != set(state):  # OpenPose's files name the layers without the part of the net
        state = {key: state[key.partition(".")[2]] for key in wanted}
    theirs.load_state_dict(state, strict=True)
    side = 256 if name == "lineart_anime" else 64
    picture = torch.rand(2, 4 if name == "mlsd" else 3, side, side, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        found, expected = ours(picture), theirs.eval()(picture)
    expected = expected if reduce is None else reduce(list(expected))
    pairs = zip(found, expected, strict=True) if isinstance(found, tuple) else ((found, expected),)
    for one, other in pairs:
        assert one.shape == other.shape and float(other.std()) > 1e-4
        assert float((one - other).abs().max()) <= CLOSE * max(1.0, float(other.abs().max()))
