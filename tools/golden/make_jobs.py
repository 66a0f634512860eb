"""Runs jobs through diffusers' own pipelines, in f32 with the CPU generator, and keeps the stages.

One line of tests/golden/jobs.jsonl per job; its `id` names the dump in tests/golden/jobs:

    tokens, negative_tokens                i32 [77]
    tokens_2, negative_tokens_2            SDXL: the second tokenizer's
    prompt_embeds, negative_prompt_embeds  f32 [77, hidden]
    pooled, negative_pooled                SDXL: f32 [projection]
    time_ids, negative_time_ids            SDXL: f32 [6]
    init_latents                           f32 [4, h, w], the posterior's sample, scaled
    noise                                  f32 [4, h, w], before any scaling
    latents.<i>                            f32 [4, h, w], after call i
    image                                  f32 [height, width, 3], 0 ... 1, before rounding
    refiner.<any of the above>             what the refiner is told; its latents go on counting
    hires.<any of the above>               likewise of the second pass
    hires.enlarged                         what it starts from, before its noise
    prompt_embeds.<n>, pooled.<n>          of a dialect's further texts, parts and stages in order
    image.thin                             in its place where a model has many jobs: each fourth pixel
                                           of each fourth row, from the third on

Of a job that is marked `latents_only` the text's tensors and the pictures are left out.
"""

import contextlib
import inspect
import json
import sys

import diffusers
import numpy
import torch
import transformers
from diffusers.schedulers import AysSchedules
from PIL import Image
from safetensors.torch import save_file

import adapters
import controls
import dialects
import jobs
import load
import shared

CLASSES = {
    "ddim": "DDIMScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler_a": "EulerAncestralDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
    "lms": "LMSDiscreteScheduler",
    "dpm++ 2m": "DPMSolverMultistepScheduler",
    "pndm": "PNDMScheduler",
    "unipc": "UniPCMultistepScheduler",
    "dpm2": "KDPM2DiscreteScheduler",
    "dpm2_a": "KDPM2AncestralDiscreteScheduler",
    "dpm++ 2s": "DPMSolverSinglestepScheduler",
    "dpm++ sde": "DPMSolverSinglestepScheduler",
    "dpm++ 2m sde": "DPMSolverMultistepScheduler",
    "dpm++ 3m sde": "DPMSolverMultistepScheduler",
    "ddpm": "DDPMScheduler",
    "lcm": "LCMScheduler",
    "tcd": "TCDScheduler",
}
OPTIONS = {
    "dpm++ 2m": {"algorithm_type": "dpmsolver++"},
    "dpm++ 2s": {"algorithm_type": "dpmsolver++"},
    "dpm++ sde": {"algorithm_type": "sde-dpmsolver++"},
    "dpm++ 2m sde": {"algorithm_type": "sde-dpmsolver++"},
    "dpm++ 3m sde": {"algorithm_type": "sde-dpmsolver++", "solver_order": 3},
}
CURVES = ["karras", "exponential", "beta"]
OWN_OF_DIALECTS = ["prompt", "negative_prompt", "clip_skip"]
NOT_OF_DIALECTS = ["noise"]
NOT_OF_TUNED = ["noise", "init_latents", "tokens", "negative_tokens", "tokens_2", "negative_tokens_2",
                 "prompt_embeds", "negative_prompt_embeds", "pooled", "negative_pooled"]
NOT_OF_SAMPLERS = ["tokens", "negative_tokens", "prompt_embeds", "negative_prompt_embeds", "image"]

# What a job that is about its pictures' guides has of the text is as in other jobs.
NOT_OF_GUIDES = ["tokens", "negative_tokens", "tokens_2", "negative_tokens_2", "prompt_embeds", "negative_prompt_embeds",
                 "pooled", "negative_pooled", "time_ids", "negative_time_ids", "noise", "init_latents"]

# Its noise shows in the latents after the second pass's first call.
NOT_OF_HIRES = NOT_OF_GUIDES + ["hires.noise"]

# transformers 5.6 dropped the wrapper that the pipelines' clip skip still asks for.
transformers.CLIPTextModel.text_model = property(lambda self: self)


def scheduler_for(job, own):
    more = dict(OPTIONS.get(job.get("sampler"), {}))
    schedule = job.get("schedule", "normal")
    if schedule != "normal":
        more |= {f"use_{curve}_sigmas": curve == schedule for curve in CURVES}
    if schedule == "sgm_uniform":
        more["timestep_spacing"] = "trailing"
    name = job.get("sampler")
    if not name and not more:
        return own
    kind = getattr(diffusers, CLASSES[name]) if name else type(own)
    return kind.from_config(own.config, **more)


