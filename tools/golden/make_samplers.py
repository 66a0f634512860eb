"""tests/golden/samplers: every scheduler alone, run against a made-up model.

configs.json holds scheduler files by name, runs.jsonl one run a line: {"config", "sampler",
"schedule", "steps", "eta", "sdxl", "strength" (image to image), "n", "timesteps", "latents"}. Value i
of the start noise is 1.5 sin(1.7 i + 0.3), of the image cos(0.9 i), of the noise that call k draws
sin(1.3 i + 0.7 k); the model answers 0.3 x cos(t / 500) + 0.1 to its scaled input x.

The schedules simple and ays are no settings of diffusers. Where a class takes a list of timesteps it gets
theirs; where not, theirs stand in for the sigmas of another schedule, and the class does the rest.
"""

import inspect
import itertools
import json
import math

import diffusers
import numpy
import scipy.stats
import torch
from diffusers.schedulers import AysSchedules

import k_sampler
import make_jobs
import make_models
import shared

STEPS = [1, 2, 3, 5, 10, 20, 50]
FIRST = ["ddim", "euler", "euler_a", "heun", "lms", "dpm++ 2m", "pndm", "unipc"]
SECOND = ["dpm2", "dpm2_a", "dpm++ 2s a", "dpm++ 2s", "dpm++ sde", "dpm++ 2m sde", "dpm++ 3m sde", "ddpm", "lcm", "tcd"]
KARRAS = ["euler", "heun", "lms", "dpm++ 2m", "unipc"]
CURVED = KARRAS + ["dpm2", "dpm2_a", "dpm++ 2s a", "dpm++ 2s", "dpm++ sde", "dpm++ 2m sde", "dpm++ 3m sde"]
SINGLE = ["dpm++ 2s", "dpm++ sde"]
SCHEDULES = {
    "karras": [name for name in CURVED if name not in KARRAS],
    "exponential": CURVED,
    "beta": CURVED,
    "sgm_uniform": ["ddim", "euler_a", "pndm", "ddpm"] + [name for name in CURVED if name not in SINGLE],
    "simple": ["euler_a", "ddpm"] + CURVED,
    "ays": ["euler_a"] + CURVED,
}
SAMPLE = ["ddim", "euler", "lms", "dpm++ 2s", "dpm++ 2m", "dpm++ sde", "dpm++ 2m sde", "unipc", "ddpm", "lcm", "tcd"]
COMMON = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
SDXL = {**COMMON, "_class_name": "EulerDiscreteScheduler", "clip_sample": False, "interpolation_type": "linear",
        "prediction_type": "epsilon", "sample_max_value": 1.0, "set_alpha_to_one": False, "skip_prk_steps": True,
        "steps_offset": 1, "timestep_spacing": "leading", "trained_betas": None, "use_karras_sigmas": False}


def dpm(**more):
    return {**COMMON, "_class_name": "DPMSolverMultistepScheduler", "solver_order": 2, "steps_offset": 1,
            "algorithm_type": "dpmsolver++", "timestep_spacing": "linspace", **more}


def unipc(**more):
    return {**COMMON, "_class_name": "UniPCMultistepScheduler", "solver_order": 2, **more}


def single(**more):
    return {**COMMON, "_class_name": "DPMSolverSinglestepScheduler", "steps_offset": 1, **more}


