"""The jobs of the golden set. Each model's jobs vary everything that it can vary."""

LONG = "an intricate oil painting of a lighthouse on a cliff, " * 12

# Without a model and an id; a missing field is absent from the job.
SD1 = [
    {"prompt": "a red cat", "width": 64, "height": 64, "steps": 4, "guidance_scale": 7.5, "sampler": "ddim", "seed": 1},
    {"prompt": "two <b>Boats</b>, café", "negative_prompt": "blurry", "width": 72, "height": 120, "steps": 4,
     "guidance_scale": 5.0, "seed": 2},
    {"prompt": "a house", "width": 136, "height": 64, "steps": 3, "guidance_scale": 1.0, "sampler": "euler",
     "seed": 3},
    {"prompt": "a house at night", "negative_prompt": "", "width": 64, "height": 64, "steps": 4,
     "guidance_scale": 7.5, "sampler": "dpm++ 2m", "schedule": "karras", "seed": 4294967297},
]

MODELS = {"sd1-small": SD1}


def every():
    for model, jobs in MODELS.items():
        for number, job in enumerate(jobs):
            yield {"id": f"{model}-{number:02d}", "model": model, **job}
