"""Writes the trained model as a diffusers folder in 16-bit floats.

    python tools/model/export.py --work DIR --to models/tiny-shapes

The averaged weights are exported. Words that training never used keep a zero vector, so that an
unknown word in a prompt says nothing rather than something random.
"""

import argparse
import json
import os
import random
import shutil

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel

import draw
import tokenizer
import train


def known_tokens(words):
    """Every token id that a training prompt can hold."""
    rng, known = random.Random(4), {49406, 49407}
    for _ in range(20000):
        known.update(words(draw.prompt(draw.random_scene(rng), rng)).input_ids)
    return sorted(known)


def put_json(path, value):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=2)
        file.write("\n")


def put_weights(path, module):
    tensors = {name: value.detach().to(torch.float16).contiguous()
               for name, value in module.state_dict().items() if value.dtype.is_floating_point}
    save_file(tensors, path, metadata={"format": "pt"})
    os.chmod(path, 0o644)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--work", required=True)
    parser.add_argument("--to", required=True)
    args = parser.parse_args()

    def checkpoint(name):
        return torch.load(os.path.join(args.work, name + ".pt"), weights_only=False)

    state = checkpoint("unet")
    vae = AutoencoderKL(**train.VAE, scaling_factor=round(state["extra"]["scale"], 6))
    sharpened = os.path.exists(os.path.join(args.work, "decoder.pt"))
    vae.load_state_dict(checkpoint("decoder" if sharpened else "vae")["average"]["vae"])
    unet = UNet2DConditionModel(**train.UNET)
    unet.load_state_dict(state["average"]["unet"])
    text = CLIPTextModel(CLIPTextConfig(**train.TEXT))
    text.load_state_dict(checkpoint("text")["average"]["text"])

    for part in ("vae", "unet", "text_encoder", "tokenizer", "scheduler"):
        shutil.rmtree(os.path.join(args.to, part), ignore_errors=True)
        os.makedirs(os.path.join(args.to, part))
    words = tokenizer.load()
    tokenizer.write(os.path.join(args.to, "tokenizer"))
    table = next(p for n, p in text.named_parameters() if n.endswith("token_embedding.weight"))
    with torch.no_grad():
        kept = torch.zeros(len(table), 1)
        kept[known_tokens(words)] = 1
        table.mul_(kept)

    vae.save_config(os.path.join(args.to, "vae"))
    unet.save_config(os.path.join(args.to, "unet"))
    put_weights(os.path.join(args.to, "vae", "diffusion_pytorch_model.safetensors"), vae)
    put_weights(os.path.join(args.to, "unet", "diffusion_pytorch_model.safetensors"), unet)
    config = {"_class_name": None, "architectures": ["CLIPTextModel"], "model_type": "clip_text_model",
              "attention_dropout": 0.0, "dropout": 0.0, "initializer_factor": 1.0,
              "initializer_range": 0.02, "layer_norm_eps": 1e-5, "torch_dtype": "float16", **train.TEXT}
    del config["_class_name"]
    put_json(os.path.join(args.to, "text_encoder", "config.json"), config)
    put_weights(os.path.join(args.to, "text_encoder", "model.safetensors"), text)
    put_json(os.path.join(args.to, "scheduler", "scheduler_config.json"), {
        "_class_name": "DPMSolverMultistepScheduler", "_diffusers_version": "0.42.1",
        "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012,
        "beta_schedule": "scaled_linear", "trained_betas": None, "prediction_type": "epsilon",
        "steps_offset": 1, "clip_sample": False, "set_alpha_to_one": False,
        "skip_prk_steps": True, "algorithm_type": "dpmsolver++", "solver_order": 2,
        "solver_type": "midpoint", "lower_order_final": True, "timestep_spacing": "leading"})
    put_json(os.path.join(args.to, "model_index.json"), {
        "_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.42.1",
        "feature_extractor": [None, None], "requires_safety_checker": False,
        "safety_checker": [None, None], "scheduler": ["diffusers", "DPMSolverMultistepScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"]})
    size = sum(os.path.getsize(os.path.join(at, f)) for at, _, files in os.walk(args.to) for f in files)
    print(f"{args.to}: {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
