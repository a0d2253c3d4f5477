import json

import numpy as np
import pytest
import torch

from igpt_model.config import ModelConfig
from igpt_model.convert.huggingface import (
    from_huggingface,
    from_pretrained_folder,
    to_huggingface,
    to_pretrained_folder,
)
from igpt_model.convert.openai import from_openai
from igpt_model.errors import UserError
from igpt_model.features import encode
from igpt_model.images import ImageTransform
from igpt_model.model import IGPT
from igpt_model.palette import Palette

transformers = pytest.importorskip("transformers", reason="the hf extra is not installed")

SIZES = [
    {"n_layer": 1, "n_embd": 8, "n_head": 1, "vocab_size": 5, "n_positions": 9},
    {"n_layer": 3, "n_embd": 24, "n_head": 3, "vocab_size": 17, "n_positions": 36},
    {"n_layer": 6, "n_embd": 64, "n_head": 4, "vocab_size": 65, "n_positions": 64},
]


def hf_model(n_layer, n_embd, n_head, vocab_size, n_positions, biased=False, **settings):
    """A Hugging Face ImageGPT with every weight drawn at a scale that makes deep layers differ; dropout at its 0.1."""
    config = transformers.ImageGPTConfig(
        n_layer=n_layer, n_embd=n_embd, n_head=n_head, vocab_size=vocab_size, n_positions=n_positions, **settings
    )
    model = transformers.ImageGPTForCausalImageModeling(config)
    generator = torch.Generator().manual_seed(n_layer)
    for name, parameter in model.named_parameters():
        parameter.data.normal_(0, 0.2, generator=generator)
        if "ln_" in name:
            parameter.data += 1
        if name.endswith(".bias") and not biased:
            parameter.data.zero_()
    return model.eval()


def relative_error(ours, theirs):
    return float((ours - theirs).abs().max() / theirs.abs().max())


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_logits_and_features_equal_hugging_faces_at_every_depth(size, biased):
    hf = hf_model(**size, biased=biased)
    ours = from_huggingface(hf)
    assert ours.config == ModelConfig(**{**size, "vocab_size": size["vocab_size"] - 1}, bias=biased)
    n_colours, n = size["vocab_size"] - 1, size["n_positions"]
    tokens = torch.randint(0, n_colours, (4, n), generator=torch.Generator().manual_seed(0))
    # their processor leaves the start token out: put it in front, drop the last pixel
    shifted = torch.cat([torch.full((4, 1), n_colours), tokens[:, :-1]], 1)
    with torch.no_grad():
        theirs = hf(input_ids=shifted, output_hidden_states=True)
        logits = ours.train()(tokens)
    assert relative_error(logits, theirs.logits) < 1e-5
    features, raw = encode(ours, tokens), encode(ours, tokens, norm=False)
    for k, h in enumerate(theirs.hidden_states):
        last = k == size["n_layer"]
        # their last hidden state alone has passed its norm (ln_f) already
        normalised = h if last else hf.transformer.h[k].ln_1(h)
        assert relative_error(features[k], normalised.detach().mean(1)) < 1e-5
        if not last:
            assert relative_error(raw[k], h.mean(1)) < 1e-5


@pytest.mark.parametrize("biased", [False, True])
def test_the_round_trips_are_exact(biased):
    hf = hf_model(**SIZES[1], biased=biased)
    ours = from_huggingface(hf)
    before = torch.random.get_rng_state()
    back = to_huggingface(ours)
    assert torch.equal(before, torch.random.get_rng_state())
    assert not back.training
    theirs = hf.state_dict()
    assert theirs.keys() == back.state_dict().keys()
    assert all(torch.equal(value, theirs[name]) for name, value in back.state_dict().items())
    again = from_huggingface(back)
    assert again.config == ours.config
    assert all(torch.equal(value, ours.state_dict()[name]) for name, value in again.state_dict().items())


def test_a_converted_model_shares_no_memory_and_can_be_trained():
    hf = hf_model(**SIZES[0])
    ours = from_huggingface(hf)
    kept = {name: value.clone() for name, value in ours.state_dict().items()}
    for parameter in hf.parameters():
        parameter.data.zero_()
    assert all(torch.equal(value, kept[name]) for name, value in ours.state_dict().items())
    assert all(p.requires_grad and p.is_contiguous() and p.dtype == torch.float32 for p in ours.parameters())


