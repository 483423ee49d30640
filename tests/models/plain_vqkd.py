"""The released tokenizer by its own names, spelled out tensor by tensor: what VQKD is held against.

Written from the shapes and the order of operations alone; nothing of it is used by the library.
"""

import math

import torch

OUR_NAMES = {
    "encode_task_layer": "encode_head",
    "decode_task_layer": "decode_head",
    "quantize.embedding.weight": "codebook.code",
    "quantize.embedding.initted": "codebook.started",
    "quantize.cluster_size": "codebook.recent",
}


def released_names(state):
    """Our weights under the released names."""
    renamed = {}
    for name, weight in state.items():
        for theirs, ours in OUR_NAMES.items():
            if name.startswith(ours):
                name = name.replace(ours, theirs, 1)
        renamed[name] = weight
    return renamed


def norm(x, w, name):
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]


def affine(x, w, name):
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def transformer(x, w, name, layers, heads, patch):
    weight = w[f"{name}.patch_embed.proj.weight"].flatten(1)
    cut = x.unfold(2, patch, patch).unfold(3, patch, patch)  # b c rows columns p q
    rows = cut.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
    x = rows @ weight.T + w[f"{name}.patch_embed.proj.bias"]
    x = torch.cat([w[f"{name}.cls_token"].expand(len(x), -1, -1), x], 1) + w[f"{name}.pos_embed"]
    for i in range(layers):
        block = f"{name}.blocks.{i}"
        y = norm(x, w, f"{block}.norm1")
        query, key, value = (y @ w[f"{block}.attn.qkv.weight"].T).chunk(3, dim=-1)
        query, value = query + w[f"{block}.attn.q_bias"], value + w[f"{block}.attn.v_bias"]
        answers = []
        for q, k, v in zip(*(t.chunk(heads, -1) for t in (query, key, value)), strict=True):
            answers.append((q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1) @ v)
        x = x + affine(torch.cat(answers, -1), w, f"{block}.attn.proj")
        y = affine(norm(x, w, f"{block}.norm2"), w, f"{block}.mlp.fc1")
        y = y * (1 + torch.erf(y / math.sqrt(2))) / 2
        x = x + affine(y, w, f"{block}.mlp.fc2")
    return norm(x[:, 1:], w, f"{name}.fc_norm")


def head(x, w, name):
    return affine(affine(x, w, f"{name}.0").tanh(), w, f"{name}.2")


def tokenized(pixel, w, patch, layers, heads):
    """(tokens, features) of images with values in [0, 1]; `layers` of encoder and decoder."""
    x = pixel * 255 / 127.5 - 1
    z = head(transformer(x, w, "encoder", layers[0], heads, patch), w, "encode_task_layer")
    z = z / z.norm(dim=-1, keepdim=True)
    code = w["quantize.embedding.weight"]
    token = (z[:, :, None] - code).square().sum(-1).argmin(-1)
    side = math.isqrt(z.shape[1])
    square = code[token].unflatten(1, (side, side)).permute(0, 3, 1, 2)
    return token, head(
        transformer(square, w, "decoder", layers[1], heads, 1), w, "decode_task_layer"
    )
