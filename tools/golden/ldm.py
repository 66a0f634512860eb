"""Names of the original Stable Diffusion checkpoints for a diffusers model's tensors.

Written for four levels, two layers per block and attention on the first three, as SD1 is.
"""

LEVELS = 4
LAYERS = 2

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


def unet_places():
    """Pairs of a diffusers prefix and its original one, and whether a resnet stands there."""
    places = [
        ("time_embedding.linear_1.", "time_embed.0.", False),
        ("time_embedding.linear_2.", "time_embed.2.", False),
        ("conv_in.", "input_blocks.0.0.", False),
        ("conv_norm_out.", "out.0.", False),
        ("conv_out.", "out.2.", False),
        ("mid_block.resnets.0.", "middle_block.0.", True),
        ("mid_block.attentions.0.", "middle_block.1.", False),
        ("mid_block.resnets.1.", "middle_block.2.", True),
    ]
    for level in range(LEVELS):
        down, up = f"down_blocks.{level}", f"up_blocks.{level}"
        for layer in range(LAYERS):
            block = f"input_blocks.{level * (LAYERS + 1) + layer + 1}"
            places.append((f"{down}.resnets.{layer}.", f"{block}.0.", True))
            places.append((f"{down}.attentions.{layer}.", f"{block}.1.", False))
        block = f"input_blocks.{(level + 1) * (LAYERS + 1)}"
        places.append((f"{down}.downsamplers.0.conv.", f"{block}.0.op.", False))
        for layer in range(LAYERS + 1):
            block = f"output_blocks.{level * (LAYERS + 1) + layer}"
            places.append((f"{up}.resnets.{layer}.", f"{block}.0.", True))
            places.append((f"{up}.attentions.{layer}.", f"{block}.1.", False))
        at = 1 if level == 0 else 2
        block = f"output_blocks.{level * (LAYERS + 1) + LAYERS}.{at}"
        places.append((f"{up}.upsamplers.0.conv.", f"{block}.conv.", False))
    return places


def vae_places():
    places = [("encoder.conv_norm_out.", "encoder.norm_out."), ("decoder.conv_norm_out.", "decoder.norm_out.")]
    for side in ("encoder", "decoder"):
        places.append((f"{side}.mid_block.attentions.0.", f"{side}.mid.attn_1."))
        for layer in range(2):
            places.append((f"{side}.mid_block.resnets.{layer}.", f"{side}.mid.block_{layer + 1}."))
    for level in range(LEVELS):
        for layer in range(LAYERS):
            places.append((f"encoder.down_blocks.{level}.resnets.{layer}.", f"encoder.down.{level}.block.{layer}."))
        places.append((f"encoder.down_blocks.{level}.downsamplers.0.", f"encoder.down.{level}.downsample."))
        # The original counts the decoder's levels from the picture's side.
        other = LEVELS - 1 - level
        for layer in range(LAYERS + 1):
            places.append((f"decoder.up_blocks.{level}.resnets.{layer}.", f"decoder.up.{other}.block.{layer}."))
        places.append((f"decoder.up_blocks.{level}.upsamplers.0.", f"decoder.up.{other}.upsample."))
    return places


def swap(rest, names):
    for new, old in names.items():
        if rest.startswith(f"{new}."):
            return old + rest[len(new) :]
    return rest


def unet_key(key):
    for prefix, original, is_resnet in unet_places():
        if key.startswith(prefix):
            rest = key[len(prefix) :]
            return original + (swap(rest, RESNET) if is_resnet else rest)
    raise KeyError(key)


def vae_key(key):
    for prefix, original in vae_places():
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


def original_names(parts):
    """{original name: (part, key)} for {"unet", "vae", "text_encoder"} of collections of keys."""
    names = {}
    for key in parts["unet"]:
        names["model.diffusion_model." + unet_key(key)] = "unet", key
    for key in parts["vae"]:
        names["first_stage_model." + vae_key(key)] = "vae", key
    for key in parts["text_encoder"]:
        original = "cond_stage_model.transformer.text_model." + key.removeprefix("text_model.")
        names[original] = "text_encoder", key
    return names


def from_diffusers(parts):
    """{"unet", "vae", "text_encoder"} of state dicts to one original checkpoint."""
    names = original_names(parts)
    return {name: vae_tensor(name, parts[part][key]) for name, (part, key) in names.items()}
