"""tests/golden/samplers: every scheduler alone, run against a made-up model.

configs.json holds scheduler files by name, runs.jsonl one run a line: {"config", "sampler",
"schedule", "steps", "eta", "strength" (image to image), "n", "timesteps", "latents"}. Value i of
the start noise is 1.5 sin(1.7 i + 0.3), of the image cos(0.9 i), of the noise that call k draws
sin(1.3 i + 0.7 k); the model answers 0.3 x cos(t / 500) + 0.1 to its scaled input x.
"""

import itertools
import json
import math

import diffusers
import numpy
import torch
from diffusers.schedulers import scheduling_ddim, scheduling_euler_ancestral_discrete

import make_jobs
import make_models
import shared

STEPS = [1, 2, 3, 5, 10, 20, 50]
KARRAS = ["euler", "heun", "lms", "dpm++ 2m", "unipc"]
COMMON = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
SDXL = {**COMMON, "_class_name": "EulerDiscreteScheduler", "clip_sample": False, "interpolation_type": "linear",
        "prediction_type": "epsilon", "sample_max_value": 1.0, "set_alpha_to_one": False, "skip_prk_steps": True,
        "steps_offset": 1, "timestep_spacing": "leading", "trained_betas": None, "use_karras_sigmas": False}


def dpm(**more):
    return {**COMMON, "_class_name": "DPMSolverMultistepScheduler", "solver_order": 2, "steps_offset": 1,
            "algorithm_type": "dpmsolver++", "timestep_spacing": "linspace", **more}


def unipc(**more):
    return {**COMMON, "_class_name": "UniPCMultistepScheduler", "solver_order": 2, **more}


CONFIGS = {
    "sd1": make_models.SD1_SCHEDULER,
    "sd2": make_models.SD2_SCHEDULER,
    "zero-snr": make_models.ZERO_SNR_SCHEDULER,
    "sdxl": SDXL,
    "bare": {"_class_name": "DDIMScheduler"},
    "linspace": {**make_models.SD1_SCHEDULER, "timestep_spacing": "linspace"},
    "trailing-v": {**make_models.SD2_SCHEDULER, "timestep_spacing": "trailing"},
    "cosine": {**SDXL, "beta_schedule": "squaredcos_cap_v2", "timestep_spacing": "linspace"},
    "linear": {**SDXL, "beta_schedule": "linear"},
    "clipped": {**COMMON, "_class_name": "HeunDiscreteScheduler", "clip_sample": True, "clip_sample_range": 1.5},
    "euler-ends-short": {**SDXL, "final_sigmas_type": "sigma_min", "timestep_spacing": "trailing"},
    "euler-karras": {**SDXL, "use_karras_sigmas": True},
    "dpm-1": dpm(solver_order=1),
    "dpm-3": dpm(solver_order=3),
    "dpm-3-v-zero-snr": dpm(solver_order=3, prediction_type="v_prediction", rescale_betas_zero_snr=True,
                            timestep_spacing="trailing"),
    "dpm-heun": dpm(solver_type="heun"),
    "dpm-ends-short": dpm(final_sigmas_type="sigma_min"),
    "dpm-ends-short-all": dpm(final_sigmas_type="sigma_min", lower_order_final=False),
    "dpm-euler-at-final": dpm(final_sigmas_type="sigma_min", euler_at_final=True),
    "dpm-cosine-clipped": dpm(beta_schedule="squaredcos_cap_v2", lambda_min_clipped=-5.1),
    "unipc-1": unipc(solver_order=1),
    "unipc-3": unipc(solver_order=3),
    "unipc-3-v": unipc(solver_order=3, prediction_type="v_prediction"),
    "unipc-bh1": unipc(solver_type="bh1", final_sigmas_type="sigma_min"),
    "unipc-3-bh1": unipc(solver_order=3, solver_type="bh1", final_sigmas_type="sigma_min"),
    "unipc-ends-short": unipc(final_sigmas_type="sigma_min", lower_order_final=False),
}


def wave(n, function, rate, shift=0.0, scale=1.0):
    return torch.tensor([scale * function(rate * i + shift) for i in range(n)], dtype=torch.float32)


