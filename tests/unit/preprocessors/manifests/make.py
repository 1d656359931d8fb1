"""Write the manifests: key names and shapes of the public reference nets, from their code, not from the files.

    python make.py CHECKOUT_OF_huggingface/controlnet_aux CHECKOUT_OF_Fannovel16/comfyui_controlnet_aux

Each net is instantiated by its own public code; what that code imports beside torch and plays no part in
the nets' shapes is replaced by empty modules. Packages that are not installed need not be.
"""

from __future__ import annotations

import functools
import importlib
import subprocess
import sys
import types
from pathlib import Path

import torch
from comfyui_controlnet_core.controlnet_core.models.module_tree import on_meta
from torch import nn

HERE = Path(__file__).parent
_ABSENT = (
    "torchvision", "torchvision.transforms", "torchvision.transforms.transforms", "matplotlib", "matplotlib.pyplot",
    "skimage", "skimage.measure", "timm", "huggingface_hub",
)  # fmt: skip


class _Empty(types.ModuleType):
    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **kwargs: None


def main(plain: Path, pack: Path) -> None:
    for name in _ABSENT:
        module = _Empty(name)
        module.__path__ = []
        sys.modules.setdefault(name, module)
    for package, folder in (("controlnet_aux", plain), ("custom_controlnet_aux", pack)):
        _package(package, folder / "src" / package)
    for package in ("manga_line", "depth_anything_v2"):  # without what their own __init__ would import
        _package(f"custom_controlnet_aux.{package}", pack / "src/custom_controlnet_aux" / package)
    sys.path.insert(0, str(plain / "src/controlnet_aux/normalbae/nets/submodules/efficientnet_repo"))
    with on_meta():
        for name, net in _plain_nets():
            _write(name, net, plain, "huggingface/controlnet_aux")
    for name, net in _pack_nets():
        _write(name, net, pack, "Fannovel16/comfyui_controlnet_aux")


def _package(name: str, folder: Path) -> None:
    module = types.ModuleType(name)
    module.__path__ = [str(folder)]
    sys.modules[name] = module


def _plain_nets():
    load = importlib.import_module
    yield "hed", load("controlnet_aux.hed").ControlNetHED_Apache2()
    yield "pidinet", load("controlnet_aux.pidi.model").pidinet()
    yield "teed", load("controlnet_aux.teed.ted").TED()
    yield "mlsd", load("controlnet_aux.mlsd.models.mbv2_mlsd_large").MobileV2_MLSD_Large()
    yield "lineart", load("controlnet_aux.lineart").Generator(3, 1, 3)
    norm = functools.partial(nn.InstanceNorm2d, affine=False, track_running_stats=False)
    yield "lineart_anime", load("controlnet_aux.lineart_anime").UnetGenerator(3, 1, 8, 64, norm_layer=norm)
    poses = load("controlnet_aux.open_pose.model")
    yield "openpose_body", _Renamed(poses.bodypose_model())
    yield "openpose_hand", _Renamed(poses.handpose_model())
    yield "openpose_face", load("controlnet_aux.open_pose.face").FaceNet()
    yield "normal_bae", _normal_bae(load)


def _pack_nets():
    load = importlib.import_module
    yield "lineart_manga", load("custom_controlnet_aux.manga_line.model_torch").res_skip()
    depth = load("custom_controlnet_aux.depth_anything_v2.dpt").DepthAnythingV2
    yield "depth_anything_small", depth("vits", 64, [48, 96, 192, 384])
    yield "depth_anything_base", depth("vitb", 128, [96, 192, 384, 768])
    yield "depth_anything_large", depth("vitl", 256, [256, 512, 1024, 1024])


class _Renamed(nn.Module):
    """The files of OpenPose name the layers without the part of the net, which the code strips when it loads."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.state = {key.partition(".")[2]: value for key, value in net.state_dict().items()}

    def state_dict(self, *args: object, **kwargs: object) -> dict[str, torch.Tensor]:
        return self.state


def _normal_bae(load) -> nn.Module:
    backbone = load("geffnet").create_model("tf_efficientnet_b5_ap", pretrained=False)
    backbone.global_pool, backbone.classifier = nn.Identity(), nn.Identity()
    options = types.SimpleNamespace(architecture="BN", sampling_ratio=0.4, importance_ratio=0.7)
    net, encoder = nn.Module(), nn.Module()
    encoder.original_model = backbone
    net.encoder = encoder
    net.decoder = load("controlnet_aux.normalbae.nets.submodules.decoder").Decoder(options)
    return net


def _write(name: str, net: nn.Module, checkout: Path, repository: str) -> None:
    commit = (checkout / "COMMIT").read_text().strip() if (checkout / "COMMIT").is_file() else _commit(checkout)
    head = [f"# from code, not from the file: {repository} at {commit}"]
    rows = [f"{key} {'x'.join(map(str, value.shape)) or '-'}" for key, value in net.state_dict().items()]
    (HERE / f"{name}.txt").write_text("\n".join(head + rows) + "\n", "utf-8")
    print(name, len(rows))


def _commit(checkout: Path) -> str:
    return subprocess.run(
        ["git", "-C", str(checkout), "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
