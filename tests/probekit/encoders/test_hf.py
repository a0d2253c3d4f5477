"""Hugging Face encoders against a plain forward pass with all hidden states; tiny random models, no download."""

import json

import numpy as np
import pytest
import torch

from probekit import extract, load_dataset
from probekit.encoders import load_encoder
from probekit.runtime.errors import UserError

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 16,
    "patch_size": 4,
}
# dropout that any training mode would show
DROP = {"hidden_dropout_prob": 0.5, "attention_probs_dropout_prob": 0.5}
STAGES = {"image_size": 32, "patch_size": 2, "embed_dim": 8, "depths": [1, 2], "num_heads": [2, 2], "window_size": 4}
CONFIGS = {
    "vit": (transformers.ViTConfig, {**SIZES, **DROP}, 1),
    "dinov2": (transformers.Dinov2Config, {**SIZES, **DROP, "drop_path_rate": 0.5}, 1),
    "registers": (transformers.Dinov2WithRegistersConfig, {**SIZES, "num_register_tokens": 4}, 5),
    "deit": (transformers.DeiTConfig, {**SIZES, **DROP}, 2),
    "beit": (transformers.BeitConfig, {**SIZES, **DROP, "drop_path_rate": 0.5}, 1),
    "clip-vision": (transformers.CLIPVisionConfig, {**SIZES, "attention_dropout": 0.5}, 1),
    "siglip": (transformers.SiglipVisionConfig, {**SIZES, "attention_dropout": 0.5}, 0),
    "mae": (transformers.ViTMAEConfig, {**SIZES, **DROP}, 1),
    "swin": (transformers.SwinConfig, {**STAGES, **DROP, "drop_path_rate": 0.5}, 0),
    "hiera": (
        transformers.HieraConfig,
        {
            "image_size": [32, 32],
            "patch_size": [7, 7],
            "patch_stride": [4, 4],
            "patch_padding": [3, 3],
            "embed_dim": 8,
            "depths": [1, 2],
            "num_heads": [1, 2],
            "num_query_pool": 1,
            "masked_unit_size": [4, 4],
            "masked_unit_attention": [True, False],
            "drop_path_rate": 0.5,
        },
        0,
    ),
    "convnext": (
        transformers.ConvNextConfig,
        {"hidden_sizes": [8, 16], "depths": [1, 2], "num_stages": 2, "image_size": 32, "drop_path_rate": 0.5},
        0,
    ),
    "resnet": (
        transformers.ResNetConfig,
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
        0,
    ),
}
# models with a norm behind the last block, whose result is a layer of its own
NORMED = ("vit", "dinov2", "registers", "deit", "siglip", "mae", "swin")
MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]
ROWS = np.arange(3)


def save(folder, model, side, **processor):
    model.save_pretrained(folder)
    settings = {"image_mean": MEAN, "image_std": STD, "size": {"height": side, "width": side}, "resample": 3}
    settings["image_processor_type"] = "ViTImageProcessor"
    (folder / "preprocessor_config.json").write_text(json.dumps({**settings, **processor}))
    return folder


def tiny(tmp_path, kind):
    make, values, prefix = CONFIGS[kind]
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(make(**values))
    with torch.no_grad():  # LayerScale and zero-initialised tokens would hide errors
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    side = np.max(values.get("image_size", 32)).item()
    return save(tmp_path / kind, model, side), model.eval(), side, prefix


def pictures(side):
    return np.random.default_rng(1).integers(0, 256, (3, side, side, 3), dtype=np.uint8)


