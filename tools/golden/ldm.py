"""Names of the original Stable Diffusion checkpoints for a diffusers model's tensors.

Levels, layers and attentions are read off the tensors' names. Text encoders of SD2 and SDXL's second
one get OpenCLIP's names and shapes.
"""

import re

import torch

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}


OPEN_CLIP = {
    "embeddings.token_embedding.": "token_embedding.",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.": "ln_final.",
}
OPEN_CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def count(keys, pattern):
    """One more than the largest number that stands in the pattern's group."""
    found = [int(match[1]) for match in (re.match(pattern, key) for key in keys) if match]
    return max(found) + 1


def unet_places(keys):
    """Pairs of a diffusers prefix and its original one, and whether a resnet stands there."""
    levels = count(keys, r"down_blocks\.(\d+)\.")
    layers = count(keys, r"down_blocks\.\d+\.resnets\.(\d+)\.")
    places = [
        ("time_embedding.linear_1.", "time_embed.0.", False),
        ("time_embedding.linear_2.", "time_embed.2.", False),
        ("add_embedding.linear_1.", "label_emb.0.0.", False),
        ("add_embedding.linear_2.", "label_emb.0.2.", False),
        ("conv_in.", "input_blocks.0.0.", False),
        ("conv_norm_out.", "out.0.", False),
        ("conv_out.", "out.2.", False),
        ("mid_block.resnets.0.", "middle_block.0.", True),
        ("mid_block.attentions.0.", "middle_block.1.", False),
        ("mid_block.resnets.1.", "middle_block.2.", True),
    ]
    for level in range(levels):
        down, up = f"down_blocks.{level}", f"up_blocks.{level}"
        for layer in range(layers):
            block = f"input_blocks.{level * (layers + 1) + layer + 1}"
            places.append((f"{down}.resnets.{layer}.", f"{block}.0.", True))
            places.append((f"{down}.attentions.{layer}.", f"{block}.1.", False))
        block = f"input_blocks.{(level + 1) * (layers + 1)}"
        places.append((f"{down}.downsamplers.0.conv.", f"{block}.0.op.", False))
        for layer in range(layers + 1):
            block = f"output_blocks.{level * (layers + 1) + layer}"
            places.append((f"{up}.resnets.{layer}.", f"{block}.0.", True))
            places.append((f"{up}.attentions.{layer}.", f"{block}.1.", False))
        at = 2 if any(key.startswith(f"{up}.attentions.") for key in keys) else 1
        block = f"output_blocks.{level * (layers + 1) + layers}.{at}"
        places.append((f"{up}.upsamplers.0.conv.", f"{block}.conv.", False))
    return places


def vae_places(keys):
    levels = count(keys, r"encoder\.down_blocks\.(\d+)\.")
    layers = count(keys, r"encoder\.down_blocks\.\d+\.resnets\.(\d+)\.")
    places = [("encoder.conv_norm_out.", "encoder.norm_out."), ("decoder.conv_norm_out.", "decoder.norm_out.")]
    for side in ("encoder", "decoder"):
        places.append((f"{side}.mid_block.attentions.0.", f"{side}.mid.attn_1."))
        for layer in range(2):
            places.append((f"{side}.mid_block.resnets.{layer}.", f"{side}.mid.block_{layer + 1}."))
    for level in range(levels):
        for layer in range(layers):
            places.append((f"encoder.down_blocks.{level}.resnets.{layer}.", f"encoder.down.{level}.block.{layer}."))
        places.append((f"encoder.down_blocks.{level}.downsamplers.0.", f"encoder.down.{level}.downsample."))
        # The original counts the decoder's levels from the picture's side.
        other = levels - 1 - level
        for layer in range(layers + 1):
            places.append((f"decoder.up_blocks.{level}.resnets.{layer}.", f"decoder.up.{other}.block.{layer}."))
        places.append((f"decoder.up_blocks.{level}.upsamplers.0.", f"decoder.up.{other}.upsample."))
    return places