class Stages(dict):
    """Collects the stages of one run by standing between the pipeline and its parts."""

    def __init__(self, pipe):
        super().__init__()
        self.pipe = pipe
        self.latents = []

    def see_tokens(self, name):
        def hook(_module, args, kwargs, _output):
            tokens = args[0] if args else kwargs["input_ids"]
            self.setdefault(f"negative_{name}" if name in self else name, tokens[0].int())

        return hook

    def keep_rows(self, name, rows):
        if len(rows) == 3:
            rows = rows[[1, 0]]
        self[name] = rows[-1]
        if len(rows) == 2:
            self[f"negative_{name}"] = rows[0]

    def see_call(self, _module, _args, kwargs, _output):
        if "prompt_embeds" not in self:
            self.keep_rows("prompt_embeds", kwargs["encoder_hidden_states"])
            added = kwargs.get("added_cond_kwargs") or {}
            if added:
                self.keep_rows("pooled", added["text_embeds"])
                self.keep_rows("time_ids", added["time_ids"])

    def see_noise(self, draw):
        def wrapped(*args, **kwargs):
            noise = draw(*args, **kwargs)
            self.setdefault("noise", noise[0])
            return noise

        return wrapped

    def see_add_noise(self, add):
        def wrapped(samples, noise, timesteps):
            self.setdefault("init_latents", samples[0])
            return add(samples, noise, timesteps)

        return wrapped

    def see_step(self, _pipe, _index, _timestep, values):
        self[f"latents.{len(self.latents)}"] = values["latents"][0]
        self.latents.append(values["latents"])
        return values

    @contextlib.contextmanager
    def watching(self):
        handles = [self.pipe.unet.register_forward_hook(self.see_call, with_kwargs=True)]
        for name in ("", "_2"):
            encoder = getattr(self.pipe, f"text_encoder{name}", None)
            if encoder is not None:
                hook = self.see_tokens(f"tokens{name}")
                handles.append(encoder.register_forward_hook(hook, with_kwargs=True))
        module = sys.modules[type(self.pipe).__module__]
        draw, module.randn_tensor = module.randn_tensor, self.see_noise(module.randn_tensor)
        self.pipe.scheduler.add_noise = self.see_add_noise(self.pipe.scheduler.add_noise)
        try:
            yield
        finally:
            module.randn_tensor = draw
            for handle in handles:
                handle.remove()

    def finish(self, image):
        self["image"] = torch.from_numpy(image[0])
        if "negative_prompt_embeds" not in self:
            for name in [name for name in self if name.startswith("negative_")]:
                self.pop(name)
        if "Img2Img" not in type(self.pipe).__name__:
            self.pop("init_latents", None)


def is_xl(pipe):
    return hasattr(pipe, "text_encoder_2")


def as_pipeline(pipe, kind, **more):
    """The same parts and settings in another of the family's pipelines."""
    name = f"StableDiffusion{'XL' if is_xl(pipe) else ''}{kind}Pipeline"
    settings = {
        key: pipe.config[key]
        for key in ("force_zeros_for_empty_prompt", "requires_aesthetics_score")
        if key in pipe.config
    }
    if not is_xl(pipe):
        settings = {"requires_safety_checker": False}
    kind = getattr(diffusers, name)
    wanted = inspect.signature(kind.__init__).parameters
    return kind(**{key: value for key, value in {**pipe.components, **more, **settings}.items() if key in wanted})


def sdxl_arguments(job, pipe):
    names = {"original_size": "original_size", "target_size": "target_size", "crop": "crops_coords_top_left"}
    arguments = {argument: tuple(job[field]) for field, argument in names.items() if field in job}
    if "Img2Img" in type(pipe).__name__ or (is_xl(pipe) and "Inpaint" in type(pipe).__name__):
        scores = ("aesthetic_score", "negative_aesthetic_score")
        arguments |= {name: job[name] for name in scores if name in job}
    return arguments