def plain_states(model, images, kind):
    x = (torch.tensor(images).permute(0, 3, 1, 2) / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(
        3, 1, 1
    )
    more = {}
    if kind == "mae":
        model.config.mask_ratio = 0.0
        more["noise"] = torch.arange(16.0).expand(3, -1)
    with torch.no_grad():
        out = model(pixel_values=x, output_hidden_states=True, **more)
    return out.hidden_states, out.last_hidden_state


def pooled(h, prefix, pool="mean"):
    if h.ndim == 4:
        return h.mean((2, 3))
    mean = h[:, prefix:].mean(1)
    return {"mean": mean, "cls": h[:, 0], "both": torch.cat([h[:, 0], mean], 1)}[pool]


@pytest.mark.parametrize("kind", CONFIGS)
def test_every_hidden_state_equals_a_plain_forward_pass(tmp_path, kind):
    folder, model, side, prefix = tiny(tmp_path, kind)
    images = pictures(side)
    states, last = plain_states(model, images, kind)
    encoder = load_encoder(f"hf:{folder}")
    found = encoder(images, ROWS)
    makers = encoder.provenance["hidden_states"]
    named = dict(zip((makers[layer].partition(",")[0] for layer in encoder.layers), found, strict=True))
    for k, h in enumerate(states):
        torch.testing.assert_close(named[f"hidden_states[{k}]"], pooled(h, prefix), rtol=1e-4, atol=1e-5)
    if kind in NORMED:
        torch.testing.assert_close(found[-1], pooled(last, prefix), rtol=1e-4, atol=1e-5)
        assert f"{encoder.layers[-1]} is the last one after the final norm" in encoder.provenance["norm"]
    blocks = [name for name, state in encoder.provenance["hidden_states"].items() if "a block inside" in state]
    assert len(found) == len(states) + (kind in NORMED) + len(blocks)
    assert [f.shape[1] for f in found] == list(encoder.widths)
    json.dumps(encoder.provenance)
    if prefix:
        both = load_encoder(f"hf:{folder}", pool="both")(images, ROWS)
        torch.testing.assert_close(both[2], pooled(states[2], prefix, "both"), rtol=1e-4, atol=1e-5)
        assert blocks == []
    else:
        with pytest.raises(UserError, match="no CLS token"):
            load_encoder(f"hf:{folder}", pool="cls")


def test_a_state_that_is_a_submodules_output_in_another_order_is_found_and_said(tmp_path):
    encoder = load_encoder(f"hf:{tiny(tmp_path, 'hiera')[0]}")
    makers = encoder.provenance["hidden_states"]
    assert [makers[layer] for layer in encoder.layers] == [
        "hidden_states[0], whose positions are in another order",
        "hidden_states[1]",
        "a block inside hidden_states[2]",
        "hidden_states[2]",
    ]
    assert "masked" not in encoder.provenance["input"]
    assert [encoder.provenance["decisions"][layer]["positions"] for layer in encoder.layers] == [64, 64, 16, 16]


def test_every_block_of_a_convnext_equals_the_blocks_called_one_by_one(tmp_path):
    folder, model, side, _ = tiny(tmp_path, "convnext")
    images = pictures(side)
    x = (torch.tensor(images).permute(0, 3, 1, 2) / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(
        3, 1, 1
    )
    expected = []
    with torch.no_grad():
        h = model.embeddings(x)
        expected.append(h)
        for stage in model.encoder.stages:
            for layer in stage.downsampling_layer:
                h = layer(h)
            for layer in stage.layers:
                h = layer(h)
                expected.append(h)
    # the last block of a stage is its hidden state: 1 + 2 blocks behind the embedding
    for found, h in zip(load_encoder(f"hf:{folder}")(images, ROWS), expected, strict=True):
        torch.testing.assert_close(found, h.mean((2, 3)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["vit", "mae", "swin", "resnet"])
def test_random_weights_have_the_layers_of_the_trained_ones(tmp_path, kind):
    folder, _, _, _ = tiny(tmp_path, kind)
    trained = load_encoder(f"hf:{folder}")
    assert load_encoder(f"random:hf:{folder}").layers == trained.layers
    assert not any(isinstance(trained.module.get_submodule(name), torch.nn.Identity) for name in trained.layers)


def test_an_extraction_goes_on_although_json_turns_numbers_into_text(tmp_path):
    folder, _, _, _ = tiny(tmp_path, "vit")
    assert 0 in load_encoder(f"hf:{folder}").provenance["config"]["id2label"]
    data = (np.zeros((6, 4, 4, 3), np.uint8), np.arange(6) % 2)
    first, again = (extract(load_encoder(f"hf:{folder}"), load_dataset(data), tmp_path / "f.h5") for _ in range(2))
    assert again.id == first.id


def test_a_model_that_wants_more_than_pictures_is_one_sentence(tmp_path):
    config = transformers.Siglip2VisionConfig(**{k: v for k, v in SIZES.items() if k != "image_size"})
    folder = save(tmp_path / "siglip2", transformers.Siglip2VisionModel(config), 16)
    with pytest.raises(UserError, match=r"Siglip2VisionModel fails on images of 16 x 16 \(TypeError: .*missing"):
        load_encoder(f"hf:{folder}")
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match=r"siglip2 prepares arrays of shape \(1, 256, 768\), not single images"):
        load_encoder(f"hf:{folder}")


def test_blocks_inside_stages_by_glob(tmp_path):
    folder, model, side, _ = tiny(tmp_path, "swin")
    images = pictures(side)
    encoder = load_encoder(f"hf:{folder}", layers="encoder.layers.*.blocks.*")
    assert len(encoder.layers) == 3
    states, _ = plain_states(model, images, "swin")
    torch.testing.assert_close(encoder(images, ROWS)[-1], states[-1].mean(1), rtol=1e-4, atol=1e-5)


def test_a_clip_pair_gives_its_vision_part(tmp_path):
    text = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 9}
    config = transformers.CLIPConfig(vision_config=SIZES, text_config={**text, "eos_token_id": 2, "bos_token_id": 1})
    model = transformers.CLIPModel(config).eval()
    encoder = load_encoder(f"hf:{save(tmp_path / 'clip', model, 16)}", pool="cls")
    images = pictures(16)
    states, _ = plain_states(model.vision_model, images, "clip")
    torch.testing.assert_close(encoder(images, ROWS)[3], states[3][:, 0], rtol=1e-4, atol=1e-5)


def test_an_image_classifier_of_a_pair_needs_no_text_part(tmp_path):
    from safetensors.torch import load_file, save_file

    text = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 9}
    for kind in ("Siglip", "CLIP"):
        more = {} if kind == "Siglip" else {"eos_token_id": 2, "bos_token_id": 1}
        config = getattr(transformers, f"{kind}Config")(vision_config=SIZES, text_config={**text, **more})
        model = getattr(transformers, f"{kind}ForImageClassification")(config).eval()
        folder = save(tmp_path / kind, model, 16)
        encoder = load_encoder(f"hf:{folder}")
        images = pictures(16)
        states, _ = plain_states(model.vision_model, images, kind)
        torch.testing.assert_close(
            encoder(images, ROWS)[2], pooled(states[2], int(kind == "CLIP")), rtol=1e-4, atol=1e-5
        )
        # a weight of the image part is still missed
        state = load_file(folder / "model.safetensors")
        gone = next(key for key in state if "layers.0.mlp.fc1.weight" in key)
        save_file({k: v for k, v in state.items() if k != gone}, folder / "model.safetensors", {"format": "pt"})
        with pytest.raises(UserError, match="lacks weights that the chosen layers depend on"):
            load_encoder(f"hf:{folder}")


