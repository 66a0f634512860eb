"""SD1.5's and SDXL's UNet and the VAE's decoder, written plainly in torch, for machines without diffusers.

The same operators on the same shapes as diffusers' modules run them (convolutions and linear layers of
torch, scaled_dot_product_attention, GroupNorm, LayerNorm), under the same parameter names, so that
tests/e2e/test_plain_networks.py can give both the same weights and compare what they compute.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F


def pairs_of(config, name, default):
    """A configuration's value for each level."""
    value = config.get(name, default)
    levels = len(config["block_out_channels"])
    return list(value) if isinstance(value, (list, tuple)) else [value] * levels


class Resnet(nn.Module):
    def __init__(self, inputs, outputs, time, groups, eps):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, inputs, eps=eps)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        if time:
            self.time_emb_proj = nn.Linear(time, outputs)
        self.norm2 = nn.GroupNorm(groups, outputs, eps=eps)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        if inputs != outputs:
            self.conv_shortcut = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x, time=None):
        y = self.conv1(F.silu(self.norm1(x)))
        if time is not None:
            y = y + self.time_emb_proj(F.silu(time))[:, :, None, None]
        y = self.conv2(F.silu(self.norm2(y)))
        return (self.conv_shortcut(x) if hasattr(self, "conv_shortcut") else x) + y