def guide(job, pipe, arguments, size=None):
    """The pipeline with the job's ControlNets or T2I-Adapters, and what it is told of them; `size` is the
    width and height of its picture, if that is not the first one's."""
    kind = type(pipe).__name__.removeprefix("StableDiffusion").removeprefix("XL").removesuffix("Pipeline")
    nets = [controls.network(control["name"]) for control in job["controlnets"]]
    if isinstance(nets[0], diffusers.T2IAdapter):
        net, told = controls.adapter_arguments(job["controlnets"], nets)
        if is_xl(pipe):
            told["adapter_conditioning_factor"] = job["controlnets"][0]["end"]
        arguments.pop("clip_skip")
        return as_pipeline(pipe, "Adapter", adapter=net), {**arguments, **told}
    if all(controls.is_union(net) for net in nets):
        union, nets = "Union", nets[:1]
        hints, told = controls.union_arguments(job["controlnets"])
    else:
        union = ""
        hints, told = controls.arguments(job["controlnets"])
        nets = [
            controls.OneHint(net, control["mode"]) if controls.is_union(net) else net
            for net, control in zip(nets, job["controlnets"])
        ]
    name = "control_image" if kind or union else "image"
    if kind:
        width, height = size or arguments["image"].size
        told |= {"width": width, "height": height}
    return as_pipeline(pipe, f"ControlNet{union}{kind}", controlnet=nets if len(nets) > 1 else nets[0]), {
        **arguments,
        **told,
        name: hints,
    }


OF_ALL_PASSES = ("prompt", "negative_prompt", "num_inference_steps", "guidance_scale", "eta", "clip_skip", "generator")


def draw_on(job, pipe, stages, arguments):
    """Goes on drawing with a further pipeline, whose latents go on counting; also what else it was told."""
    pipe.scheduler = scheduler_for(job, pipe.scheduler)
    pipe.set_progress_bar_config(disable=True)
    told = Stages(pipe)
    told.latents = stages.latents
    with torch.no_grad(), told.watching():
        image = pipe(**arguments, callback_on_step_end=told.see_step).images
    stages |= {name: told[name] for name in told if name.startswith("latents.")}
    return image, told


def refine(job, stages, latents, arguments):
    """The rest of the steps, with the model that the job names for them."""
    pipe = load.pipeline(job["refiner"]["model"])
    if "mask" in job:
        pipe = as_pipeline(pipe, "Inpaint")
    elif "Img2Img" not in type(pipe).__name__:
        pipe = as_pipeline(pipe, "Img2Img")
    own = {name: arguments[name] for name in OF_ALL_PASSES} | sdxl_arguments(job, pipe)
    own |= {"image": latents, "denoising_start": job["refiner"]["switch_at"], "output_type": "np"}
    if "mask" in job:
        height, width = (8 * side for side in latents.shape[2:])
        own |= {"mask_image": Image.open(shared.GOLDEN / job["mask"]), "width": width, "height": height}
    image, told = draw_on(job, pipe, stages, own)
    names = [name for name in told if not name.startswith(("latents", "noise"))]
    stages |= {f"refiner.{name}": told[name] for name in names}
    return image


UPSCALERS = {
    "latent": {"mode": "bilinear"},
    "latent-nearest": {"mode": "nearest"},
    "latent-nearest-exact": {"mode": "nearest-exact"},
    "latent-bicubic": {"mode": "bicubic"},
}


def redraw_masked(job, pipe, latents):
    """What inpainting is told of the enlarged picture, whose redrawn part is what the first pass drew."""
    height, width = (8 * side for side in latents.shape[2:])
    picture, mask = (Image.open(shared.GOLDEN / job[name]) for name in ("init_image", "mask"))
    redrawn = pipe.mask_processor.preprocess(mask, height=height, width=width)
    redrawn = torch.nn.functional.interpolate(redrawn, size=latents.shape[2:])
    encode = pipe._encode_vae_image

    def encode_once(**told):
        pipe._encode_vae_image = encode
        return (1 - redrawn) * encode(**told) + redrawn * latents

    if pipe.unet.config.in_channels == 4 or job["hires"]["strength"] < 1:
        pipe._encode_vae_image = encode_once
    return {"image": picture, "mask_image": mask, "width": width, "height": height}