FOUR = {"hidden_sizes": [8, 8, 16, 16], "depths": [1] * 4}
ODD = {
    # states that are maps made of a submodule's tokens
    "PVTv2": (transformers.PvtV2Config, {**FOUR, "num_attention_heads": [1, 1, 2, 2], "image_size": 64}),
    "GLPN": (transformers.GLPNConfig, {**FOUR, "num_attention_heads": [1, 1, 2, 2]}),
    # the first state is the picture itself; the last begins with the mean of the map
    "DINOv3 ConvNeXt": (transformers.DINOv3ConvNextConfig, {**FOUR, "image_size": 64}),
    # register tokens of number 0
    "DINOv3": (transformers.DINOv3ViTConfig, {**SIZES, "image_size": 64}),
    # a norm that reads the pooled vector too
    "BLIP": (transformers.BlipVisionConfig, {**SIZES, "image_size": 64}),
    # values so small that float32 holds few of their digits
    "MobileViTv2": (transformers.MobileViTV2Config, {"image_size": 64}),
}


@pytest.mark.parametrize("name", ODD)
def test_states_of_unusual_models(name):
    from probekit.encoders.hf import from_transformers

    make, settings = ODD[name]
    torch.manual_seed(0)
    build = transformers.BlipVisionModel if name == "BLIP" else transformers.AutoModel.from_config
    model = build(make(**settings)).eval()
    encoder = from_transformers(model, None, {"name": name, "source": name}, resolution=64, mean=0.5, std=0.5)
    images = pictures(64)
    x = torch.tensor(images).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        states = model(pixel_values=x, output_hidden_states=True).hidden_states
    named = dict(zip(encoder.layers, encoder(images, ROWS), strict=True))
    made = {
        layer: says for layer, says in encoder.provenance["hidden_states"].items() if says.startswith("hidden_states[")
    }
    assert len(made) == len(states) - (name == "DINOv3 ConvNeXt")
    for layer, says in made.items():
        h = states[int(says[14:].split("]")[0])]
        prefix = encoder.provenance["decisions"][layer]["prefix_tokens"]
        torch.testing.assert_close(named[layer], pooled(h, prefix), rtol=1e-4, atol=1e-5)


