"""Small random models of the architectures that the engine draws, in every layout that it reads.

Each is loaded back by diffusers before it counts as made.
"""

import json
import pathlib
import shutil
import sys
import tarfile
import tempfile

import diffusers
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

import ldm
import shared

TINY_MERGES = 500

SD1_SCHEDULER = {
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.6.0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
    "clip_sample": False,
}
SD2_SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "_diffusers_version": "0.8.0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}
ZERO_SNR_SCHEDULER = {
    "_class_name": "EulerDiscreteScheduler",
    "_diffusers_version": "0.24.0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "interpolation_type": "linear",
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "steps_offset": 1,
    "timestep_spacing": "trailing",
    "trained_betas": None,
    "use_karras_sigmas": False,
}

SDXL_SCHEDULER = {
    "_class_name": "EulerDiscreteScheduler",
    "_diffusers_version": "0.19.0.dev0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "interpolation_type": "linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "sample_max_value": 1.0,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "trained_betas": None,
    "use_karras_sigmas": False,
}

TURBO_SCHEDULER = {
    **SDXL_SCHEDULER,
    "_class_name": "EulerAncestralDiscreteScheduler",
    "timestep_spacing": "trailing",
}
LCM_SCHEDULER = {
    "_class_name": "LCMScheduler",
    "_diffusers_version": "0.22.0.dev0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "clip_sample_range": 1.0,
    "dynamic_thresholding_ratio": 0.995,
    "num_train_timesteps": 1000,
    "original_inference_steps": 50,
    "prediction_type": "epsilon",
    "rescale_betas_zero_snr": False,
    "sample_max_value": 1.0,
    "set_alpha_to_one": True,
    "steps_offset": 0,
    "thresholding": False,
    "timestep_scaling": 10.0,
    "timestep_spacing": "leading",
    "trained_betas": None,
}

DOWN = ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"]
UP = ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3


# The small models of SDXL read this many tokens of a prompt, which keeps their dumps small.
SDXL_TOKENS = 24


def text_encoder(seed, merges, hidden, layers, heads, kind=CLIPTextModel, **more):
    config = CLIPTextConfig(
        vocab_size=514 + merges,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        **{
            "max_position_embeddings": 77,
            "hidden_act": "quick_gelu",
            "bos_token_id": 0,
            "eos_token_id": 2,
            "pad_token_id": 1,
            **more,
        },
    )
    return shared.randomize(kind(config), seed)


def sdxl_texts(seed):
    tokens = {"max_position_embeddings": SDXL_TOKENS}
    return {
        "text_encoder": text_encoder(seed, TINY_MERGES, 16, 3, 2, **tokens),
        "text_encoder_2": text_encoder(
            seed + 1,
            TINY_MERGES,
            24,
            4,
            3,
            kind=CLIPTextModelWithProjection,
            hidden_act="gelu",
            projection_dim=20,
            **tokens,
        ),
    }


def unet(seed, widths, heads, cross, groups, layers=2, **more):
    model = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=widths,
        layers_per_block=layers,
        attention_head_dim=heads,
        cross_attention_dim=cross,
        norm_num_groups=groups,
        down_block_types=DOWN[-len(widths) :],
        up_block_types=UP[: len(widths)],
        **more,
    )
    return shared.randomize(model, seed)


def sdxl_unet(seed, widths, heads, depths, texts, groups, ids=6, id_width=8, gains=None, **more):
    pooled = texts["text_encoder_2"].config.projection_dim
    model = UNet2DConditionModel(
        sample_size=12,
        block_out_channels=widths,
        attention_head_dim=heads,
        transformer_layers_per_block=depths,
        cross_attention_dim=sum(text.config.hidden_size for text in texts.values()),
        norm_num_groups=groups,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=id_width,
        projection_class_embeddings_input_dim=pooled + ids * id_width,
        **{
            "layers_per_block": 1,
            "down_block_types": ["DownBlock2D"] + ["CrossAttnDownBlock2D"] * (len(widths) - 1),
            "up_block_types": ["CrossAttnUpBlock2D"] * (len(widths) - 1) + ["UpBlock2D"],
            **more,
        },
    )
    # A calmer network magnifies rounding less.
    return shared.randomize(model, seed, {"conv_out": 0.4, **(gains or {})})