@pytest.mark.parametrize("kind", ["ImageGPTModel", "ImageGPTForImageClassification"])
def test_models_without_an_output_matrix_give_features(kind):
    whole = hf_model(**SIZES[1])
    part = getattr(transformers, kind)(whole.config)
    (part if kind == "ImageGPTModel" else part.transformer).load_state_dict(whole.transformer.state_dict())
    tokens = torch.randint(0, 16, (2, 36))
    for a, b in zip(encode(from_huggingface(part), tokens), encode(from_huggingface(whole), tokens), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    "setting",
    [
        {"activation_function": "gelu"},
        {"layer_norm_epsilon": 1e-6},
        {"scale_attn_weights": False},
        {"scale_attn_by_inverse_layer_idx": True},
    ],
)
def test_another_function_is_refused(setting):
    with pytest.raises(UserError, match=next(iter(setting))):
        from_huggingface(hf_model(**SIZES[0], **setting))
    with pytest.raises(UserError, match="autoregressive only"):
        to_huggingface(IGPT(ModelConfig(causal=False)))
    for other in ("openai/imagegpt-small", torch.nn.Linear(2, 2)):
        with pytest.raises(UserError, match="not a Hugging Face ImageGPT model"):
            from_huggingface(other)
    with pytest.raises(TypeError, match="model is 'openai/imagegpt-small'; to_huggingface expected"):
        to_huggingface("openai/imagegpt-small")


@pytest.mark.parametrize("style", ["safetensors", "sharded", "bin"])
def test_folders_are_read_in_every_style(style, tmp_path):
    hf = hf_model(**SIZES[1])
    if style == "bin":
        # as the published file: with the causal masks that old releases stored
        state = hf.state_dict()
        for i in range(3):
            state[f"transformer.h.{i}.attn.bias"] = torch.ones(1, 1, 36, 36, dtype=torch.uint8).tril()
            state[f"transformer.h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
        torch.save(state, tmp_path / "pytorch_model.bin")
        hf.config.save_pretrained(tmp_path)
    else:
        hf.save_pretrained(tmp_path, max_shard_size="20KB" if style == "sharded" else "1GB")
        assert (tmp_path / "model.safetensors.index.json").is_file() == (style == "sharded")
    model, palette, transform = from_pretrained_folder(tmp_path)
    assert (palette, transform) == (None, None)
    expected = from_huggingface(hf)
    assert model.config == expected.config
    assert all(torch.equal(value, expected.state_dict()[name]) for name, value in model.state_dict().items())


def test_a_bin_file_that_runs_code_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    hf_model(**SIZES[0]).config.save_pretrained(tmp_path)
    torch.save({"wte": Evil()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="contains objects other than tensors"):
        from_pretrained_folder(tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_damaged_file_is_refused(name, tmp_path):
    hf = hf_model(**SIZES[0])
    hf.config.save_pretrained(tmp_path)
    if name.endswith("bin"):
        torch.save(hf.state_dict(), tmp_path / name)
    else:
        hf.save_pretrained(tmp_path)
    content = (tmp_path / name).read_bytes()
    for keep in (0, 5, len(content) // 2, len(content) - 1):
        (tmp_path / name).write_bytes(content[:keep])
        with pytest.raises(UserError, match="is damaged"):
            from_pretrained_folder(tmp_path)


def test_a_written_folder_comes_back_whole_and_transformers_reads_it(tmp_path):
    model = from_huggingface(hf_model(**SIZES[1]))
    palette = Palette(np.random.default_rng(0).uniform(-1, 1, (16, 3)))
    transform = ImageTransform(6, "bicubic")
    to_pretrained_folder(tmp_path / "out", model, palette, transform)
    read, read_palette, read_transform = from_pretrained_folder(tmp_path / "out")
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in read.state_dict().items())
    assert read_palette == palette
    assert read_transform == transform

    image = np.random.default_rng(1).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "out", backend="pil")
    theirs = processor(image, return_tensors="np")["input_ids"]
    np.testing.assert_array_equal(theirs, palette.encode(image[None]))
    hf = transformers.ImageGPTForCausalImageModeling.from_pretrained(tmp_path / "out")
    assert torch.equal(hf.lm_head.weight, model.head.weight)
    to_pretrained_folder(tmp_path / "out", model, palette, transform)  # as it is there: nothing to do
    with pytest.raises(UserError, match="already exists"):
        to_pretrained_folder(tmp_path / "out", model)
    assert not [file for file in tmp_path.iterdir() if file.name != "out"]


def test_unusable_folders_are_refused_in_words(tmp_path):
    with pytest.raises(UserError, match=r"contains no config\.json"):
        from_pretrained_folder(tmp_path)
    hf = hf_model(**SIZES[0])
    hf.config.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"neither model\.safetensors nor pytorch_model\.bin"):
        from_pretrained_folder(tmp_path)
    hf.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"clusters": [[0, 0, 0]] * 3}))
    with pytest.raises(UserError, match="3 colour clusters, but the model has 4"):
        from_pretrained_folder(tmp_path)


