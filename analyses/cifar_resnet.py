"""The supervised CIFAR-10 ResNets of He et al. 2015 (section 4.2), as torch modules for `probekit extract`.

    probekit extract torch:analyses.cifar_resnet:resnet20 'data/cifar10-*.zip' --layers conv1 --layers 'layer?.?' \
        --weights resnet20-12fca82f.th --state-key state_dict --strip-prefix module. \
        --mean 0.485 0.456 0.406 --std 0.229 0.224 0.225 --out resnet20.h5

Three stages of n blocks at 16, 32 and 64 channels, shortcuts of option A (every second pixel, zero channels; no
weights). Weights: https://github.com/akamaster/pytorch_resnet_cifar10 (BSD-2-Clause). Letters: B images, C channels.
"""

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from probekit.encoders import Preparation


class Block(nn.Module):
    """Two 3 x 3 convolutions and the shortcut."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(n_out)
        self.stride, self.added = stride, (n_out - n_in) // 2

    def forward(self, x_BCHW: Tensor) -> Tensor:
        short = F.pad(x_BCHW[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.added, self.added))
        x_BCHW = F.relu(self.bn1(self.conv1(x_BCHW)))
        return F.relu(self.bn2(self.conv2(x_BCHW)) + short)


class ResNet(nn.Module):
    """6 n + 2 layers; `conv1` and the blocks `layerS.K` are the layers to probe."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, n, 1)
        self.layer2 = _stage(16, 32, n, 2)
        self.layer3 = _stage(32, 64, n, 2)
        self.linear = nn.Linear(64, 10)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BCHW = F.relu(self.bn1(self.conv1(x_BCHW)))
        x_BCHW = self.layer3(self.layer2(self.layer1(x_BCHW)))
        return self.linear(x_BCHW.mean((2, 3)))


def _stage(n_in: int, n_out: int, n: int, stride: int) -> nn.Sequential:
    return nn.Sequential(Block(n_in, n_out, stride), *(Block(n_out, n_out, 1) for _ in range(n - 1)))


def resnet20() -> tuple[ResNet, Preparation]:
    """Return ResNet-20 for `--weights`, and its image preparation."""
    return ResNet(3), Preparation(crop=(32, 32), interpolation="bilinear")
