"""The convolutional pose machines of OpenPose (Cao et al. 2017, Simon et al. 2017), with the official key names.

body_pose_model.pth, hand_pose_model.pth and facenet.pth name each convolution at the top level. So all convolutions
here are attributes of one module, and tables give their order.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

_POOL = "pool"
# Name, input width, width, kernel.
_VGG = (
    ("conv1_1", 3, 64, 3), ("conv1_2", 64, 64, 3), (_POOL, 0, 0, 0),
    ("conv2_1", 64, 128, 3), ("conv2_2", 128, 128, 3), (_POOL, 0, 0, 0),
    ("conv3_1", 128, 256, 3), ("conv3_2", 256, 256, 3), ("conv3_3", 256, 256, 3), ("conv3_4", 256, 256, 3),
    (_POOL, 0, 0, 0), ("conv4_1", 256, 512, 3), ("conv4_2", 512, 512, 3),
)  # fmt: skip
_BODY_TRUNK = (*_VGG, ("conv4_3_CPM", 512, 256, 3), ("conv4_4_CPM", 256, 128, 3))
_HAND_TRUNK = (
    *_VGG, ("conv4_3", 512, 512, 3), ("conv4_4", 512, 512, 3), ("conv5_1", 512, 512, 3), ("conv5_2", 512, 512, 3),
    ("conv5_3_CPM", 512, 128, 3),
)  # fmt: skip


class PoseMachine(nn.Module):
    """Builds stacks of convolutions, with a ReLU after each one except the last of a stage."""

    def _stack(self, layers: Sequence[tuple[str, int, int, int]], *, last_relu: bool = False) -> list[nn.Sequential]:
        """layers: name, input width, width, kernel of each convolution; `_POOL` halves the size.

        The stack is in a list, so that torch registers the convolutions at the top level only, as the files name them.
        """
        modules: list[nn.Module] = []
        for name, width_in, width, kernel in layers:
            if name == _POOL:
                modules.append(nn.MaxPool2d(2))
                continue
            conv = nn.Conv2d(width_in, width, kernel, padding=kernel // 2)
            self.add_module(name, conv)
            modules += [conv, nn.ReLU()]
        return [nn.Sequential(*(modules if last_relu else modules[:-1]))]

    def _stage(
        self, stage: int, width_in: int, width: int, branch: str = "", *, last_relu: bool = False
    ) -> list[nn.Sequential]:
        sizes = [(width_in, 128, 7), *[(128, 128, 7)] * 4, (128, 128, 1), (128, width, 1)]
        layers = [(f"Mconv{number}_stage{stage}{branch}", *size) for number, size in enumerate(sizes, start=1)]
        return self._stack(layers, last_relu=last_relu)


class BodyNet(PoseMachine):
    """(B,3,H,W) BGR -0.5..0.5, sides multiples of 8 -> part affinity fields (B,38,h,w), heat maps (B,19,h,w).

    h = H / 8. The last heat maps pass a ReLU, as in the official code.
    """

    def __init__(self) -> None:
        super().__init__()
        self.trunk = self._stack(_BODY_TRUNK, last_relu=True)
        self.fields, self.heat = (
            self._stack(
                [(f"conv5_{number}_CPM_{branch}", 128, 128, 3) for number in (1, 2, 3)]
                + [(f"conv5_4_CPM_{branch}", 128, 512, 1), (f"conv5_5_CPM_{branch}", 512, width, 1)]
            )
            for branch, width in (("L1", 38), ("L2", 19))
        )
        for stage in range(2, 7):
            self.fields += self._stage(stage, 185, 38, "_L1")
            self.heat += self._stage(stage, 185, 19, "_L2", last_relu=stage == 6)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = features = self.trunk[0](x)
        for to_fields, to_heat in zip(self.fields, self.heat, strict=True):
            fields, heat = to_fields(h), to_heat(h)
            h = torch.cat((fields, heat, features), 1)
        return fields, heat


class HandNet(PoseMachine):
    """(B,3,H,W) BGR -0.5..0.5, sides multiples of 8 -> heat maps (B,22,H/8,W/8), the last the background."""

    width = 22

    def __init__(self) -> None:
        super().__init__()
        self.trunk = self._stack(_HAND_TRUNK, last_relu=True)
        self.heat = self._stack([("conv6_1_CPM", 128, 512, 1), ("conv6_2_CPM", 512, self.width, 1)])
        for stage in range(2, 7):
            self.heat += self._stage(stage, 128 + self.width, self.width)

    def forward(self, x: Tensor) -> Tensor:
        h = features = self.trunk[0](x)
        for to_heat in self.heat:
            heat = to_heat(h)
            h = torch.cat((heat, features), 1)
        return heat


class FaceNet(HandNet):
    """(B,3,H,W) BGR -0.5..0.5, sides multiples of 8 -> heat maps (B,71,H/8,W/8), the last the background."""

    width = 71
