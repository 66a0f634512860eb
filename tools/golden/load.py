"""Loads a golden model into a pipeline, as f32."""

import diffusers
import torch

import ldm
import make_models
import shared

from safetensors.torch import load_file
from transformers import CLIPTokenizer


def single(path):
    """The single-file model: the same modules that make_models drew, filled from the file."""
    parts = make_models.sd1_single_parts()
    stored = load_file(path)
    names = ldm.original_names({part: module.state_dict() for part, module in parts.items()})
    for original, (part, key) in names.items():
        tensor = parts[part].state_dict()[key]
        tensor.copy_(stored[original].float().reshape(tensor.shape))
    merges = shared.clip_merges()
    tokenizer = CLIPTokenizer(
        vocab=shared.clip_vocabulary(merges),
        merges=[tuple(merge.split()) for merge in merges],
        model_max_length=77,
    )
    scheduler = diffusers.PNDMScheduler.from_config(make_models.SD1_SCHEDULER)
    return diffusers.StableDiffusionPipeline(
        **parts,
        tokenizer=tokenizer,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def pipeline(name):
    path = shared.MODELS / name
    if not path.is_dir():
        return single(path.with_name(path.name + ".safetensors"))
    variant = "fp16" if list(path.glob("unet/*fp16*")) else None
    return diffusers.DiffusionPipeline.from_pretrained(path, variant=variant, dtype=torch.float32)