class Attention(nn.Module):
    def __init__(self, width, context, heads, bias=False):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=bias)
        self.to_k = nn.Linear(context, width, bias=bias)
        self.to_v = nn.Linear(context, width, bias=bias)
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, x, context=None):
        context = x if context is None else context
        q, k, v = (t.unflatten(2, (self.heads, -1)).transpose(1, 2)
                   for t in (self.to_q(x), self.to_k(context), self.to_v(context)))
        return self.to_out[0](F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Geglu(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.proj = nn.Linear(width, 8 * width)

    def forward(self, x):
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.net = nn.ModuleList([Geglu(width), nn.Identity(), nn.Linear(4 * width, width)])

    def forward(self, x):
        return self.net[2](self.net[0](x))


class Block(nn.Module):
    """Attention to the picture, to the text, and a feed-forward layer."""

    def __init__(self, width, context, heads):
        super().__init__()
        self.norm1, self.attn1 = nn.LayerNorm(width), Attention(width, width, heads)
        self.norm2, self.attn2 = nn.LayerNorm(width), Attention(width, context, heads)
        self.norm3, self.ff = nn.LayerNorm(width), FeedForward(width)

    def forward(self, x, context):
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class Transformer(nn.Module):
    def __init__(self, width, context, heads, depth, groups, linear):
        super().__init__()
        self.linear = linear
        self.norm = nn.GroupNorm(groups, width, eps=1e-6)
        self.proj_in = nn.Linear(width, width) if linear else nn.Conv2d(width, width, 1)
        self.transformer_blocks = nn.ModuleList(Block(width, context, heads) for _ in range(depth))
        self.proj_out = nn.Linear(width, width) if linear else nn.Conv2d(width, width, 1)

    def forward(self, x, context):
        height, width = x.shape[2:]
        y = self.norm(x)
        y = y if self.linear else self.proj_in(y)
        y = y.flatten(2).transpose(1, 2)
        y = self.proj_in(y) if self.linear else y
        for block in self.transformer_blocks:
            y = block(y, context)
        y = self.proj_out(y) if self.linear else y
        y = y.transpose(1, 2).unflatten(2, (height, width))
        return (y if self.linear else self.proj_out(y)) + x


class Conv(nn.Module):
    """A convolution under the name that halving and doubling have for it."""

    def __init__(self, width, stride=1):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=stride, padding=1)
        self.up = stride == 1

    def forward(self, x):
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest") if self.up else x)


class Level(nn.Module):
    """Resnets, each with a transformer behind it or none, then a halving or a doubling or none."""

    def __init__(self, widths, transformers, time, groups, sampler=None, eps=1e-5):
        super().__init__()
        self.resnets = nn.ModuleList(Resnet(i, o, time, groups, eps) for i, o in widths)
        self.attentions = nn.ModuleList(transformers)
        if sampler:
            setattr(self, sampler[0], nn.ModuleList([sampler[1]]))

    def steps(self):
        return zip(self.resnets, self.attentions or [None] * len(self.resnets))


class Unet(nn.Module):
    def __init__(self, config):
        super().__init__()
        widths = config["block_out_channels"]
        heads = pairs_of(config, "attention_head_dim", 8)  # the number of heads, whatever its name says
        depths = pairs_of(config, "transformer_layers_per_block", 1)
        groups, layers = config["norm_num_groups"], config["layers_per_block"]
        context, linear = config["cross_attention_dim"], config.get("use_linear_projection", False)
        time, last = 4 * widths[0], len(widths) - 1
        self.width = widths[0]
        self.added = config.get("addition_time_embed_dim")

        def transformers(level, count, kinds):
            return [Transformer(widths[level], context, heads[level], depths[level], groups, linear)
                    for _ in range(count)] if "CrossAttn" in kinds else []

        self.conv_in = nn.Conv2d(4, widths[0], 3, padding=1)
        self.time_embedding = Embedding(widths[0], time)
        if self.added:
            self.add_embedding = Embedding(config["projection_class_embeddings_input_dim"], time)
        self.down_blocks, self.up_blocks = nn.ModuleList(), nn.ModuleList()
        kept = [widths[0]]  # what goes across, as it is made
        for i, kind in enumerate(config["down_block_types"]):
            inputs = [widths[max(i - 1, 0)]] + [widths[i]] * (layers - 1)
            sampler = ("downsamplers", Conv(widths[i], 2)) if i < last else None
            self.down_blocks.append(Level([(n, widths[i]) for n in inputs], transformers(i, layers, kind), time,
                                          groups, sampler))
            kept += [widths[i]] * (layers + (i < last))
        self.mid_block = Level([(widths[-1], widths[-1])] * 2, transformers(last, 1, "CrossAttn"), time, groups)
        before = widths[-1]
        for i, kind in enumerate(config["up_block_types"]):
            level = last - i
            pairs = []
            for _ in range(layers + 1):
                pairs.append((before + kept.pop(), widths[level]))
                before = widths[level]
            sampler = ("upsamplers", Conv(widths[level])) if i < last else None
            self.up_blocks.append(Level(pairs, transformers(level, layers + 1, kind), time, groups, sampler))
        self.conv_norm_out = nn.GroupNorm(groups, widths[0], eps=1e-5)
        self.conv_out = nn.Conv2d(widths[0], 4, 3, padding=1)

    def embed(self, x, timestep, pooled, ids):
        time = self.time_embedding(waves(timestep.expand(x.shape[0]), self.width).to(x.dtype))
        if self.added:
            numbers = waves(ids.flatten(), self.added).reshape(x.shape[0], -1).to(x.dtype)
            time = time + self.add_embedding(torch.cat([pooled, numbers], dim=-1))
        return time

    def forward(self, x, timestep, context, pooled=None, ids=None):
        time = self.embed(x, timestep, pooled, ids)
        x = self.conv_in(x)
        kept = [x]
        for level in self.down_blocks:
            for resnet, transformer in level.steps():
                x = resnet(x, time)
                x = x if transformer is None else transformer(x, context)
                kept.append(x)
            if hasattr(level, "downsamplers"):
                x = level.downsamplers[0](x)
                kept.append(x)
        first, second = self.mid_block.resnets
        x = second(self.mid_block.attentions[0](first(x, time), context), time)
        for level in self.up_blocks:
            for resnet, transformer in level.steps():
                x = resnet(torch.cat([x, kept.pop()], dim=1), time)
                x = x if transformer is None else transformer(x, context)
            if hasattr(level, "upsamplers"):
                x = level.upsamplers[0](x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class Embedding(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.linear_1 = nn.Linear(inputs, outputs)
        self.linear_2 = nn.Linear(outputs, outputs)

    def forward(self, x):
        return self.linear_2(F.silu(self.linear_1(x)))


def waves(values, width):
    """Cosines, then sines."""
    rates = torch.exp(-math.log(10000) * torch.arange(width // 2, device=values.device) / (width // 2))
    turns = values.float()[:, None] * rates[None]
    return torch.cat([turns.cos(), turns.sin()], dim=-1)


class WideAttention(Attention):
    """The decoder's: one head over all channels, a norm before it, the picture added."""

    def __init__(self, width, groups):
        super().__init__(width, width, 1, bias=True)
        self.group_norm = nn.GroupNorm(groups, width, eps=1e-6)

    def forward(self, x, context=None):
        tokens = self.group_norm(x).flatten(2).transpose(1, 2)
        return x + super().forward(tokens).transpose(1, 2).unflatten(2, x.shape[2:])


class Decoder(nn.Module):
    def __init__(self, config):
        super().__init__()
        widths, groups = config["block_out_channels"][::-1], config["norm_num_groups"]
        self.conv_in = nn.Conv2d(config["latent_channels"], widths[0], 3, padding=1)
        self.mid_block = Level([(widths[0], widths[0])] * 2, [WideAttention(widths[0], groups)], 0, groups, eps=1e-6)
        self.up_blocks = nn.ModuleList()
        for i, width in enumerate(widths):
            inputs = [widths[max(i - 1, 0)]] + [width] * config["layers_per_block"]
            sampler = ("upsamplers", Conv(width)) if i < len(widths) - 1 else None
            self.up_blocks.append(Level([(n, width) for n in inputs], [], 0, groups, sampler, eps=1e-6))
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, x):
        x = self.conv_in(x)
        first, second = self.mid_block.resnets
        x = second(self.mid_block.attentions[0](first(x)))
        for level in self.up_blocks:
            for resnet in level.resnets:
                x = resnet(x)
            if hasattr(level, "upsamplers"):
                x = level.upsamplers[0](x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class UnetCall(nn.Module):
    """As peers.UnetCall is."""

    def __init__(self, config):
        super().__init__()
        self.unet = Unet(config)

    def forward(self, *inputs):
        return self.unet(*inputs)


class VaeDecode(nn.Module):
    """As peers.VaeDecode is."""

    def __init__(self, config):
        super().__init__()
        self.post_quant_conv = nn.Conv2d(config["latent_channels"], config["latent_channels"], 1)
        self.decoder = Decoder(config)

    def forward(self, latents):
        return self.decoder(self.post_quant_conv(latents))