def swap(rest, names):
    for new, old in names.items():
        if rest.startswith(f"{new}."):
            return old + rest[len(new) :]
    return rest


def unet_key(key, places):
    for prefix, original, is_resnet in places:
        if key.startswith(prefix):
            rest = key[len(prefix) :]
            return original + (swap(rest, RESNET) if is_resnet else rest)
    raise KeyError(key)


def vae_key(key, places):
    for prefix, original in places:
        if key.startswith(prefix):
            rest = key[len(prefix) :]
            if "attn_1" in original:
                return original + swap(rest, ATTENTION)
            return original + rest.replace("conv_shortcut", "nin_shortcut")
    return key


def vae_tensor(key, value):
    # The original's attention is made of 1x1 convolutions.
    is_matrix = "mid.attn_1" in key and value.ndim == 2
    return value[:, :, None, None] if is_matrix else value


def transformers_names(prefix, tensors):
    """What CLIP's own text encoder is called in an original checkpoint."""
    return {f"{prefix}text_model.{key.removeprefix('text_model.')}": value for key, value in tensors.items()}


def open_clip_names(prefix, tensors, idle_layer=False):
    """OpenCLIP's tensors: query, key and value in one, the projection transposed. `idle_layer` adds the
    last layer, which SD2 does not use."""
    tensors = {key.removeprefix("text_model."): value for key, value in tensors.items()}
    names = {}
    layers = count(tensors, r"encoder\.layers\.(\d+)\.")
    for key, value in tensors.items():
        layer = re.match(r"encoder\.layers\.(\d+)\.(.*)", key)
        if key == "text_projection.weight":
            names["text_projection"] = value.T
        elif not layer:
            for new, old in OPEN_CLIP.items():
                if key.startswith(new):
                    names[old + key[len(new) :]] = value
        elif "q_proj" in key:
            whole = torch.cat([tensors[key.replace("q_proj", part)] for part in ("q_proj", "k_proj", "v_proj")])
            names[f"transformer.resblocks.{layer[1]}.attn.in_proj_{key.rpartition('.')[2]}"] = whole
        elif "k_proj" not in key and "v_proj" not in key:
            names[f"transformer.resblocks.{layer[1]}.{swap(layer[2], OPEN_CLIP_LAYER)}"] = value
    if idle_layer:
        last = f"transformer.resblocks.{layers - 1}."
        idle = {key.replace(last, f"transformer.resblocks.{layers}."): -value for key, value in names.items()}
        names |= {key: value for key, value in idle.items() if key not in names}
        width = len(names["positional_embedding"][0])
        names["text_projection"] = torch.zeros(width, width)
    names["logit_scale"] = torch.tensor(4.6)
    return {prefix + key: value for key, value in names.items()}


def text_names(parts, family):
    if family == "sdxl":
        first = transformers_names("conditioner.embedders.0.transformer.", parts["text_encoder"])
        return first | open_clip_names("conditioner.embedders.1.model.", parts["text_encoder_2"])
    if family == "sdxl-refiner":
        return open_clip_names("conditioner.embedders.0.model.", parts["text_encoder_2"])
    if family == "sd2":
        return open_clip_names("cond_stage_model.model.", parts["text_encoder"], idle_layer=True)
    return transformers_names("cond_stage_model.transformer.", parts["text_encoder"])


def from_diffusers(parts, family="sd1"):
    """The parts' state dicts to one original checkpoint."""
    unet, vae = unet_places(parts["unet"]), vae_places(parts["vae"])
    names = {"model.diffusion_model." + unet_key(key, unet): value for key, value in parts["unet"].items()}
    for key, value in parts["vae"].items():
        name = "first_stage_model." + vae_key(key, vae)
        names[name] = vae_tensor(name, value)
    return names | text_names(parts, family)