def model(x, t):
    return (0.3 * x.double() * math.cos(float(t) / 500) + 0.1).float()


def execute(run):
    config = CONFIGS[run["config"]]
    own = getattr(diffusers, config["_class_name"]).from_config(config)
    scheduler = make_jobs.scheduler_for(run, own)
    steps, n = run["steps"], run["n"]
    scheduler.set_timesteps(steps)
    timesteps = scheduler.timesteps
    noise = wave(n, math.sin, 1.7, 0.3, 1.5)[None, :, None, None]
    if "strength" in run:
        kept = min(int(steps * run["strength"]), steps)
        start = max(steps - kept, 0) * scheduler.order
        timesteps = timesteps[start:]
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(start)
        image = wave(n, math.cos, 0.9)[None, :, None, None]
        latents = scheduler.add_noise(image, noise, timesteps[:1])
    else:
        latents = noise * scheduler.init_noise_sigma
    more = {"eta": run["eta"]} if run.get("sampler") == "ddim" and "eta" in run else {}
    for call, t in enumerate(timesteps):
        drawn = wave(n, math.sin, 1.3, 0.7 * call)[None, :, None, None]
        for module in (scheduling_ddim, scheduling_euler_ancestral_discrete):
            module.randn_tensor = lambda *_args, drawn=drawn, **_kwargs: drawn
        output = model(scheduler.scale_model_input(latents, t), t)
        latents = scheduler.step(output, t, latents, **more, return_dict=False)[0]
    return timesteps, latents.flatten()


def short(values):
    return [float(str(value)) for value in values.numpy().astype(numpy.float32)]


def runs():
    plain = [(name, "normal") for name in make_jobs.CLASSES] + [(name, "karras") for name in KARRAS]
    for config in ("sd1", "sd2", "zero-snr", "sdxl"):
        for (sampler, schedule), steps in itertools.product(plain, STEPS):
            if steps < 50 or config == "sd1":
                yield {"config": config, "sampler": sampler, "schedule": schedule, "steps": steps}
        for (sampler, schedule), (steps, strength) in itertools.product(plain, [(5, 0.5), (20, 0.6), (9, 1.0)]):
            yield {"config": config, "sampler": sampler, "schedule": schedule, "steps": steps, "strength": strength}
    for config in ("bare", "linspace", "trailing-v", "cosine", "linear", "clipped"):
        for (sampler, schedule), steps in itertools.product(plain, (4, 7)):
            yield {"config": config, "sampler": sampler, "schedule": schedule, "steps": steps}
    for config, eta, steps in itertools.product(("sd1", "sd2", "trailing-v"), (0.3, 1.0), (1, 4, 20)):
        yield {"config": config, "sampler": "ddim", "eta": eta, "steps": steps}
    own = [name for name in CONFIGS if name.startswith(("dpm-", "unipc-", "euler-"))]
    for config, schedule, steps in itertools.product(own, ("normal", "karras"), (1, 2, 3, 6, 14, 17)):
        yield {"config": config, "schedule": schedule, "steps": steps}
    for config, steps in itertools.product(("sd1", "zero-snr"), (4, 6, 61)):
        yield {"config": config, "steps": steps}
    # numpy's arange gives one timestep more than there are steps.
    for sampler in ("ddim", "euler", "heun", "dpm++ 2m", "pndm"):
        yield {"config": "trailing-v", "sampler": sampler, "steps": 61}


def main():
    folder = shared.GOLDEN / "samplers"
    shared.write_json(folder / "configs.json", CONFIGS)
    kept = 0
    with open(folder / "runs.jsonl", "w") as lines:
        for number, run in enumerate(runs()):
            run["n"] = 15 if number % 3 == 0 else 24
            try:
                timesteps, latents = execute(run)
            except (ValueError, IndexError, AssertionError) as problem:
                print("left out:", run, problem)
                continue
            if not torch.isfinite(latents).all():
                print("not finite:", run)
                continue
            run |= {"timesteps": short(timesteps), "latents": short(latents)}
            lines.write(json.dumps(run) + "\n")
            kept += 1
    print("made", kept, "runs")


if __name__ == "__main__":
    main()
