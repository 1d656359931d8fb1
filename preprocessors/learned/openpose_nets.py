"""The convolutional pose machines of OpenPose (Cao et al. 2017, Simon et al. 2017), with the official key names.

body_pose_model.pth, hand_pose_model.pth and facenet.pth name each convolution at the top level. So all convolutions
here are attributes of one module, and tables give their order.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_POOL = "pool"
# Name, input width, output width. All of these are 3x3.
_VGG = (
    ("conv1_1", 3, 64), ("conv1_2", 64, 64), (_POOL, 0, 0),
    ("conv2_1", 64, 128), ("conv2_2", 128, 128), (_POOL, 0, 0),
    ("conv3_1", 128, 256), ("conv3_2", 256, 256), ("conv3_3", 256, 256), ("conv3_4", 256, 256), (_POOL, 0, 0),
    ("conv4_1", 256, 512), ("conv4_2", 512, 512),
)  # fmt: skip
_BODY_TRUNK = (*_VGG, ("conv4_3_CPM", 512, 256), ("conv4_4_CPM", 256, 128))
_HAND_TRUNK = (
    *_VGG, ("conv4_3", 512, 512), ("conv4_4", 512, 512), ("conv5_1", 512, 512), ("conv5_2", 512, 512),
    ("conv5_3_CPM", 512, 128),
)  # fmt: skip


class PoseMachine(nn.Module):
    """Convolutions by name, with a ReLU after each one except the last of a stage."""

    def _add(self, name: str, width_in: int, width: int, kernel: int = 3) -> None:
        self.add_module(name, nn.Conv2d(width_in, width, kernel, padding=kernel // 2))

    def _add_trunk(self, trunk: Sequence[tuple[str, int, int]]) -> None:
        for name, width_in, width in trunk:
            if name != _POOL:
                self._add(name, width_in, width)

    def _add_stage(self, stage: int, width_in: int, width: int, branch: str = "") -> None:
        for number, (before, now, kernel) in enumerate(
            [(width_in, 128, 7), *[(128, 128, 7)] * 4, (128, 128, 1), (128, width, 1)], start=1
        ):
            self._add(f"Mconv{number}_stage{stage}{branch}", before, now, kernel)

    def _run_trunk(self, trunk: Sequence[tuple[str, int, int]], x: Tensor) -> Tensor:
        for name, _, _ in trunk:
            x = F.max_pool2d(x, 2) if name == _POOL else F.relu(getattr(self, name)(x))
        return x

    def _run(self, names: Sequence[str], x: Tensor, *, last_relu: bool = False) -> Tensor:
        for name in names[:-1]:
            x = F.relu(getattr(self, name)(x))
        x = getattr(self, names[-1])(x)
        return F.relu(x) if last_relu else x

    def _run_stage(self, stage: int, x: Tensor, branch: str = "", *, last_relu: bool = False) -> Tensor:
        names = [f"Mconv{number}_stage{stage}{branch}" for number in range(1, 8)]
        return self._run(names, x, last_relu=last_relu)


class BodyNet(PoseMachine):
    """(B,3,H,W) BGR -0.5..0.5, sides multiples of 8 -> part affinity fields (B,38,h,w), heat maps (B,19,h,w).

    h = H / 8. The last heat maps pass a ReLU, as in the official code.
    """

    def __init__(self) -> None:
        super().__init__()
        self._add_trunk(_BODY_TRUNK)
        for branch, width in (("L1", 38), ("L2", 19)):
            for number in (1, 2, 3):
                self._add(f"conv5_{number}_CPM_{branch}", 128, 128)
            self._add(f"conv5_4_CPM_{branch}", 128, 512, 1)
            self._add(f"conv5_5_CPM_{branch}", 512, width, 1)
            for stage in range(2, 7):
                self._add_stage(stage, 185, width, f"_{branch}")

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self._run_trunk(_BODY_TRUNK, x)
        fields, heat = (
            self._run([f"conv5_{number}_CPM_{branch}" for number in range(1, 6)], features) for branch in ("L1", "L2")
        )
        for stage in range(2, 7):
            h = torch.cat((fields, heat, features), 1)
            fields = self._run_stage(stage, h, "_L1")
            heat = self._run_stage(stage, h, "_L2", last_relu=stage == 6)
        return fields, heat


class HandNet(PoseMachine):
    """(B,3,H,W) BGR -0.5..0.5, sides multiples of 8 -> heat maps (B,22,H/8,W/8), the last the background."""

    width = 22

    def __init__(self) -> None:
        super().__init__()
        self._add_trunk(_HAND_TRUNK)
        self._add("conv6_1_CPM", 128, 512, 1)
        self._add("conv6_2_CPM", 512, self.width, 1)
        for stage in range(2, 7):
            self._add_stage(stage, 128 + self.width, self.width)

    def forward(self, x: Tensor) -> Tensor:
        features = self._run_trunk(_HAND_TRUNK, x)
        heat = self._run(("conv6_1_CPM", "conv6_2_CPM"), features)
        for stage in range(2, 7):
            heat = self._run_stage(stage, torch.cat((heat, features), 1))
        return heat


class FaceNet(HandNet):
    """(B,3,H,W) BGR -0.5..0.5, sides multiples of 8 -> heat maps (B,71,H/8,W/8), the last the background."""

    width = 71
