"""Trains the tiny-shapes model, one part after the other.

    python tools/model/train.py vae     --work DIR [--steps N]
    python tools/model/train.py latents --work DIR [--pictures N]
    python tools/model/train.py text    --work DIR [--steps N]
    python tools/model/train.py unet    --work DIR [--steps N]
    python tools/model/train.py decoder --work DIR [--steps N]

`text` teaches the text encoder to read: behind a prompt's last word, its outputs say what lies in
each ninth of the picture. A network this small finds that out by denoising alone only after tens
of thousands of steps; read off the scenes it takes minutes. The encoder is then fixed and `unet`
learns to draw what it says. The latents fix the VAE's encoder; `decoder` sharpens its decoder
alone and may run at any time after `latents`.

Every stage is seeded, writes DIR/<stage>.pt every few minutes and goes on from there when it is
started again. The learning rate is warmed up, held, and falls to zero over the last third of the
steps, so a run can be lengthened or shortened by giving another --steps when it is resumed.
Training waits for as long as the file named by --pause-file, or PAUSE_FILE, exists.
"""

import argparse
import os
import random
import sys
import time

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from transformers import CLIPTextConfig, CLIPTextModel

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import draw
import tokenizer
from muon import Muon

SCHEDULER = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012,
             "beta_schedule": "scaled_linear", "steps_offset": 1, "clip_sample": False}
VAE = {"in_channels": 3, "out_channels": 3, "latent_channels": 4, "sample_size": draw.SIDE,
       "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4,
       "block_out_channels": [64, 64, 64, 64], "layers_per_block": 1, "norm_num_groups": 32,
       "act_fn": "silu"}
TEXT = {"vocab_size": 49408, "hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 5,
        "num_attention_heads": 4, "max_position_embeddings": 77, "hidden_act": "quick_gelu",
        "projection_dim": 32, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
UNET = {"in_channels": 4, "out_channels": 4, "sample_size": draw.SIDE // 8,
        "cross_attention_dim": 32, "attention_head_dim": 4, "norm_num_groups": 32,
        "block_out_channels": [64, 64, 64], "layers_per_block": 1, "act_fn": "silu",
        "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"]}
# The VAE trains on quarters of pictures at first, then on whole pictures every fourth step, and at
# the end only on whole ones. Until NEGATIVES of the steps the channels are randomly inverted.
QUARTERS, WHOLE, NEGATIVES = 0.50, 0.97, 0.45
LAYOUT = 0.6    # of the UNet's steps, before details count as much


