"""A timm model that transformers wraps, as `hf:` runs it; a program of its own: transformers looks for timm only once.

`python timm_wrapper.py FOLDER` writes two such models and prints "same" for each that equals timm's own.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from conftest import import_timm

timm = import_timm(stay=True)
for architecture in ("test_resnet", "test_vit"):
    folder = Path(sys.argv[1], architecture)
    folder.mkdir()
    torch.manual_seed(0)
    model = timm.create_model(architecture, num_classes=0).eval()
    torch.save({f"timm_model.{key}": value for key, value in model.state_dict().items()}, folder / "pytorch_model.bin")
    settings = {"input_size": [3, 96, 96], "test_input_size": [3, 128, 128], "crop_pct": 0.8, "crop_mode": "squash"}
    settings |= {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4], "interpolation": "bilinear"}
    about = {"architecture": architecture, "num_classes": 0, "pretrained_cfg": settings, "model_type": "timm_wrapper"}
    (folder / "config.json").write_text(json.dumps(about))

    from PIL import Image
    from timm.data import create_transform, resolve_data_config

    from probekit.encoders import load_encoder
    from probekit.encoders.preparation import odd_pictures

    transform = create_transform(**resolve_data_config(pretrained_cfg=settings), is_training=False)
    encoder = load_encoder(f"hf:{folder}")
    x = torch.stack([transform(Image.fromarray(picture)) for picture in odd_pictures()])
    ours = np.stack([encoder.prepare(picture) for picture in odd_pictures()])
    assert torch.allclose(encoder._normalise(ours, torch.device("cpu")), x, atol=1e-6)
    with torch.no_grad():
        maps = model.forward_intermediates(x, intermediates_only=True)
    for found, expected in zip(encoder(ours, np.arange(4)), maps, strict=True):
        assert torch.allclose(found, expected.mean((2, 3)), atol=1e-5)
    sys.stdout.write("same\n")
