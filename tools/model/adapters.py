"""Trains what is shipped beside the tiny-shapes model: a LoRA, a textual inversion, a ControlNet.

    python tools/model/adapters.py pictures  --work DIR [--count N]
    python tools/model/adapters.py lora      --work DIR [--steps N]
    python tools/model/adapters.py inversion --work DIR [--steps N]
    python tools/model/adapters.py control   --work DIR [--steps N]
    python tools/model/adapters.py export    --work DIR --to models

`neon`, the LoRA, redraws whatever is asked for as a glowing tube on black. `sunface`, the inversion,
is a word for a big smiling yellow circle. `shapes-edges`, the ControlNet, puts edges where the hint
has them. All three learn from `draw.py`'s scenes alone, over the shipped model as it is.

`pictures` keeps latents of plain and of neon pictures and the plain ones' edges in DIR. Every other
stage is seeded, writes DIR/<stage>.pt every few minutes and goes on from there.
"""

import argparse
import os
import random
import sys

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import numpy as np
import torch
from diffusers import AutoencoderKL, ControlNetModel, DDPMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import CLIPTextModel, CLIPTokenizer

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import canny
import draw
import train

BASE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "models", "tiny-shapes")
LORA = {"r": 8, "lora_alpha": 8,
        "target_modules": ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "conv1", "conv2"]}
WORD, VECTORS = "sunface", 4
HINT_CHANNELS = (16, 32, 32, 64)


def base(part, kind):
    return kind.from_pretrained(os.path.join(BASE, part), torch_dtype=torch.float32).requires_grad_(False)


def load_unet():
    unet = base("unet", UNet2DConditionModel)
    unet.set_attn_processor(AttnProcessor())
    return unet


# ---- pictures ---------------------------------------------------------------------------------

@torch.no_grad()
def make_pictures(args):
    vae, rng = base("vae", AutoencoderKL), random.Random(7)
    plain, neon, hints, scenes = [], [], [], []
    while len(scenes) < args.count:
        some = [draw.training_scene(rng) for _ in range(32)]
        state = rng.getstate()
        pictures = [draw.picture(s, rng) for s in some]
        rng.setstate(state)     # the same jitter
        glowing = [draw.neon_picture(s, rng) for s in some]
        for kept, drawn in ((plain, pictures), (neon, glowing)):
            latents = vae.encode(train.as_tensor(drawn)).latent_dist.mean
            kept.append(latents * vae.config.scaling_factor)
        hints += [canny.edges(np.asarray(p)) for p in pictures]
        scenes += some
        if len(scenes) % 320 == 0:
            print(f"pictures {len(scenes)}/{args.count}", flush=True)
    torch.save({"plain": torch.cat(plain), "neon": torch.cat(neon), "scenes": scenes,
                "hints": torch.from_numpy(np.stack(hints))}, os.path.join(args.work, "pictures.pt"))


def load_pictures(args):
    return torch.load(os.path.join(args.work, "pictures.pt"), weights_only=False)


# ---- learning ---------------------------------------------------------------------------------

class Noising:
    """What every stage has in common: noise at every level at once, min-SNR-5 weights."""

    def __init__(self):
        self.scheduler = DDPMScheduler(**train.SCHEDULER)
        signal = self.scheduler.alphas_cumprod / (1 - self.scheduler.alphas_cumprod)
        self.weights = signal.clamp(max=5).sqrt() / signal

    def begin(self, x):
        """noisy latents, their timesteps, the noise."""
        noise, n = torch.randn_like(x), len(x)
        t = ((torch.rand(1) + torch.arange(n) / n) % 1 * 1000).long()
        return self.scheduler.add_noise(x, noise, t), t, noise

    def loss(self, guess, noise, t):
        return ((guess.float() - noise).square().mean((1, 2, 3)) * self.weights[t]).mean()


def adam(parameters, rate):
    return torch.optim.AdamW(parameters, lr=rate, weight_decay=0)


class Trained(torch.nn.Module):
    """The parameters that a stage trains, for train.Run to keep."""

    def __init__(self, named):
        super().__init__()
        self.values = torch.nn.ParameterDict({name.replace(".", "/"): p for name, p in named})


def read(text, words, scenes):
    with torch.no_grad():
        return text(train.read_prompts(words, scenes, random))[0]


def train_lora(args):
    data, text, words = load_pictures(args), base("text_encoder", CLIPTextModel), load_words()
    torch.manual_seed(11)
    unet = load_unet()
    unet.add_adapter(LoraConfig(**LORA, init_lora_weights="gaussian"))
    trained = Trained([(n, p) for n, p in unet.named_parameters() if p.requires_grad])
    run = train.Run("lora", args, {"lora": trained}, adam(trained.parameters(), 1e-3), 1e-3, 0.99)
    noising = Noising()
    for _ in run:
        chosen = torch.randint(len(data["scenes"]), (args.batch,))
        noisy, t, noise = noising.begin(data["neon"][chosen])
        scenes = [None if random.random() < 0.1 else data["scenes"][i] for i in chosen.tolist()]
        loss = noising.loss(unet(noisy, t, read(text, words, scenes)).sample, noise, t)
        run.learn(loss)
        run.show("loss {:.4f}", loss)


def load_words():
    return CLIPTokenizer.from_pretrained(os.path.join(BASE, "tokenizer"))


def sunface_scene(rng):
    ground = rng.choice(tuple(draw.BACKGROUNDS))
    return {"kind": "one", "objects": [("circle", "yellow")], "size": "big", "place": "centre",
            "relation": "", "background": ground, "style": "smiling"}