class Run:
    """Progress, pauses, learning rate and checkpoints of one stage."""

    def __init__(self, name, args, modules, optimizer, rate, average=0.999):
        self.path = os.path.join(args.work, name + ".pt")
        self.pause_file, self.steps, self.rate = args.pause_file, args.steps, rate
        self.modules, self.optimizer, self.decay = modules, optimizer, average
        self.average = {k: {n: p.detach().clone() for n, p in m.state_dict().items()}
                        for k, m in modules.items()}
        self.step, self.saved, self.shown, self.extra, self.means = 0, time.time(), 0.0, {}, None
        if os.path.exists(self.path):
            state = torch.load(self.path, weights_only=False)
            for key, module in modules.items():
                module.load_state_dict(state["modules"][key])
            self.average, self.step, self.extra = state["average"], state["step"], state["extra"]
            if state["optimizer"]:
                optimizer.load_state_dict(state["optimizer"])
        self.first, self.began = self.step, time.time()

    def __iter__(self):
        while self.step < self.steps:
            while os.path.exists(self.pause_file):
                time.sleep(1)
            fall = min(1.0, (self.steps - self.step) / (self.steps / 3))
            rate = self.rate * min(1.0, (self.step + 1) / 100) * fall
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            random.seed(self.step)
            torch.manual_seed(self.step)
            yield self.step
            self.step += 1
            with torch.no_grad():
                decay = min(self.decay, (self.step + 1) / (self.step + 10))
                for key, module in self.modules.items():
                    for name, value in module.state_dict().items():
                        if value.dtype.is_floating_point:
                            self.average[key][name].lerp_(value, 1 - decay)
            if time.time() - self.saved > 150:
                self.save()
        self.save()

    def save(self):
        torch.save({"modules": {k: m.state_dict() for k, m in self.modules.items()},
                    "average": self.average, "optimizer": self.optimizer.state_dict(),
                    "step": self.step, "extra": self.extra}, self.path + ".new")
        os.replace(self.path + ".new", self.path)
        self.saved = time.time()

    def learn(self, loss):
        """One step of the optimizer."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for group in self.optimizer.param_groups:
            torch.nn.utils.clip_grad_norm_(group["params"], 1.0)
        self.optimizer.step()

    def show(self, text, *values):
        """Prints the running means of the values, every five seconds."""
        values = [float(torch.as_tensor(v).detach()) for v in values]
        self.means = [0.98 * m + 0.02 * v for m, v in zip(self.means or values, values)]
        if time.time() - self.shown < 5:
            return
        self.shown = time.time()
        done = self.step + 1 - self.first
        left = (self.steps - self.step - 1) * (time.time() - self.began) / done
        print(f"step {self.step + 1}/{self.steps}  {text.format(*self.means)}  {left / 60:.1f} min left", flush=True)


def as_tensor(pictures):
    """[n, 3, SIDE, SIDE] in -1 … 1."""
    pixels = np.stack([np.asarray(p) for p in pictures])
    batch = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
    return batch.contiguous(memory_format=torch.channels_last)


def half():
    return torch.autocast("cpu", torch.bfloat16)


# ---- VAE --------------------------------------------------------------------------------------

def crop(picture, rng):
    """A quarter of the picture: early training learns as much from it, in a quarter of the time."""
    side = draw.SIDE // 2
    x, y = rng.randint(8, side - 8), rng.randint(8, side - 8)
    return picture.crop((x, y, x + side, y + side))


def edges(x):
    return x[..., :, 1:] - x[..., :, :-1], x[..., 1:, :] - x[..., :-1, :]


@torch.no_grad()
def start_linear(vae):
    """Residual branches begin at zero and resampling as plain averaging, so that colours pass
    through the whole stack from the first step instead of having to be found."""
    for name, module in vae.named_modules():
        if name.endswith(("conv2", "to_out.0")):
            module.weight.zero_()
            module.bias.zero_()
        elif name.endswith(("downsamplers.0.conv", "upsamplers.0.conv")):
            module.weight.mul_(0.1)
            each = torch.arange(len(module.weight))
            if "down" in name:
                module.weight[each, each] += 1 / 9
            else:
                module.weight[each, each, 1, 1] += 1
            module.bias.zero_()


def batch_of_pictures(args, step):
    scenes = [draw.training_scene(random) for _ in range(args.batch)]
    pictures = [draw.picture(s, random) for s in scenes]
    early = args.stage == "vae" and step < QUARTERS * args.steps
    if early or (step % 4 and step < WHOLE * args.steps):
        pictures = [crop(picture, random) for picture in pictures]
    return as_tensor(pictures)


def likeness(y, x):
    """How far the pictures y are from x: plain, squared, at edges and between channels."""
    edge = sum(F.l1_loss(a, b) for a, b in zip(edges(y), edges(x)))
    colour = F.l1_loss(y - y.roll(1, 1), x - x.roll(1, 1))
    return F.l1_loss(y, x), F.mse_loss(y, x), edge, colour


def decode_noisy(vae, mean, strength):
    """Noise on the latents makes the decoder forgive what the UNet gets slightly wrong."""
    amount = strength * mean.detach().float().std()
    return vae.decode(mean + amount * torch.randn_like(mean)).sample.float()


def train_vae(args):
    torch.manual_seed(1)
    vae = AutoencoderKL(**VAE).to(memory_format=torch.channels_last)
    start_linear(vae)
    run = Run("vae", args, {"vae": vae}, Muon([vae], 1e-3), 1e-3, average=0.995)
    if args.compile:
        vae.encoder.compile(dynamic=False)
        vae.decoder.compile(dynamic=False)
    for step in run:
        x = batch_of_pictures(args, step)
        if step < NEGATIVES * args.steps:
            # Random negatives per channel: backgrounds become as colourful as the objects, and
            # all three channels are learned as fast as brightness.
            x = x * (torch.randint(0, 2, (len(x), 3, 1, 1)) * 2 - 1)
        with half():
            code = vae.encode(x).latent_dist
            y = decode_noisy(vae, code.mean, 0.06 * min(1.0, step / 1000))
        parts = likeness(y, x)
        # In place of a KL term: latents of moderate size, a narrow posterior.
        size = code.mean.float().square().mean()
        narrow = (code.logvar.float() + 6).square().mean()
        run.learn(sum(parts) + 1e-4 * size + 1e-4 * narrow)
        run.show("l1 {:.4f} mse {:.5f} edge {:.4f} colour {:.4f} size {:.2f}", *parts, size)


def train_decoder(args):
    vae = load_vae(args.work)
    trained = torch.nn.ModuleList([vae.post_quant_conv, vae.decoder])
    run = Run("decoder", args, {"vae": vae}, Muon([trained], 1e-3), 1e-3, average=0.998)
    vae.encoder.requires_grad_(False)
    if args.compile:
        vae.encoder.compile(dynamic=False)
        vae.decoder.compile(dynamic=False)
    for step in run:
        x = batch_of_pictures(args, step)
        with half():
            with torch.no_grad():
                mean = vae.encode(x).latent_dist.mean
            y = decode_noisy(vae, mean, 0.06)
        parts = likeness(y, x)
        # Objects are a fifth of a picture and all that it is about.
        objects = (x - x[..., :1]).abs().amax(1, keepdim=True) > 0.05
        run.learn(sum(parts) + 2 * ((y - x).abs() * objects).mean())
        run.show("l1 {:.4f} mse {:.5f} edge {:.4f} colour {:.4f}", *parts)


def load_vae(work):
    vae = AutoencoderKL(**VAE)
    vae.load_state_dict(torch.load(os.path.join(work, "vae.pt"), weights_only=False)["average"]["vae"])
    return vae.eval().to(memory_format=torch.channels_last)


# ---- latents ----------------------------------------------------------------------------------

@torch.no_grad()
def make_latents(args):
    """Draws the pictures of the second stage once and keeps their latents and scenes."""
    vae, rng, began = load_vae(args.work), random.Random(2), time.time()
    latents, scenes = [], []
    while len(scenes) < args.pictures:
        while os.path.exists(args.pause_file):
            time.sleep(1)
        some = [draw.training_scene(rng) for _ in range(64)]
        x = as_tensor([draw.picture(s, rng) for s in some])
        with half():
            latents.append(vae.encode(x).latent_dist.mean.float())
        scenes += some
        if len(latents) % 20 == 0:
            left = (args.pictures - len(scenes)) * (time.time() - began) / len(scenes)
            print(f"pictures {len(scenes)}/{args.pictures}  {left / 60:.1f} min left", flush=True)
    latents = torch.cat(latents)
    scale = 1 / latents.std().item()
    torch.save({"latents": latents * scale, "scale": scale, "scenes": scenes},
               os.path.join(args.work, "latents.pt"))
    print(f"scaling factor {scale:.5f}", flush=True)


# ---- text encoder -----------------------------------------------------------------------------

# The outputs from FIRST_ROLE on, where every training prompt has ended, take turns: nine tell of
# the ninths of the picture, row by row, and the tenth tells of the background.
FIRST_ROLE, ROLES = 33, 10
GROUNDS = ("", *draw.BACKGROUNDS)
SHAPES, COLOURS, STYLES = ("", *draw.SHAPES), ("", *draw.COLOURS), ("", *draw.STYLES)
SIZES = ("", *draw.SIZES, "of two", "of three")
NINTHS = {"centre": 4, "left": 3, "right": 5, "top": 1, "bottom": 7,
          "top left": 0, "top right": 2, "bottom left": 6, "bottom right": 8}


def meaning(scene):
    """[nine of (shape, colour, style, size)], background: indices into the lists above, 0 for
    nothing. Without a scene, as for the empty prompt, nothing is anywhere."""
    ninths = [(0, 0, 0, 0)] * 9
    if not scene:
        return ninths, 0

    def put(where, thing, size):
        shape, colour = thing
        ninths[where] = (SHAPES.index(shape), COLOURS.index(colour),
                         STYLES.index(scene["style"]), SIZES.index(size))

    if scene["kind"] == "two":
        places = {"left": (3, 5), "above": (1, 7)}[scene["relation"]]
        for where, thing in zip(places, scene["objects"]):
            put(where, thing, "of two")
    elif scene["kind"] == "three":
        for where in (3, 4, 5):
            put(where, scene["objects"][0], "of three")
    else:
        put(NINTHS[scene["place"]], scene["objects"][0], scene["size"])
    return ninths, GROUNDS.index(scene["background"])


class Reader(torch.nn.Module):
    """Reads scenes off the text encoder's outputs; only training needs it."""

    def __init__(self):
        super().__init__()
        self.sizes = [len(SHAPES), len(COLOURS), len(STYLES), len(SIZES)]
        self.ninth = torch.nn.Linear(TEXT["hidden_size"], sum(self.sizes))
        self.ground = torch.nn.Linear(TEXT["hidden_size"], len(GROUNDS))
        # Whose turn it is: the UNet finds the ninth that a pixel lies in by this.
        self.role = torch.nn.Linear(TEXT["hidden_size"], ROLES)

    def forward(self, states, ninths, grounds):
        """states [n, 77, width], ninths [n, 9, 4], grounds [n]: loss, share of scenes read right."""
        roles = torch.arange(FIRST_ROLE, states.shape[1]) % ROLES
        at = roles < ROLES - 1
        said = self.ninth(states[:, FIRST_ROLE:][:, at]).split(self.sizes, -1)
        wanted = ninths[:, roles[at]]
        ground = self.ground(states[:, FIRST_ROLE:][:, ~at])
        want = grounds[:, None].expand(ground.shape[:2])
        turns = self.role(states[:, FIRST_ROLE:])
        loss = F.cross_entropy(turns.flatten(0, 1), roles.repeat(len(states)))
        loss = loss + F.cross_entropy(ground.flatten(0, 1), want.flatten())
        right = (ground.argmax(-1) == want).all(1)
        for i, part in enumerate(said):
            loss = loss + F.cross_entropy(part.flatten(0, 1), wanted[..., i].flatten())
            right &= (part.argmax(-1) == wanted[..., i]).all(1)
        return loss, right.float().mean()


