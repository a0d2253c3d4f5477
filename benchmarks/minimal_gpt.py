"""A minimal PyTorch GPT and its training step, as one writes it in an afternoon: the floor for ours.

LayerNorm, GELU, fused attention, fused AdamW, gradient clipping; the same sizes, vocabulary and start token as iGPT.
"""

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812


class MinimalBlock(nn.Module):
    """A pre-norm block."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.ln_1, self.ln_2 = nn.LayerNorm(width, bias=False), nn.LayerNorm(width, bias=False)
        self.c_attn, self.c_proj = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.fc, self.out = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, x):
        B, T, D = x.shape
        q, k, v = self.c_attn(self.ln_1(x)).split(D, dim=2)
        q, k, v = (y.view(B, T, self.heads, D // self.heads).transpose(1, 2) for y in (q, k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.c_proj(mixed.transpose(1, 2).contiguous().view(B, T, D))
        return x + self.out(F.gelu(self.fc(self.ln_2(x)), approximate="tanh"))


class MinimalGPT(nn.Module):
    """Token and position tables, blocks, norm, untied head; token V is the start."""

    def __init__(self, layers, width, heads, vocab, positions):
        super().__init__()
        self.start = vocab
        self.wte, self.wpe = nn.Embedding(vocab + 1, width), nn.Embedding(positions, width)
        self.blocks = nn.ModuleList(MinimalBlock(width, heads) for _ in range(layers))
        self.ln_f, self.head = nn.LayerNorm(width, bias=False), nn.Linear(width, vocab, bias=False)

    def forward(self, tokens):
        inputs = torch.cat([torch.full_like(tokens[:, :1], self.start), tokens[:, :-1]], 1)
        x = self.wte(inputs) + self.wpe(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.blocks:
            x = block(x)
        logits = self.head(self.ln_f(x))
        return F.cross_entropy(logits.float().flatten(0, 1), tokens.flatten())