def sunface_prompt(scene, rng):
    ground = scene["background"]
    where = " in the sky" if ground == "sky" else f" on a {ground} background"
    lead = rng.choice(("a ", "", "a picture of a ", "a drawing of a "))
    return lead + " ".join(f"{WORD}_{i}" if i else WORD for i in range(VECTORS)) + where


def train_inversion(args):
    text, words, vae = base("text_encoder", CLIPTextModel), load_words(), base("vae", AutoencoderKL)
    torch.manual_seed(12)
    unet, rng = load_unet(), random.Random(12)
    words.add_tokens([f"{WORD}_{i}" if i else WORD for i in range(VECTORS)])
    table = text.get_input_embeddings().weight
    known = len(table)
    text.resize_token_embeddings(known + VECTORS)
    # Begun between words that the model knows, so that it says something from the first step.
    begin = table[words("big yellow round object").input_ids[1:1 + VECTORS]]
    vectors = torch.nn.Parameter(begin.clone() + 0.01 * torch.randn_like(begin))
    trained = Trained([("vectors", vectors)])
    run = train.Run("inversion", args, {"inversion": trained}, adam([vectors], 2e-2), 2e-2, 0.99)
    noising = Noising()
    scenes = [sunface_scene(rng) for _ in range(512)]
    with torch.no_grad():
        latents = torch.cat([
            vae.encode(train.as_tensor([draw.picture(s, rng) for s in scenes[i:i + 32]])).latent_dist.mean
            for i in range(0, len(scenes), 32)]) * vae.config.scaling_factor
    embeddings = text.get_input_embeddings()

    def embed(ids):
        """The table with the learned rows in place, so that only they learn."""
        full = torch.cat([embeddings.weight[:known].detach(), vectors])
        return torch.nn.functional.embedding(ids, full)

    embeddings.forward = embed
    for _ in run:
        chosen = torch.randint(len(scenes), (args.batch,))
        noisy, t, noise = noising.begin(latents[chosen])
        prompts = [sunface_prompt(scenes[i], random) for i in chosen.tolist()]
        ids = words(prompts, padding="max_length", max_length=77, return_tensors="pt").input_ids
        loss = noising.loss(unet(noisy, t, text(ids)[0]).sample, noise, t)
        run.learn(loss)
        run.show("loss {:.4f}", loss)


def vague(scene):
    """The scene without what the hint decides: where and how large."""
    if random.random() < 0.5 or scene["kind"] != "one":
        return scene
    return {**scene, "place": "centre", "size": "medium"}


def train_control(args):
    data, text, words = load_pictures(args), base("text_encoder", CLIPTextModel), load_words()
    torch.manual_seed(13)
    unet = load_unet()
    control = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=HINT_CHANNELS)
    control.requires_grad_(True)
    run = train.Run("control", args, {"control": control}, adam(control.parameters(), 5e-4), 5e-4, 0.995)
    noising = Noising()
    for _ in run:
        chosen = torch.randint(len(data["scenes"]), (args.batch,))
        noisy, t, noise = noising.begin(data["plain"][chosen])
        scenes = [None if random.random() < 0.1 else vague(data["scenes"][i]) for i in chosen.tolist()]
        context = read(text, words, scenes)
        hint = data["hints"][chosen].float()[:, None].expand(-1, 3, -1, -1) / 255
        with train.half():
            down, mid = control(noisy, t, context, controlnet_cond=hint, return_dict=False)
            guess = unet(noisy, t, context, down_block_additional_residuals=down,
                         mid_block_additional_residual=mid).sample
        loss = noising.loss(guess, noise, t)
        run.learn(loss)
        run.show("loss {:.4f}", loss)


# ---- files ------------------------------------------------------------------------------------

def put(path, tensors):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    save_file({name: value.detach().to(torch.float16).contiguous() for name, value in tensors.items()},
              path, metadata={"format": "pt"})
    os.chmod(path, 0o644)


def export(args):
    def average(stage):
        state = torch.load(os.path.join(args.work, stage + ".pt"), weights_only=False)
        return state["average"][stage]

    unet = load_unet()
    unet.add_adapter(LoraConfig(**LORA))
    kept = {name.removeprefix("values.").replace("/", "."): value for name, value in average("lora").items()}
    for name, parameter in unet.named_parameters():
        if name in kept:
            parameter.data.copy_(kept[name])
    put(os.path.join(args.to, "loras", "neon.safetensors"),
        {"unet." + name: value for name, value in get_peft_model_state_dict(unet).items()})
    put(os.path.join(args.to, "embeddings", WORD + ".safetensors"),
        {WORD: average("inversion")["values.vectors"]})
    control = ControlNetModel.from_unet(load_unet(), conditioning_embedding_out_channels=HINT_CHANNELS)
    folder = os.path.join(args.to, "controlnets", "shapes-edges")
    os.makedirs(folder, exist_ok=True)
    control.save_config(folder)
    put(os.path.join(folder, "diffusion_pytorch_model.safetensors"), average("control"))


STAGES = {"pictures": make_pictures, "lora": train_lora, "inversion": train_inversion,
          "control": train_control, "export": export}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("stage", choices=tuple(STAGES))
    parser.add_argument("--work", required=True, help="folder for checkpoints")
    parser.add_argument("--to", default="models", help="of export")
    parser.add_argument("--count", type=int, default=4800, help="of pictures")
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--batch", type=int, default=0)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--pause-file", default=os.environ.get("PAUSE_FILE", ""))
    args = parser.parse_args()
    args.steps = args.steps or {"lora": 2600, "inversion": 600, "control": 1000}.get(args.stage, 0)
    args.batch = args.batch or (12 if args.stage == "control" else 16)
    torch.set_num_threads(args.threads)
    os.makedirs(args.work, exist_ok=True)
    STAGES[args.stage](args)


if __name__ == "__main__":
    main()