def read_prompts(words, scenes, rng):
    """Token ids [n, 77] of one wording of each scene; None is worded as nothing."""
    prompts = [draw.prompt(scene, rng) if scene else "" for scene in scenes]
    return words(prompts, padding="max_length", max_length=77, return_tensors="pt").input_ids


def text_encoder():
    return CLIPTextModel(CLIPTextConfig(**TEXT, attn_implementation="eager"))


def train_text(args):
    torch.manual_seed(4)
    text, reader, words = text_encoder(), Reader(), tokenizer.load()
    run = Run("text", args, {"text": text, "reader": reader}, Muon([text, reader], 2e-3), 2e-3, average=0.99)
    for step in run:
        scenes = [None if random.random() < 0.02 else draw.training_scene(random) for _ in range(args.batch)]
        ninths, grounds = zip(*map(meaning, scenes))
        loss, right = reader(text(read_prompts(words, scenes, random))[0],
                             torch.tensor(ninths), torch.tensor(grounds))
        run.learn(loss)
        run.show("loss {:.4f} read right {:.3f}", loss, right)
    print(f"held-out prompts read right: {held_out_read(run, words):.4f}", flush=True)


@torch.no_grad()
def held_out_read(run, words, count=2000):
    """The share of held-out prompts that the averaged weights read right."""
    text, reader = text_encoder(), Reader()
    text.load_state_dict(run.average["text"])
    reader.load_state_dict(run.average["reader"])
    rng, right = random.Random(5), 0.0
    scenes = [s for s in (draw.random_scene(rng) for _ in range(count * 14)) if draw.held_out(s)][:count]
    for i in range(0, len(scenes), 200):
        some = scenes[i:i + 200]
        ninths, grounds = zip(*map(meaning, some))
        right += len(some) * reader(text(read_prompts(words, some, rng))[0],
                                    torch.tensor(ninths), torch.tensor(grounds))[1].item()
    return right / len(scenes)