def second_pass(job, pipe, stages, latents, arguments):
    """The latents in the job's final size, drawn over once more by the same model and generator; what the
    pass was told, too."""
    wanted = job["hires"]
    size = width, height = wanted["width"], wanted["height"]
    latents = torch.nn.functional.interpolate(latents, (height // 8, width // 8), **UPSCALERS[wanted["upscaler"]])
    pipe = as_pipeline(pipe, "Inpaint" if "mask" in job else "Img2Img")
    own = {name: arguments[name] for name in OF_ALL_PASSES} | sdxl_arguments(job, pipe)
    own |= {"strength": wanted["strength"], "num_inference_steps": wanted.get("steps", job["steps"])}
    own |= {"image": latents, "output_type": "np"}
    if "controlnets" in job:
        pipe, own = guide(job, pipe, own, size)
    if "mask" in job:
        own |= redraw_masked(job, pipe, latents)
    if "refiner" in job:
        own |= {"denoising_end": job["refiner"]["switch_at"], "output_type": "latent"}
    image, told = draw_on(job, pipe, stages, own)
    stages["hires.enlarged"] = latents[0]
    stages |= {f"hires.{name}": told[name] for name in ("noise", "time_ids", "negative_time_ids") if name in told}
    return image, own


def run(job):
    pipe = load.pipeline(job["model"])
    told = dialects.Told(job, pipe) if "told" in job else None
    if not told:
        adapters.learn(pipe, job.get("embeddings", []))
    adapters.apply(pipe, job.get("loras", []))
    arguments = {
        "prompt": job["prompt"],
        "negative_prompt": job.get("negative_prompt"),
        "num_inference_steps": job["steps"],
        "guidance_scale": job["guidance_scale"],
        "eta": job.get("eta", 0.0),
        "clip_skip": job.get("clip_skip"),
        "generator": torch.Generator().manual_seed(job["seed"]),
        "output_type": "np",
    }
    if told:
        arguments = {name: value for name, value in arguments.items() if name not in OWN_OF_DIALECTS}
        arguments |= told.arguments()
    if job.get("schedule") == "ays":  # of ten steps
        table = "StableDiffusionXLTimesteps" if "XL" in type(pipe).__name__ else "StableDiffusionTimesteps"
        arguments["timesteps"] = AysSchedules[table]
    # StableDiffusionPipeline repairs the configuration, which is right as it is.
    if "LatentConsistency" in type(pipe).__name__ and "sampler" in job:
        own = pipe.scheduler.config
        pipe = as_pipeline(pipe, "")
        pipe.scheduler = type(pipe.scheduler).from_config(own)
    scheduler = scheduler_for(job, pipe.scheduler)
    picture = None
    if "init_image" in job:
        picture = Image.open(shared.GOLDEN / job["init_image"])
        arguments |= {"image": picture}
    if "Pix2Pix" in type(pipe).__name__:
        arguments |= {"image_guidance_scale": job["image_guidance_scale"]}
        arguments.pop("clip_skip")
    elif "mask" in job:
        pipe = as_pipeline(pipe, "Inpaint")
        mask = Image.open(shared.GOLDEN / job["mask"])
        arguments |= {"mask_image": mask, "strength": job["strength"], "width": mask.width, "height": mask.height}
    elif picture:
        pipe = as_pipeline(pipe, "Img2Img")
        arguments |= {"strength": job["strength"]}
    else:
        arguments |= {"width": job["width"], "height": job["height"]}
    arguments |= sdxl_arguments(job, pipe)
    if "controlnets" in job:
        pipe, arguments = guide(job, pipe, arguments)
    if "hires" in job:
        arguments |= {"output_type": "latent"}
    elif "refiner" in job:
        arguments |= {"denoising_end": job["refiner"]["switch_at"], "output_type": "latent"}
    pipe.scheduler = scheduler
    pipe.set_progress_bar_config(disable=True)
    stages = Stages(pipe)
    if "guidance_rescale" in job:
        arguments |= {"guidance_rescale": job["guidance_rescale"]}
    if "freeu" in job:
        pipe.enable_freeu(**job["freeu"])
    between = told or contextlib.nullcontext()
    if "guidance_interval" in job:
        between = guided_within(pipe, job["guidance_interval"])
    with torch.no_grad(), between, stages.watching():
        if "Adapter" in type(pipe).__name__:
            arguments["callback"] = lambda *step: stages.see_step(pipe, *step[:2], {"latents": step[2]})
        else:
            arguments["callback_on_step_end"] = stages.see_step
        image = pipe(**arguments).images
    if "hires" in job:
        image, arguments = second_pass(job, pipe, stages, image, arguments)
    if "refiner" in job:
        image = refine(job, stages, image, arguments)
    stages.finish(image)
    if told:
        told.stages(stages)
        for name in NOT_OF_DIALECTS:
            stages.pop(name, None)
    if "-tuned-" in job["id"]:
        for name in NOT_OF_TUNED:
            stages.pop(name, None)
    if job.get("thin"):
        stages["image.thin"] = stages.pop("image")[2::4, 2::4]
    return {name: value.contiguous().clone() for name, value in stages.items()}


def sigma_at(scheduler, timestep):
    """The noise to a signal of 1 that a call of the network sees."""
    if hasattr(scheduler, "sigmas"):
        between = hasattr(scheduler, "sigmas_interpol") and not scheduler.state_in_first_order
        sigmas = scheduler.sigmas_interpol if between else scheduler.sigmas
        index = scheduler.step_index
        return float(sigmas[scheduler.index_for_timestep(timestep) if index is None else index])
    alpha = float(scheduler.alphas_cumprod[int(timestep)])
    return ((1 - alpha) / alpha) ** 0.5


@contextlib.contextmanager
def guided_within(pipe, interval):
    """Outside of it both halves of the batch are the prompt's, which guidance then leaves as it is."""
    forward = pipe.unet.forward

    def wrapped(sample, timestep, **told):
        out = forward(sample, timestep, **told)
        sigma = sigma_at(pipe.scheduler, timestep)
        if not interval[0] < sigma <= interval[1]:
            out = (out[0][1:].repeat(2, 1, 1, 1),)
        return out

    pipe.unet.forward = wrapped
    yield
    del pipe.unet.forward


def draw_inits():
    """Two pictures to start from: a smooth one with edges, and noise."""
    for width, height in ((72, 64), (64, 88)):
        y, x = numpy.mgrid[0:height, 0:width].astype(numpy.float64)
        planes = [x * 255 / width, y * 255 / height, 128 + 127 * numpy.sin(x * y / 190)]
        pixels = numpy.stack(planes, -1)
        pixels[height // 4 : height // 2, width // 3 : width // 2] = (250, 20, 60)
        path = shared.JOBS / f"init-{width}x{height}.png"
        Image.fromarray(pixels.astype(numpy.uint8)).save(path, optimize=True)


def draw_masks():
    """A gray disc with a soft edge, and a coloured slope, of which about a half counts as white."""
    y, x = numpy.mgrid[0:64, 0:72].astype(numpy.float64)
    disc = 255 / (1 + numpy.exp(numpy.hypot(x - 30, y - 36) - 22))
    Image.fromarray(disc.astype(numpy.uint8)).save(shared.JOBS / "mask-72x64.png", optimize=True)
    y, x = numpy.mgrid[0:88, 0:64].astype(numpy.float64)
    planes = numpy.stack([y * 255 / 88, x * 255 / 64, 255 - x * 255 / 64], -1)
    Image.fromarray(planes.astype(numpy.uint8)).save(shared.JOBS / "mask-64x88.png", optimize=True)


def draw_hint():
    """Lines on black, of another size than any picture."""
    y, x = numpy.mgrid[0:53, 0:101].astype(numpy.float64)
    lines = numpy.abs(numpy.sin(x / 7) + numpy.cos(y / 5)) < 0.25
    pixels = numpy.stack([lines * 255, lines * x * 2.5, lines * y * 4], -1)
    Image.fromarray(pixels.astype(numpy.uint8)).save(shared.JOBS / "hint-101x53.png", optimize=True)


def without_thin(job):
    return {key: value for key, value in job.items() if key != "thin"}
def as_job(job):
    """Without what is for its making alone."""
    return {key: value for key, value in job.items() if key not in ("thin", "told")}


def main():
    shared.JOBS.mkdir(parents=True, exist_ok=True)
    draw_inits()
    draw_masks()
    draw_hint()
    every = list(jobs.every())
    with open(shared.GOLDEN / "jobs.jsonl", "w") as lines:
        for job in every:
            lines.write(json.dumps(as_job(job), ensure_ascii=False) + "\n")
    wanted = sys.argv[1:]
    for job in every:
        if wanted and not any(job["id"].startswith(name) for name in wanted):
            continue
        stages = run(job)
        for name in NOT_OF_SAMPLERS if job.get("latents_only") else ():
            stages.pop(name, None)
        for name in NOT_OF_GUIDES if job.get("controlnets") else ():
            stages.pop(name, None)
        for name in NOT_OF_HIRES if job.get("hires") else ():
            stages.pop(name, None)
        save_file(stages, shared.JOBS / f"{job['id']}.safetensors")
        print("made", job["id"])


if __name__ == "__main__":
    main()
