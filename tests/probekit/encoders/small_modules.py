"""Small torch modules whose layers do what a test asks for."""

import torch
from torch import nn


class Convs(nn.Module):
    """Two convolutions, and one more operation between them."""

    def __init__(self, operation=lambda x: x):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.operation = nn.Conv2d(3, 8, 3, 2), nn.Conv2d(8, 8, 3, 2), operation

    def forward(self, x):
        return self.b(self.operation(self.a(x)))


class Returns(nn.Module):
    """A module whose layer `b` returns what a function makes of a map of 8 x 8 x 8."""

    def __init__(self, function):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv2d(3, 8, 4, 4), Function(function)

    def forward(self, x):
        return self.b(self.a(x))


class Function(nn.Module):
    """A layer that is a function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Classifier(nn.Module):
    """Two convolutions with a norm between, and a head, under the names of a ResNet."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1, self.layer1, self.fc = (
            nn.Conv2d(3, 4, 3, 2),
            nn.BatchNorm2d(4),
            nn.Conv2d(4, 4, 3),
            nn.Linear(4, 9),
        )

    def forward(self, x):
        return self.fc(self.layer1(self.bn1(self.conv1(x))).mean((2, 3)))


CLASSIFIER = f"torch:{__name__}:Classifier"  # for load_encoder
