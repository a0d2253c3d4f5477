"""Image processors with steps of unknown names: what protects is a comparison, not a list."""

import numpy as np
import pytest
import torch
from PIL import Image

from probekit.encoders.preparation import odd_pictures
from probekit.runtime.errors import UserError


def by_itself(x):
    return (x - x.mean()) / x.std()


UNKNOWN = {
    "do_nothing": lambda x: x,
    "do_gamma": lambda x: 255 * (x / 255) ** 2,
    "do_mirror": lambda x: x[:, ::-1],
    "do_swap": lambda x: x[..., ::-1],
    "do_standardise": by_itself,
    "do_equalise": lambda x: x * (200 / x.max()),
    "do_noise": lambda x: x + np.random.default_rng().random(x.shape),
    "do_jitter": lambda x: x + np.random.rand(),  # noqa: NPY002  (what a processor may call)
}


AT_THE_END = {"do_clip": lambda x: np.clip(x, -0.5, 0.5), "do_square": lambda x: x * abs(x)}


def unknown_processor(step):
    """A processor class with one option that nothing here knows, and the steps of usual ones."""
    T = pytest.importorskip("transformers", reason="transformers is not installed")

    class Processor(T.image_processing_utils.BaseImageProcessor):
        model_input_names = ("pixel_values",)

        def __init__(self, do_normalize=True, image_mean=0.5, image_std=0.25, **settings):
            super().__init__(**settings)
            self.do_normalize, self.image_mean, self.image_std = do_normalize, image_mean, image_std
            setattr(self, step, True)
            self.calls = 0

        def __call__(self, image, return_tensors=None, do_normalize=None, **_):
            self.calls += 1
            x = np.asarray(image.resize((32, 32)), np.float32)
            x = UNKNOWN.get(step, lambda x: x)(x)
            if do_normalize is None or do_normalize:
                x = (x / 255 - self.image_mean) / self.image_std
            x = AT_THE_END.get(step, lambda x: x)(x)
            if step == "do_count":
                x = x + self.calls
            x = np.moveaxis(x, -1, 0)[None].astype(np.uint8 if do_normalize is False else np.float32)
            return T.BatchFeature({"pixel_values": x}, tensor_type=return_tensors)

    return Processor()


def hf_encoder(processor, **options):
    T = pytest.importorskip("transformers", reason="transformers is not installed")
    from probekit.encoders.hf import from_transformers

    torch.manual_seed(0)
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    model = T.ViTModel(T.ViTConfig(**small, patch_size=16, image_size=32))
    return from_transformers(model, processor, {"name": "x", "source": "x"}, **options)


@pytest.mark.parametrize("step", [*UNKNOWN, *AT_THE_END, "do_count"])
def test_a_processor_with_an_unknown_step_is_run_or_refused(step):
    processor = unknown_processor(step)
    if step in ("do_noise", "do_jitter", "do_count"):
        with pytest.raises(UserError, match="different results for the same image"):
            hf_encoder(processor)
        return
    encoder = hf_encoder(processor)
    for picture in odd_pictures():
        ours = encoder._normalise(encoder.prepare(picture)[None], torch.device("cpu"))[0].numpy()
        theirs = processor(Image.fromarray(picture), return_tensors="np")["pixel_values"][0]
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=3e-6 * max(1, np.abs(theirs).max()))


def test_what_the_user_asks_is_done_or_refused():
    with pytest.raises(UserError, match="takes no interpolation"):
        hf_encoder(unknown_processor("do_nothing"), interpolation="box")
    for step in ("do_standardise", "do_clip"):
        with pytest.raises(UserError, match="does not end with a scale and shift"):
            hf_encoder(unknown_processor(step), mean=0.1)
