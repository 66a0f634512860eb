"""Draws a jobs file with diffusers itself, in the layout of our own results.

    scripts/draw-with-diffusers JOBS.jsonl RESULTS_DIR [--limit N] [--sheet FILE] [--columns N]

Reads "id", "model", "prompt", "negative_prompt", "seed", "steps", "guidance_scale", "sampler",
"width" and "height" of each job; a model is a folder of --models. --steps, --guidance and
--sampler are for jobs that name none. --sheet also writes one picture of all of them.
"""

import argparse
import hashlib
import io
import json
import os
import time

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import diffusers
import torch
from PIL import Image

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SAMPLERS = {
    "ddim": ("DDIMScheduler", {}), "pndm": ("PNDMScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}), "euler_a": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}), "lms": ("LMSDiscreteScheduler", {}),
    "dpm2": ("KDPM2DiscreteScheduler", {}), "dpm2_a": ("KDPM2AncestralDiscreteScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {}), "dpm++ 2m": ("DPMSolverMultistepScheduler", {}),
    "dpm++ 2m sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
}


def contact_sheet(pictures, columns):
    gap, (w, h) = 4, pictures[0].size
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * (w + gap) + gap, rows * (h + gap) + gap), (236, 236, 240))
    for i, picture in enumerate(pictures):
        sheet.paste(picture, (gap + i % columns * (w + gap), gap + i // columns * (h + gap)))
    return sheet


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("jobs")
    parser.add_argument("results")
    parser.add_argument("--models", default=os.path.join(ROOT, "models"))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--sampler", choices=SAMPLERS)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--sheet")
    parser.add_argument("--columns", type=int, default=6)
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    jobs = [json.loads(line) for line in open(args.jobs, encoding="utf-8") if line.strip()]
    pipes, pictures, began = {}, [], time.time()
    for i, job in enumerate(jobs[:args.limit]):
        name = job["model"]
        if name not in pipes:
            pipe = diffusers.StableDiffusionPipeline.from_pretrained(
                os.path.join(args.models, name), dtype=torch.float32)
            pipe.set_progress_bar_config(disable=True)
            pipes[name] = pipe, dict(pipe.scheduler.config), type(pipe.scheduler)
        pipe, config, own = pipes[name]
        sampler = job.get("sampler", args.sampler)
        kind, options = SAMPLERS[sampler] if sampler else (own.__name__, {})
        pipe.scheduler = getattr(diffusers, kind).from_config(config, **options)
        picture = pipe(job["prompt"], negative_prompt=job.get("negative_prompt"),
                       width=job.get("width"), height=job.get("height"),
                       num_inference_steps=job.get("steps", args.steps),
                       guidance_scale=job.get("guidance_scale", args.guidance),
                       generator=torch.Generator().manual_seed(job.get("seed", i))).images[0]
        out = io.BytesIO()
        picture.save(out, "PNG")
        where = os.path.join(args.results, "results", job.get("id", f"line{i + 1}"))
        os.makedirs(where, exist_ok=True)
        for old in os.listdir(where):
            os.remove(os.path.join(where, old))
        with open(os.path.join(where, f"0-{hashlib.sha256(out.getvalue()).hexdigest()}.png"), "wb") as file:
            file.write(out.getvalue())
        pictures.append(picture)
    print(f"{len(pictures)} pictures in {time.time() - began:.0f} s")
    if args.sheet:
        contact_sheet(pictures, args.columns).save(args.sheet, optimize=True)


if __name__ == "__main__":
    main()
