"""timm for the tests, without a place for it among the environment's packages.

timm imports torchvision, whose published builds need a CUDA build of torch for their operators; with a CPU torch its
import fails, and with it transformers' import, which looks for torchvision. `make setup` therefore puts both into a
folder of their own, and this fixture imports them from there. Only the operators' names are declared: pictures are
prepared by torchvision's own Python code on Pillow images, which calls none of them.
"""

import sys
from pathlib import Path

import pytest
import torch


def import_timm(stay=False):
    """timm, from the environment or from `timm-site`; None where it is in neither.

    `stay` leaves that folder on the path, so that transformers, imported later, sees torchvision too.
    """
    try:
        import timm
    except Exception:
        site = Path(sys.prefix) / "timm-site"
        if not (site / "timm").is_dir():
            return None
        declared = torch.library.Library("torchvision", "DEF")
        # a CUDA build of torch loads the operators themselves, and declaring one twice ends the process
        for name in () if torch.version.cuda else ("nms", "qnms"):
            declared.define(f"{name}(Tensor boxes, Tensor scores, float threshold) -> Tensor")
        sys.path.append(str(site))
        try:
            import timm
            import timm.data
        finally:
            if not stay:
                sys.path.remove(str(site))
        timm.declared_operators = declared  # they are undeclared when this object goes
    return timm


@pytest.fixture(scope="session")
def timm():
    found = import_timm()
    if found is None:
        pytest.skip("timm is not installed (make setup puts it into timm-site)")
    return found