# ---- UNet -------------------------------------------------------------------------------------

def load_text(work):
    text = text_encoder()
    text.load_state_dict(torch.load(os.path.join(work, "text.pt"), weights_only=False)["average"]["text"])
    return text.eval().requires_grad_(False)


def train_unet(args):
    data = torch.load(os.path.join(args.work, "latents.pt"), weights_only=False)
    latents, scenes = data["latents"], data["scenes"]
    torch.manual_seed(3)
    text, words = load_text(args.work), tokenizer.load()
    unet = UNet2DConditionModel(**UNET).to(memory_format=torch.channels_last)
    unet.set_attn_processor(AttnProcessor())    # its backward pass is the faster one on a CPU
    run = Run("unet", args, {"unet": unet}, Muon([unet], 1.5e-3), 1.5e-3)
    run.extra["scale"] = data["scale"]
    noising = DDPMScheduler(**SCHEDULER)
    signal = noising.alphas_cumprod / (1 - noising.alphas_cumprod)
    # First between min-SNR-5, which hardly hears of errors where noise is strong, and even weights on
    # the picture: there it is decided what lies where. Then min-SNR-5 itself: faces, rims, highlights.
    layout, detail = signal.clamp(max=5).sqrt() / signal, signal.clamp(max=5) / signal
    if args.compile:
        unet.compile(dynamic=False)
    for step in run:
        chosen = torch.randint(len(scenes), (args.batch,))
        x = latents[chosen]
        worded = [None if random.random() < 0.1 else scenes[i] for i in chosen.tolist()]
        with torch.no_grad():
            context = text(read_prompts(words, worded, random))[0]
        noise = torch.randn_like(x)
        # One random offset, evenly spread: every batch sees the whole range of timesteps.
        t = ((torch.rand(1) + torch.arange(args.batch) / args.batch) % 1 * 1000).long()
        noisy = noising.add_noise(x, noise, t).contiguous(memory_format=torch.channels_last)
        with half():
            guess = unet(noisy, t, context).sample
        weights = layout if step < LAYOUT * args.steps else detail
        loss = ((guess.float() - noise).square().mean((1, 2, 3)) * weights[t]).mean()
        run.learn(loss)
        run.show("loss {:.4f}", loss)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("stage", choices=("vae", "latents", "text", "unet", "decoder"))
    parser.add_argument("--work", required=True, help="folder for checkpoints")
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--batch", type=int, default=0)
    parser.add_argument("--pictures", type=int, default=20000)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--compile", action="store_true", help="needs a C++ compiler; faster")
    parser.add_argument("--pause-file", default=os.environ.get("PAUSE_FILE", ""))
    args = parser.parse_args()
    args.steps = args.steps or {"vae": 5000, "latents": 0, "text": 1500, "unet": 13600, "decoder": 8000}[args.stage]
    args.batch = args.batch or {"vae": 4, "latents": 0, "text": 128, "unet": 32, "decoder": 4}[args.stage]
    torch.set_num_threads(args.threads)
    os.makedirs(args.work, exist_ok=True)
    {"vae": train_vae, "latents": make_latents, "text": train_text, "unet": train_unet,
     "decoder": train_decoder}[args.stage](args)


if __name__ == "__main__":
    main()