def vae(seed, widths, groups, layers=2, **more):
    model = AutoencoderKL(
        block_out_channels=widths,
        layers_per_block=layers,
        norm_num_groups=groups,
        down_block_types=["DownEncoderBlock2D"] * len(widths),
        up_block_types=["UpDecoderBlock2D"] * len(widths),
        latent_channels=4,
        sample_size=64,
        **{"scaling_factor": 0.18215, **more},
    )
    return shared.randomize(model, seed, {"decoder.conv_out": 0.6, "encoder.conv_out": 2.0})


def small_sdxl_vae(**more):
    return vae(593, [4, 4, 8, 8], 4, layers=1, **{"scaling_factor": 0.13025, **more})


def save_tokenizer(path, merges, pad, files=("vocab", "merges", "special", "config"), length=77):
    """The tokenizer files as published trees have them, `pad` as their pad token."""
    pairs = shared.clip_merges(merges)
    if "vocab" in files:
        vocabulary = json.dumps(shared.clip_vocabulary(pairs), ensure_ascii=False)
        path.mkdir(parents=True, exist_ok=True)
        (path / "vocab.json").write_text(vocabulary)
    if "merges" in files:
        (path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(pairs) + "\n")
    start, end = (
        {"content": text, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
        for text in ("<|startoftext|>", "<|endoftext|>")
    )
    if "special" in files:
        special = {"bos_token": start, "eos_token": end, "pad_token": pad, "unk_token": end}
        shared.write_json(path / "special_tokens_map.json", special)
    if "config" in files:
        token = {"__type": "AddedToken"}
        config = {
            "add_prefix_space": False,
            "bos_token": token | start,
            "do_lower_case": True,
            "eos_token": token | end,
            "errors": "replace",
            "model_max_length": length,
            "pad_token": pad,
            "tokenizer_class": "CLIPTokenizer",
            "unk_token": token | end,
        }
        shared.write_json(path / "tokenizer_config.json", config)


def save_weights(folder, name, tensors, shards=1):
    """One file, or `shards` of them and their index."""
    tensors = {key: value.contiguous() for key, value in tensors.items()}
    if shards == 1:
        save_file(tensors, folder / f"{name}.safetensors", metadata={"format": "pt"})
        return
    stem, _, variant = name.partition(".")
    variant = f".{variant}" if variant else ""
    keys = list(tensors)
    weight_map = {}
    for shard in range(shards):
        file = f"{stem}-{shard + 1:05d}-of-{shards:05d}{variant}.safetensors"
        if variant:
            file = f"{stem}{variant}-{shard + 1:05d}-of-{shards:05d}.safetensors"
        part = keys[shard::shards]
        save_file({key: tensors[key] for key in part}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    total = sum(value.numel() * value.element_size() for value in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    shared.write_json(folder / f"{stem}.safetensors.index{variant}.json", index)


SD_INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": "0.42.1",
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
}
SDXL_INDEX = {
    "_class_name": "StableDiffusionXLPipeline",
    "_diffusers_version": "0.42.1",
    "feature_extractor": [None, None],
    "force_zeros_for_empty_prompt": True,
    "image_encoder": [None, None],
}


REFINER_BLOCKS = {
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
}
REFINER_INDEX = {
    **SDXL_INDEX,
    "_class_name": "StableDiffusionXLImg2ImgPipeline",
    "force_zeros_for_empty_prompt": False,
    "requires_aesthetics_score": True,
}


def pipeline_index(head, parts, scheduler):
    index = {**head, "scheduler": ["diffusers", scheduler["_class_name"]]}
    for name in ("text_encoder", "text_encoder_2"):
        tokenizer = name.replace("text_encoder", "tokenizer")
        if name in parts:
            index[name] = ["transformers", type(parts[name]).__name__]
            index[tokenizer] = ["transformers", "CLIPTokenizer"]
        elif "text_encoder_2" in parts:
            index[name] = index[tokenizer] = [None, None]
    return index | {"unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"]}


def save_tree(
    name,
    parts,
    scheduler,
    dtype,
    pad,
    variant="",
    shards=1,
    rename=None,
    merges=TINY_MERGES,
    root=None,
    head=SD_INDEX,
):
    """A diffusers folder; `rename` changes a component's tensors to the names of older releases. `pad`
    is of the first tokenizer, the second one's is always "!"."""
    root = root or shared.MODELS / name
    shutil.rmtree(root, ignore_errors=True)
    shared.write_json(root / "model_index.json", pipeline_index(head, parts, scheduler))
    shared.write_json(root / "scheduler" / "scheduler_config.json", scheduler)
    for component, model in parts.items():
        folder = root / component
        folder.mkdir(parents=True)
        is_text = component.startswith("text_encoder")
        if is_text:
            tokenizer = root / component.replace("text_encoder", "tokenizer")
            token = pad if component == "text_encoder" else "!"
            save_tokenizer(tokenizer, merges, token, length=model.config.max_position_embeddings)
        model.config.save_pretrained(folder) if is_text else model.save_config(folder)
        tensors = {key: value.to(dtype) for key, value in model.state_dict().items()}
        if rename and component in rename:
            tensors = rename[component](tensors)
        count = shards if component == "unet" else 1
        stem = "model" if is_text else "diffusion_pytorch_model"
        save_weights(folder, stem + variant, tensors, count)


def with_text_model(tensors):
    """The names of transformers before 5.6, and its needless position ids."""
    renamed = {f"text_model.{key.removeprefix('text_model.')}": value for key, value in tensors.items()}
    renamed["text_model.embeddings.position_ids"] = torch.arange(77).unsqueeze(0)
    return renamed


def without_text_model(tensors):
    return {key.removeprefix("text_model."): value for key, value in tensors.items()}


def with_old_attention(tensors):
    """The names of diffusers before 0.18 for the attention of the VAE."""
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def rename(key):
        for new, old in names.items():
            key = key.replace(f".{new}.", f".{old}.")
        return key

    return {rename(key): value for key, value in tensors.items()}


def make_sd1_small():
    parts = {
        "text_encoder": text_encoder(101, TINY_MERGES, 40, 3, 4),
        "unet": unet(102, [16, 24, 24, 32], 4, 40, 8),
        "vae": vae(103, [8, 16, 16, 24], 4),
    }
    rename = {"text_encoder": with_text_model}
    save_tree("sd1-small", parts, SD1_SCHEDULER, torch.float32, "<|endoftext|>", rename=rename)


def make_sd2_small():
    parts = {
        "text_encoder": text_encoder(201, TINY_MERGES, 32, 2, 4, hidden_act="gelu"),
        "unet": unet(202, [16, 24, 40], [2, 3, 4], 32, 8, layers=1, use_linear_projection=True),
        "vae": vae(203, [8, 8, 16, 16], 8, layers=1),
    }
    rename = {"text_encoder": without_text_model, "vae": with_old_attention}
    save_tree("sd2-small", parts, SD2_SCHEDULER, torch.bfloat16, "!", rename=rename)


def make_sd2_zsnr():
    parts = {
        "text_encoder": text_encoder(301, TINY_MERGES, 36, 2, 3, hidden_act="gelu"),
        "unet": unet(302, [40, 56], [1, 1], 36, 8, layers=1, use_linear_projection=True),
        "vae": vae(303, [12, 12, 20, 20], 4, layers=1),
    }
    rename = {"text_encoder": with_text_model}
    options = {"variant": ".fp16", "shards": 3, "rename": rename}
    save_tree("sd2-zsnr-sharded", parts, ZERO_SNR_SCHEDULER, torch.float16, "!", **options)


def repeat(tensor, period):
    """The first values over and over: a large file that packs to a small one."""
    flat = tensor.data.flatten()
    tensor.data.copy_(flat[torch.arange(len(flat)) % period].reshape(tensor.shape))


def repeat_tables(parts):
    for name, model in parts.items():
        if name.startswith("text_encoder"):
            table = model.get_input_embeddings().weight
            table.data.copy_(table.data[torch.arange(len(table)) % 389])


def repeat_all(parts):
    repeat_tables(parts)
    for model in parts.values():
        for parameter in model.parameters():
            if parameter.ndim > 1 and parameter.numel() > 2000 and len(parameter) < 40000:
                repeat(parameter, 499)


def sd1_single_parts():
    merges = len(shared.clip_merges())
    parts = {
        "text_encoder": text_encoder(401, merges, 32, 2, 1),
        "unet": unet(402, [32, 32, 32, 32], 8, 32, 32),
        "vae": vae(403, [32, 32, 32, 32], 32),
    }
    repeat_all(parts)
    return parts


def sd2_single_parts():
    merges = len(shared.clip_merges())
    parts = {
        "text_encoder": text_encoder(411, merges, 16, 2, 1, hidden_act="gelu"),
        "unet": unet(412, [32, 64], [1, 1], 16, 32, layers=1, use_linear_projection=True),
        "vae": vae(413, [32, 32, 32, 32], 32, layers=1),
    }
    # What tells that it predicts v.
    norm = parts["unet"].up_blocks[-1].attentions[-1].transformer_blocks[0].norm1
    norm.bias.data *= 2
    repeat_all(parts)
    return parts


def sdxl_single_parts():
    merges = len(shared.clip_merges())
    parts = {
        "text_encoder": text_encoder(421, merges, 8, 2, 1),
        "text_encoder_2": text_encoder(
            422, merges, 16, 3, 1, kind=CLIPTextModelWithProjection, hidden_act="gelu", projection_dim=16
        ),
    }
    # Next to large embeddings torch's norms of single channels lose most of their digits.
    gains = {"add_embedding.linear_2": 0.05}
    parts["unet"] = sdxl_unet(423, [32, 64, 128], [1, 1, 2], [1, 2, 1], parts, 32, gains=gains)
    parts["vae"] = vae(424, [32, 32, 32, 32], 32, layers=1, scaling_factor=0.13025)
    repeat_all(parts)
    return parts


def sdxl_refiner_single_parts():
    merges = len(shared.clip_merges())
    projected = {"kind": CLIPTextModelWithProjection, "hidden_act": "gelu", "projection_dim": 16}
    parts = {"text_encoder_2": text_encoder(431, merges, 16, 2, 1, **projected)}
    gains = {"add_embedding.linear_2": 0.05}
    parts["unet"] = sdxl_unet(433, [32, 64], [1, 1], [1, 2], parts, 32, ids=5, gains=gains)
    parts["vae"] = vae(424, [32, 32, 32, 32], 32, layers=1, scaling_factor=0.13025)
    repeat_all(parts)
    return parts


# How a single file's parts are drawn, its family, its scheduler and what makes a tree of it.
SINGLES = {
    "sd1-single": (sd1_single_parts, "sd1", SD1_SCHEDULER, SD_INDEX),
    "sd2-single": (sd2_single_parts, "sd2", SD2_SCHEDULER, SD_INDEX),
    "sdxl-single": (sdxl_single_parts, "sdxl", SDXL_SCHEDULER, SDXL_INDEX),
    "sdxl-refiner-single": (sdxl_refiner_single_parts, "sdxl-refiner", SDXL_SCHEDULER, REFINER_INDEX),
}


def make_single(name):
    parts_of, family, _scheduler, _head = SINGLES[name]
    tensors = ldm.from_diffusers({part: model.state_dict() for part, model in parts_of().items()}, family)
    path = shared.MODELS / f"{name}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    halves = {key: value.half().contiguous() for key, value in tensors.items()}
    save_file(halves, path, metadata={"format": "pt"})
    pack(path)


def pack(path):
    """Large for its tables that repeat: only the archive is committed, the build unpacks it."""
    entry = tarfile.TarInfo(path.name)
    entry.size = path.stat().st_size
    with tarfile.open(path.with_suffix(".tar.xz"), "w:xz", preset=9) as archive, path.open("rb") as file:
        archive.addfile(entry, file)


def make_sdxl_small():
    parts = sdxl_texts(501)
    parts["unet"] = sdxl_unet(503, [8, 12, 16], [1, 3, 2], [1, 1, 2], parts, 4)
    parts["vae"] = small_sdxl_vae()
    rename = {"text_encoder": with_text_model}
    save_tree("sdxl-small", parts, SDXL_SCHEDULER, torch.bfloat16, "<|endoftext|>", rename=rename, head=SDXL_INDEX)


def make_sdxl_refiner():
    parts = {"text_encoder_2": sdxl_texts(501)["text_encoder_2"]}
    parts["unet"] = sdxl_unet(514, [8, 12, 16], [1, 3, 2], 2, parts, 2, ids=5, **REFINER_BLOCKS)
    parts["vae"] = small_sdxl_vae()
    save_tree("sdxl-refiner", parts, SDXL_SCHEDULER, torch.bfloat16, None, head=REFINER_INDEX)


PLAIN_TEXT = {"text_encoder": with_text_model}


def make_wide(name, seed, channels, head):
    """SD1 with further input channels; text encoder and VAE are those of other small models."""
    text = sdxl_texts(501)["text_encoder"]
    network = unet(seed, [8, 16], 2, text.config.hidden_size, 2, layers=1, in_channels=channels)
    parts = {"text_encoder": text, "unet": network, "vae": small_sdxl_vae(scaling_factor=0.18215)}
    head = {**SD_INDEX, "_class_name": head}
    save_tree(name, parts, SD1_SCHEDULER, torch.bfloat16, "<|endoftext|>", rename=PLAIN_TEXT, head=head)


def make_sdxl_inpaint():
    parts = sdxl_texts(501)
    parts["unet"] = sdxl_unet(624, [8, 12], [1, 3], [1, 1], parts, 4, in_channels=9)
    parts["vae"] = small_sdxl_vae()
    head = {**SDXL_INDEX, "_class_name": "StableDiffusionXLInpaintPipeline"}
    save_tree("sdxl-inpaint", parts, SDXL_SCHEDULER, torch.bfloat16, "<|endoftext|>", rename=PLAIN_TEXT, head=head)


def make_sdxl_turbo():
    """The parts of sdxl-small, so that they lie in the repository once; its latents have a mean."""
    parts = sdxl_texts(501)
    parts["unet"] = sdxl_unet(503, [8, 12, 16], [1, 3, 2], [1, 1, 2], parts, 4)
    statistics = {"latents_mean": [-1.6574, 1.886, -1.383, 2.5155], "latents_std": [8.4927, 5.9022, 6.5498, 5.2299]}
    parts["vae"] = small_sdxl_vae(**statistics)
    rename = {"text_encoder": with_text_model}
    save_tree("sdxl-turbo", parts, TURBO_SCHEDULER, torch.bfloat16, "<|endoftext|>", rename=rename, head=SDXL_INDEX)


def make_sd1_lcm():
    text = sdxl_texts(501)["text_encoder"]
    parts = {
        "text_encoder": text,
        "unet": unet(602, [8, 16], 2, text.config.hidden_size, 4, layers=1, time_cond_proj_dim=18),
        "vae": small_sdxl_vae(scaling_factor=0.18215),
    }
    head = {**SD_INDEX, "_class_name": "LatentConsistencyModelPipeline"}
    rename = {"text_encoder": with_text_model}
    save_tree("sd1-lcm", parts, LCM_SCHEDULER, torch.bfloat16, "<|endoftext|>", rename=rename, head=head)


def make_sd1_old():
    """A folder of the first days: its scheduler says less, and wrongly, than later ones."""
    text = sdxl_texts(501)["text_encoder"]
    parts = {
        "text_encoder": text,
        "unet": unet(602, [8, 16], 2, text.config.hidden_size, 4, layers=1, time_cond_proj_dim=18),
        "vae": small_sdxl_vae(scaling_factor=0.18215),
    }
    betas = {key: SD1_SCHEDULER[key] for key in ("beta_end", "beta_schedule", "beta_start")}
    scheduler = {"_class_name": "DDIMScheduler", "_diffusers_version": "0.2.2", **betas}
    save_tree("sd1-old", parts, scheduler, torch.bfloat16, "<|endoftext|>", rename={"text_encoder": with_text_model})


MAKERS = {
    "sd1-small": make_sd1_small,
    "sd2-small": make_sd2_small,
    "sd2-zsnr-sharded": make_sd2_zsnr,
    "sdxl-small": make_sdxl_small,
    "sdxl-refiner": make_sdxl_refiner,
    "sdxl-turbo": make_sdxl_turbo,
    "sdxl-inpaint": make_sdxl_inpaint,
    "sd1-plain": lambda: make_wide("sd1-plain", 621, 4, "StableDiffusionPipeline"),
    "sd1-inpaint": lambda: make_wide("sd1-inpaint", 622, 9, "StableDiffusionInpaintPipeline"),
    "sd1-pix2pix": lambda: make_wide("sd1-pix2pix", 623, 8, "StableDiffusionInstructPix2PixPipeline"),
    "sd1-lcm": make_sd1_lcm,
    "sd1-old": make_sd1_old,
}


def check_tree(name):
    """diffusers reads the tree and finds the very numbers that were meant."""
    root = shared.MODELS / name
    variant = "fp16" if list(root.glob("unet/*fp16*")) else None
    pipe = DiffusionPipeline.from_pretrained(root, variant=variant)
    stored = {}
    for file in (root / "unet").glob("*.safetensors"):
        stored |= load_file(file)
    loaded = pipe.unet.state_dict()
    assert stored.keys() == loaded.keys()
    assert all(torch.equal(stored[key].float(), loaded[key].float()) for key in stored)


def check_single(name):
    """diffusers' own conversion of the checkpoint gives back what went in."""
    parts_of, _family, scheduler, head = SINGLES[name]
    parts = parts_of()
    pad = "!" if head is SD_INDEX and parts["text_encoder"].config.hidden_act == "gelu" else "<|endoftext|>"
    kind = getattr(diffusers, head["_class_name"])
    more = {"safety_checker": None} if head is SD_INDEX else {}
    with tempfile.TemporaryDirectory() as config:
        tree = {"dtype": torch.float32, "pad": pad, "merges": None, "head": head}
        save_tree("", parts, scheduler, root=pathlib.Path(config) / "tree", **tree)
        path = str(shared.MODELS / f"{name}.safetensors")
        pipe = kind.from_single_file(path, config=f"{config}/tree", local_files_only=True, **more)
    for part, module in parts.items():
        loaded = getattr(pipe, part).state_dict()
        for key, value in module.state_dict().items():
            assert torch.equal(loaded[key].float(), value.half().float()), (part, key)


def main():
    torch.manual_seed(0)
    for name in sys.argv[1:] or [*MAKERS, *SINGLES]:
        if name in SINGLES:
            make_single(name)
            check_single(name)
        else:
            MAKERS[name]()
            check_tree(name)
        print("made", name)


if __name__ == "__main__":
    main()
