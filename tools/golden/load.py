"""Loads a golden model into a pipeline, as f32."""

import diffusers
import torch

import make_models
import shared

from transformers import CLIPTokenizer


def tokenizer(merges, pad):
    return CLIPTokenizer(
        vocab=shared.clip_vocabulary(merges),
        merges=[tuple(merge.split()) for merge in merges],
        model_max_length=77,
        pad_token=pad,
    )


def single(name):
    """A single-file model: the same modules that make_models drew, with the file's precision. That
    diffusers reads the same from the file, make_models has checked."""
    parts_of, family, scheduler, head = make_models.SINGLES[name]
    parts = parts_of()
    for part in parts.values():
        part.load_state_dict({key: value.half().float() for key, value in part.state_dict().items()})
    merges = shared.clip_merges()
    if "text_encoder" in parts:
        parts["tokenizer"] = tokenizer(merges, "!" if family == "sd2" else "<|endoftext|>")
    if "text_encoder_2" in parts:
        parts["tokenizer_2"] = tokenizer(merges, "!")
        parts = {"text_encoder": None, "tokenizer": None} | parts
    more = {key: head[key] for key in head if key.startswith(("force_zeros", "requires"))}
    if family in ("sd1", "sd2"):
        more |= {"safety_checker": None, "feature_extractor": None}
    kind = getattr(diffusers, scheduler["_class_name"])
    return getattr(diffusers, head["_class_name"])(**parts, scheduler=kind.from_config(scheduler), **more)


def pipeline(name):
    path = shared.MODELS / name
    if not path.is_dir():
        return single(name)
    variant = "fp16" if list(path.glob("unet/*fp16*")) else None
    return diffusers.DiffusionPipeline.from_pretrained(path, variant=variant, dtype=torch.float32)