def test_another_resolution_interpolates_positions_and_says_so(tmp_path):
    folder, _, _, _ = tiny(tmp_path, "vit")
    encoder = load_encoder(f"hf:{folder}", resolution=24)
    assert encoder.provenance["decisions"]["layers.0"]["positions"] == 36
    assert "interpolated" in encoder.provenance["input"]


def test_random_weights_are_seeded_and_leave_global_state_alone(tmp_path):
    folder, _, _, _ = tiny(tmp_path, "vit")
    before = torch.random.get_rng_state()
    a, b, c = (load_encoder(f"random:hf:{folder}", weights_seed=s) for s in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    hashes = [e.provenance["weights_hash"] for e in (a, b, c)]
    assert hashes[0] == hashes[1] != hashes[2]
    assert a.provenance["name"] == "random"


def test_missing_weights_are_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    folder, _, _, _ = tiny(tmp_path, "vit")
    state = load_file(folder / "model.safetensors")
    key = next(k for k in state if "layers.1" in k or "layer.1." in k)
    save_file({k: v for k, v in state.items() if k != key}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="lacks weights that the chosen layers depend on"):
        load_encoder(f"hf:{folder}")
    # what comes before it does not need it
    assert len(load_encoder(f"hf:{folder}", layers="layers.0").layers) == 1


def test_errors_are_one_sentence(tmp_path):
    with pytest.raises(UserError, match="neither a folder"):
        load_encoder(f"hf:{tmp_path}/nothing")


@pytest.fixture
def imagegpt(tmp_path):
    sizes = {"n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 36, "vocab_size": 9}
    torch.manual_seed(0)
    model = transformers.ImageGPTForCausalImageModeling(transformers.ImageGPTConfig(**sizes)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "bias" not in name:
                parameter.add_(0.05 * torch.randn_like(parameter))
    clusters = np.random.default_rng(0).uniform(-1, 1, (8, 3)).tolist()
    processor = {"image_processor_type": "ImageGPTImageProcessor", "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    folder = save(tmp_path / "imagegpt", model, 6, clusters=clusters, resample=2, **processor)
    return folder, model, np.array(clusters)


def test_imagegpt_gets_its_start_token_and_every_layer_its_norm(imagegpt):
    folder, model, clusters = imagegpt
    images = pictures(6)
    encoder = load_encoder(f"hf:{folder}")
    scaled = images.reshape(3, 36, 1, 3) / 127.5 - 1
    tokens = torch.tensor(((scaled - clusters) ** 2).sum(-1).argmin(-1))
    shifted = torch.cat([torch.full((3, 1), 8), tokens[:, :-1]], 1)
    with torch.no_grad():
        states = model.transformer(shifted, output_hidden_states=True).hidden_states
        norms = [block.ln_1 for block in model.transformer.h]
        expected = [norm(h).mean(1) for norm, h in zip(norms, states[:-1], strict=True)] + [states[-1].mean(1)]
    for a, b in zip(encoder(images, ROWS), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert encoder.provenance["kind"] == "hf"
    assert encoder.provenance["name"] == "imagegpt"
    json.dumps(encoder.provenance)
    assert len(load_encoder(f"random:hf:{folder}")(images, ROWS)) == 4


def test_imagegpt_without_its_palette_is_refused(imagegpt):
    folder = imagegpt[0]
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match="clusters"):
        load_encoder(f"hf:{folder}")
