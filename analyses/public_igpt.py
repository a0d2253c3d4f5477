"""A small autoregressive model of Fashion-MNIST trained by somebody else, as a torch module for `probekit extract`.

    probekit extract torch:analyses.public_igpt:build fashion-mnist --weights igpt-xxs-fashion-mnist.safetensors \
        --layers embed --layers 'gpt.layers.?' --layers gpt.ln_f --out features.h5

`build_random` is the same network with fresh weights (no --weights).

The weights are the tensors of `models/fashion_mnist_gen.ckpt` of https://github.com/teddykoker/image-gpt (Apache-2.0).
Unlike iGPT it has LayerNorm with mean and bias, biases in every linear layer, exact GELU, and a residual that starts
from the *normalised* input of each block. Letters: B images, T = 784 pixels, D = 16 width, V = 16 greys.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from probekit.encoders import Preparation

SIDE, WIDTH, HEADS, DEPTH, GREYS, CLASSES = 28, 16, 2, 8, 16, 10


class Block(nn.Module):
    """Normalise, add attention, add the MLP of the normalised sum."""

    def __init__(self) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attn = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, h_BTD: Tensor) -> Tensor:
        h_BTD = self.ln_1(h_BTD)
        h_BTD = h_BTD + self.attention(h_BTD)
        return h_BTD + self.mlp(self.ln_2(h_BTD))

    def attention(self, h_BTD: Tensor) -> Tensor:
        """Causal attention with the weights of `nn.MultiheadAttention`; the fused kernel takes no (T, T) mask."""
        q, k, v = F.linear(h_BTD, self.attn.in_proj_weight, self.attn.in_proj_bias).chunk(3, -1)
        q, k, v = (x.unflatten(-1, (HEADS, -1)).transpose(1, 2) for x in (q, k, v))
        return self.attn.out_proj(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))


class GPT(nn.Module):
    """The transformer; `clf_head` is unused, but it is in the file."""

    def __init__(self) -> None:
        super().__init__()
        self.sos = nn.Parameter(torch.randn(WIDTH))
        self.token_embeddings = nn.Embedding(GREYS, WIDTH)
        self.position_embeddings = nn.Embedding(SIDE * SIDE, WIDTH)
        self.layers = nn.ModuleList(Block() for _ in range(DEPTH))
        self.ln_f = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, GREYS, bias=False)
        self.clf_head = nn.Linear(WIDTH, CLASSES)


class PublicIGPT(nn.Module):
    """From images to the logits of every pixel; `embed`, `gpt.layers.k` and `gpt.ln_f` are the layers to probe."""

    centroids: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("centroids", torch.linspace(0, 1, GREYS)[:, None])
        self.embed = nn.Identity()
        self.gpt = GPT()

    def tokens(self, images_BCHW: Tensor) -> Tensor:
        """Return the index (B, T) of the nearest grey of each pixel; values in 0 to 1, channels equal."""
        return (images_BCHW[:, 0].flatten(1)[..., None] - self.centroids[:, 0]).abs().argmin(-1)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        return self.logits(self.tokens(images_BCHW))

    def logits(self, tokens_BT: Tensor) -> Tensor:
        """Return logits (B, T, V): position t predicts pixel t from those before it."""
        shifted = self.gpt.token_embeddings(tokens_BT[:, :-1])
        start = self.gpt.sos.expand(len(tokens_BT), 1, -1)
        h_BTD = self.embed(torch.cat([start, shifted], 1) + self.gpt.position_embeddings.weight)
        for block in self.gpt.layers:
            h_BTD = block(h_BTD)
        return self.gpt.head(self.gpt.ln_f(h_BTD))

    @torch.no_grad()
    def loss(self, images_BHWC: np.ndarray) -> float:
        """Return the mean loss in nats per pixel of uint8 images (B, 28, 28, 3)."""
        tokens = self.tokens(torch.as_tensor(images_BHWC).permute(0, 3, 1, 2) / 255)
        return float(F.cross_entropy(self.logits(tokens).flatten(0, 1), tokens.flatten()))


def build() -> tuple[PublicIGPT, Preparation]:
    """Return the module for `--weights`, and its image preparation."""
    return PublicIGPT(), Preparation(crop=(SIDE, SIDE), interpolation="bilinear")


def build_random() -> tuple[PublicIGPT, Preparation]:
    """Return the control: PyTorch's own initial weights of seed 0, the embeddings and start vector scaled to 0.02."""
    state = torch.get_rng_state()
    torch.manual_seed(0)
    model = PublicIGPT()
    torch.set_rng_state(state)
    with torch.no_grad():
        for table in (model.gpt.sos, model.gpt.token_embeddings.weight, model.gpt.position_embeddings.weight):
            table.mul_(0.02)
    return model, Preparation(crop=(SIDE, SIDE), interpolation="bilinear")