def sde(**more):
    return dpm(**{"algorithm_type": "sde-dpmsolver++", **more})


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
    "turbo": {**COMMON, "_class_name": "EulerAncestralDiscreteScheduler", "clip_sample": False,
              "interpolation_type": "linear", "prediction_type": "epsilon", "sample_max_value": 1.0,
              "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1, "timestep_spacing": "trailing",
              "trained_betas": None},
    "lightning": {**SDXL, "timestep_spacing": "trailing"},
    "lcm": {**COMMON, "_class_name": "LCMScheduler", "clip_sample": False, "clip_sample_range": 1.0,
            "dynamic_thresholding_ratio": 0.995, "original_inference_steps": 50, "prediction_type": "epsilon",
            "rescale_betas_zero_snr": False, "sample_max_value": 1.0, "set_alpha_to_one": True, "steps_offset": 1,
            "thresholding": False, "timestep_scaling": 10.0, "timestep_spacing": "leading", "trained_betas": None},
    "lcm-bare": {"_class_name": "LCMScheduler", "original_inference_steps": 30, "timestep_scaling": 0.01},
    "lcm-clipped-v": {"_class_name": "LCMScheduler", "clip_sample": True, "prediction_type": "v_prediction",
                      "rescale_betas_zero_snr": True},
    "tcd": {**COMMON, "_class_name": "TCDScheduler", "original_inference_steps": 50, "prediction_type": "epsilon",
            "timestep_spacing": "trailing", "clip_sample": True},
    "ddpm": {**COMMON, "_class_name": "DDPMScheduler", "variance_type": "fixed_small", "clip_sample": False,
             "timestep_spacing": "leading", "steps_offset": 1},
    "ddpm-large": {"_class_name": "DDPMScheduler", "variance_type": "fixed_large", "timestep_spacing": "trailing"},
    "ddpm-log-v": {**COMMON, "_class_name": "DDPMScheduler", "variance_type": "fixed_small_log",
                   "prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "clip_sample_range": 2.0},
    "kdpm2": {"_class_name": "KDPM2DiscreteScheduler", "beta_schedule": "scaled_linear",
              "use_exponential_sigmas": True},
    "kdpm2-a": {"_class_name": "KDPM2AncestralDiscreteScheduler", "prediction_type": "v_prediction",
                "timestep_spacing": "trailing"},
    "sample": {**COMMON, "_class_name": "DDIMScheduler", "prediction_type": "sample", "clip_sample": False},
    "beta-euler": {**SDXL, "use_beta_sigmas": True, "final_sigmas_type": "sigma_min"},
    "exponential-unipc-short": unipc(use_exponential_sigmas=True, final_sigmas_type="sigma_min"),
    "single": single(),
    "single-1": single(solver_order=1),
    "single-3": single(solver_order=3),
    "single-heun": single(solver_type="heun", prediction_type="v_prediction"),
    "single-3-heun": single(solver_order=3, solver_type="heun"),
    "single-short": single(final_sigmas_type="sigma_min"),
    "single-3-short": single(solver_order=3, final_sigmas_type="sigma_min", lower_order_final=True),
    "single-cosine": single(beta_schedule="squaredcos_cap_v2", lambda_min_clipped=-5.1),
    "single-sde": single(algorithm_type="sde-dpmsolver++"),
    "single-sde-3": single(algorithm_type="sde-dpmsolver++", solver_order=3),
    "single-sde-heun": single(algorithm_type="sde-dpmsolver++", solver_type="heun"),
    "single-sde-3-heun-short": single(algorithm_type="sde-dpmsolver++", solver_order=3, solver_type="heun",
                                      final_sigmas_type="sigma_min"),
    "sde-1": sde(solver_order=1),
    "sde-3": sde(solver_order=3),
    "sde-3-short": sde(solver_order=3, final_sigmas_type="sigma_min", lower_order_final=False),
    "sde-heun": sde(solver_type="heun", prediction_type="v_prediction"),
    "sde-karras-euler-at-final": sde(use_karras_sigmas=True, euler_at_final=True, final_sigmas_type="sigma_min"),
    "sde-zero-snr": sde(prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"),
}


def wave(n, function, rate, shift=0.0, scale=1.0):
    return torch.tensor([scale * function(rate * i + shift) for i in range(n)], dtype=torch.float32)


def model(x, t):
    return (0.3 * x.double() * math.cos(float(t) / 500) + 0.1).float()


def simple_timesteps(steps):
    return [999 - int(i * (1000 / steps)) for i in range(steps)]


def listed_sigmas(run, train):
    """The sigmas of simple and of ays, the latter between its points as its authors' quick start says."""
    steps = run["steps"]
    if run["schedule"] == "simple":
        return numpy.array([train[t] for t in simple_timesteps(steps)])
    table = [train[t] for t in ays_timesteps(run) + [0]]
    places, points = numpy.linspace(0, 1, steps + 1), numpy.linspace(0, 1, len(table))
    return numpy.exp(numpy.interp(places, points, numpy.log(table)))[:-1]


def ays_timesteps(run):
    return AysSchedules["StableDiffusionXLTimesteps" if run.get("sdxl") else "StableDiffusionTimesteps"]


def set_listed(scheduler, run):
    steps, schedule = run["steps"], run["schedule"]
    takes_list = "timesteps" in inspect.signature(scheduler.set_timesteps).parameters
    if takes_list and (schedule == "simple" or steps == 10):
        scheduler.set_timesteps(timesteps=simple_timesteps(steps) if schedule == "simple" else ays_timesteps(run))
        return
    train = (((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod) ** 0.5).double().numpy()
    sigmas = listed_sigmas(run, train)
    if hasattr(scheduler, "_convert_to_karras"):
        is_lambda = type(scheduler).__name__.startswith(("DPMSolver", "UniPC"))
        curve = "karras" if is_lambda else "exponential"
        scheduler.register_to_config(**{f"use_{curve}_sigmas": True})
        setattr(scheduler, f"_convert_to_{curve}", lambda in_sigmas, num_inference_steps=None: sigmas)
        scheduler.set_timesteps(steps)
        return
    scheduler.set_timesteps(steps)
    logs = numpy.log(train.astype(numpy.float32))
    to_t = diffusers.EulerDiscreteScheduler._sigma_to_t
    scheduler.timesteps = torch.tensor([float(to_t(scheduler, sigma, logs)) for sigma in sigmas])
    scheduler.sigmas = torch.tensor([*sigmas, 0.0], dtype=torch.float32)


def draw(n, call):
    return wave(n, math.sin, 1.3, 0.7 * call)[None, :, None, None]


def start_index(run, order):
    kept = min(int(run["steps"] * run["strength"]), run["steps"])
    return (run["steps"] - kept) * order


def curve_for(run):
    schedule, steps = run["schedule"], run["steps"]
    share = numpy.linspace(0, 1, steps)
    curves = {
        "karras": lambda high, low, train: (high ** (1 / 7) + share * (low ** (1 / 7) - high ** (1 / 7))) ** 7,
        "exponential": lambda high, low, train: high ** (1 - share) * low**share,
        "beta": lambda high, low, train: low + scipy.stats.beta.ppf(1 - share, 0.6, 0.6) * (high - low),
        "simple": lambda high, low, train: listed_sigmas(run, train),
        "ays": lambda high, low, train: listed_sigmas(run, train),
    }
    return curves.get(schedule)


def execute_k(run):
    config, n = CONFIGS[run["config"]], run["n"]
    levels = k_sampler.Levels(config)
    sigmas, times, scale = levels.ladder(run["steps"], run["schedule"], curve_for(run))
    noise = wave(n, math.sin, 1.7, 0.3, 1.5)[None, :, None, None].double()
    x = noise * scale
    if "strength" in run:
        begin = start_index(run, 1)
        sigmas, times = sigmas[begin:], times[begin:]
        x = wave(n, math.cos, 0.9)[None, :, None, None].double() + noise * sigmas[0]
    answer = lambda x, t: 0.3 * x * math.cos(t / 500) + 0.1
    is_v = config.get("prediction_type") == "v_prediction"
    asked, x = k_sampler.sample(levels, answer, x, sigmas, times, lambda call: draw(n, call).double(), is_v)
    return torch.tensor(asked), x.flatten().float()


def execute(run):
    if run.get("sampler") == "dpm++ 2s a":
        return execute_k(run)
    config = CONFIGS[run["config"]]
    own = getattr(diffusers, config["_class_name"]).from_config(config)
    scheduler = make_jobs.scheduler_for(run, own)
    n = run["n"]
    if run.get("schedule") in ("simple", "ays"):
        set_listed(scheduler, run)
    else:
        scheduler.set_timesteps(run["steps"])
    timesteps = scheduler.timesteps
    noise = wave(n, math.sin, 1.7, 0.3, 1.5)[None, :, None, None]
    start = start_index(run, scheduler.order) if "strength" in run else 0
    timesteps = timesteps[start:]
    # Or a class looks its place up by timestep, and fails where curves round two of them to one.
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(start)
    if "strength" in run:
        image = wave(n, math.cos, 0.9)[None, :, None, None]
        latents = scheduler.add_noise(image, noise, timesteps[:1])
    else:
        latents = noise * scheduler.init_noise_sigma
    takes_eta = "eta" in inspect.signature(scheduler.step).parameters
    more = {"eta": run.get("eta", 0.0)} if takes_eta else {}
    module = inspect.getmodule(type(scheduler))
    for call, t in enumerate(timesteps):
        drawn = draw(n, call)
        module.randn_tensor = lambda *_args, drawn=drawn, **_kwargs: drawn
        output = model(scheduler.scale_model_input(latents, t), t)
        latents = scheduler.step(output, t, latents, **more, return_dict=False)[0]
    return timesteps, latents.flatten()


def short(values):
    return [float(str(value)) for value in values.numpy().astype(numpy.float32)]


def brief(values):
    return [int(value) if value == int(value) else float(f"{value:.7g}") for value in values.double().tolist()]


def first_runs():
    plain = [(name, "normal") for name in FIRST] + [(name, "karras") for name in KARRAS]
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


def second_runs():
    for config in ("sd1", "sd2", "zero-snr", "sdxl"):
        for sampler, steps in itertools.product(SECOND, (1, 2, 3, 5, 8, 20) if config == "sd1" else (1, 3, 8)):
            yield {"config": config, "sampler": sampler, "schedule": "normal", "steps": steps}
        for sampler, (steps, strength) in itertools.product(SECOND, [(5, 0.5), (20, 0.6)]):
            yield {"config": config, "sampler": sampler, "schedule": "normal", "steps": steps, "strength": strength}
    for sampler in SECOND:
        yield {"config": "sdxl", "sampler": sampler, "schedule": "normal", "steps": 50}
    for schedule, samplers in SCHEDULES.items():
        counts = {"ays": (1, 2, 8, 10, 23), "simple": (1, 2, 7, 23)}.get(schedule, (1, 2, 8, 20))
        for sampler, steps in itertools.product(samplers, counts):
            yield {"config": "sd1", "sampler": sampler, "schedule": schedule, "steps": steps}
        for sampler, steps in itertools.product(samplers, (5, 10) if schedule == "ays" else (5,)):
            more = {"sdxl": True} if schedule == "ays" else {}
            yield {"config": "sdxl", "sampler": sampler, "schedule": schedule, "steps": steps, **more}
            yield {"config": "sdxl", "sampler": sampler, "schedule": schedule, "steps": steps, "strength": 0.7, **more}
        for config, sampler in itertools.product(("sd2", "cosine", "linear"), samplers):
            if schedule != "ays" or config == "sd2":
                yield {"config": config, "sampler": sampler, "schedule": schedule, "steps": 4}
    for config, sampler in itertools.product(("bare", "linspace", "trailing-v", "cosine", "linear", "clipped"), SECOND):
        yield {"config": config, "sampler": sampler, "schedule": "normal", "steps": 4}
    for config, eta, steps in itertools.product(("sd1", "sd2", "tcd"), (0.3, 1.0), (1, 4, 8)):
        yield {"config": config, "sampler": "tcd", "eta": eta, "steps": steps}
    for sampler, steps in itertools.product(SAMPLE, (2, 5)):
        yield {"config": "sample", "sampler": sampler, "schedule": "normal", "steps": steps}
    for config, steps in itertools.product(("turbo", "lightning", "lcm", "lcm-bare", "lcm-clipped-v", "tcd", "ddpm",
                                            "ddpm-large", "ddpm-log-v", "kdpm2", "kdpm2-a", "beta-euler",
                                            "exponential-unipc-short"), (1, 2, 4, 8, 30)):
        yield {"config": config, "steps": steps}
    own = [name for name in CONFIGS if name.startswith(("single", "sde-"))]
    for config, steps in itertools.product(own, (1, 2, 3, 6, 7, 16)):
        yield {"config": config, "steps": steps}
    for config, schedule in itertools.product(own, ("exponential", "beta")):
        yield {"config": config, "schedule": schedule, "steps": 5}
    for config, strength in itertools.product(own, (0.45, 0.7)):
        yield {"config": config, "steps": 7, "strength": strength}
    for config in ("turbo", "lcm"):
        yield {"config": config, "steps": 4, "strength": 0.5}
    # numpy's arange gives one timestep more than there are steps.
    for sampler in ("dpm2", "dpm2_a", "dpm++ 2s a", "dpm++ 2m sde", "ddpm"):
        yield {"config": "trailing-v", "sampler": sampler, "schedule": "normal", "steps": 61, "strength": 0.1}


def is_rounding(run):
    """Runs whose numbers are mostly f32's rounding in the reference: what is left of two nearly equal squares
    when an ancestral step falls deep, of 1 - exp(-2h) - 2h over a short step, and of latents at sigma 4096."""
    sampler, config, steps = run.get("sampler"), run["config"], run["steps"]
    if sampler == "dpm2_a" and config in ("sd1", "sd2") and steps in (2, 3):
        return run["schedule"] != "ays"
    if config == "sde-3-short" or (sampler, run.get("schedule")) == ("dpm++ 3m sde", "beta"):
        return steps > 10
    return (sampler, config, steps) == ("dpm++ 2s a", "zero-snr", 1)


def write(lines, run, separators, numbers):
    try:
        timesteps, latents = execute(run)
    except (ValueError, IndexError, AssertionError) as problem:
        print("left out:", run, problem)
        return 0
    if not torch.isfinite(latents).all():
        print("not finite:", run)
        return 0
    run |= {"timesteps": numbers(timesteps), "latents": numbers(latents)}
    lines.write(json.dumps(run, separators=separators) + "\n")
    return 1


def main():
    folder = shared.GOLDEN / "samplers"
    shared.write_json(folder / "configs.json", CONFIGS)
    kept = 0
    with open(folder / "runs.jsonl", "w") as lines:
        for number, run in enumerate(first_runs()):
            kept += write(lines, run | {"n": 15 if number % 3 == 0 else 24}, (", ", ": "), short)
        for run in itertools.filterfalse(is_rounding, second_runs()):
            kept += write(lines, run | {"n": 7}, (",", ":"), brief)
    print("made", kept, "runs")


if __name__ == "__main__":
    main()