def openai_variables(n_layer=2, d=24, heads=3, n_colours=10, n_positions=16):
    rng = np.random.default_rng(0)

    def draw(*shape):
        return rng.normal(0, 0.3, shape).astype(np.float32)

    found = {"wpe": draw(n_positions, d), "wte": draw(n_colours, d), "wtet": draw(n_colours, d), "sos": draw(d)}
    found["ln_f/g"] = 1 + draw(d)
    for i in range(n_layer):
        for part in "qkvc":
            found[f"h{i}/attn/{part}_proj"] = draw(heads, d // heads, d)
        found[f"h{i}/mlp/c_fc/w"], found[f"h{i}/mlp/c_proj/w"] = draw(d, 4 * d), draw(4 * d, d)
        found[f"h{i}/ln_1/g"], found[f"h{i}/ln_2/g"] = 1 + draw(d), 1 + draw(d)
    return {f"model/{name}:0": value for name, value in found.items()}


def openai_logits(variables, tokens, mask=None):
    """The released computation in float64, each contraction as an einsum in the variables' own layout."""
    w = {name[len("model/") : -2]: value.astype(np.float64) for name, value in variables.items()}
    n = tokens.shape[1]

    def norm(x, g):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * g

    x = w["wte"][tokens]
    if mask is None:
        x = np.concatenate([np.broadcast_to(w["sos"], (len(x), 1, x.shape[-1])), x[:, :-1]], 1)
    else:
        x = x * ~mask[..., None]
    x = x + w["wpe"][:n]
    for i in range(sum(name.endswith("q_proj") for name in w)):
        normed = norm(x, w[f"h{i}/ln_1/g"])
        q, k, v = (np.einsum("bsf,hef->bhse", normed, w[f"h{i}/attn/{part}_proj"]) for part in "qkv")
        score = np.einsum("bhse,bhte->bhst", q, k) / np.sqrt(q.shape[-1])
        if mask is None:
            score = np.where(np.tril(np.ones((n, n), bool)), score, -1e10)
        share = np.exp(score - score.max(-1, keepdims=True))
        share /= share.sum(-1, keepdims=True)
        mixed = np.einsum("bhst,bhte->bhse", share, v)
        x = x + np.einsum("bhse,hef->bsf", mixed, w[f"h{i}/attn/c_proj"])
        a = norm(x, w[f"h{i}/ln_2/g"]) @ w[f"h{i}/mlp/c_fc/w"]
        x = x + (a / (1 + np.exp(-1.702 * a))) @ w[f"h{i}/mlp/c_proj/w"]
    return norm(x, w["ln_f/g"]) @ w["wtet"].T


@pytest.mark.parametrize("causal", [True, False])
def test_openai_variables_compute_what_they_computed(causal):
    variables = openai_variables()
    training = {
        "model/wte/adam_m:0": np.zeros(3),
        "global_step": np.array(5),
        "model/clf/wclf:0": np.zeros((24, 10)),
    }
    model = from_openai({**variables, **training}, causal=causal)
    assert model.config == ModelConfig(2, 24, 3, 10, 16, causal)
    rng = np.random.default_rng(1)
    tokens = rng.integers(0, 10, (3, 16))
    mask = None if causal else rng.random((3, 16)) < 0.3
    expected = openai_logits(variables, tokens, mask)
    with torch.no_grad():
        logits = model(torch.from_numpy(tokens), None if mask is None else torch.from_numpy(mask)).double().numpy()
    assert np.abs(logits - expected).max() / np.abs(expected).max() < 1e-5


def test_other_variables_are_refused():
    variables = openai_variables()
    del variables["model/h1/ln_2/g:0"]
    with pytest.raises(UserError, match="h1/ln_2/g"):
        from_openai(variables)
    with pytest.raises(UserError, match="is missing"):
        from_openai({"a/b": np.zeros(3)})
