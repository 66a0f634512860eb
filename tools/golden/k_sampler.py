"""DPM-Solver++(2S) with ancestral steps, which diffusers lacks, in float64.

Written from Lu et al., "DPM-Solver++", 2022, algorithm 1, and from the published definition of
k-diffusion's sample_dpmpp_2s_ancestral (https://github.com/crowsonkb/k-diffusion) with eta and s_noise 1;
timesteps and sigmas are read from the model's file as diffusers' EulerAncestralDiscreteScheduler does.
"""

import math

import diffusers
import numpy


class Levels:
    """The training schedule that a configuration says, and what k-diffusion's DiscreteSchedule makes of it."""

    def __init__(self, config):
        alphas = diffusers.EulerAncestralDiscreteScheduler.from_config(config).alphas_cumprod.double().numpy()
        self.config = config
        self.count = len(alphas)
        self.sigmas = numpy.sqrt((1 - alphas) / alphas)

    def timestep(self, sigma):
        return float(numpy.interp(math.log(sigma), numpy.log(self.sigmas), numpy.arange(self.count)))

    def spaced(self, steps, schedule):
        config, count = self.config, self.count
        spacing = "trailing" if schedule == "sgm_uniform" else config.get("timestep_spacing", "linspace")
        if spacing == "linspace":
            times = numpy.linspace(0, count - 1, steps)[::-1]
        elif spacing == "leading":
            times = numpy.arange(steps)[::-1] * (count // steps) + config.get("steps_offset", 0)
        else:
            times = numpy.round(numpy.arange(count, 0, -count / steps)) - 1
        return spacing, times

    def ladder(self, steps, schedule, curve=None):
        """Falling sigmas that end with 0, their timesteps, and the scale of the start noise."""
        spacing, times = self.spaced(steps, schedule)
        sigmas = numpy.interp(times, numpy.arange(self.count), self.sigmas)
        if curve:
            sigmas = curve(sigmas[0], sigmas[-1], self.sigmas)
            times = numpy.array([self.timestep(sigma) for sigma in sigmas])
            if schedule == "karras":
                times = times.round()
        scale = math.sqrt(sigmas.max() ** 2 + 1) if spacing == "leading" else sigmas.max()
        return numpy.append(sigmas, 0.0), times, scale


def sample(levels, model, x, sigmas, times, noise, v_prediction):
    """Returns the timesteps the model was asked for and the last latents; noise(k) belongs to call k."""
    asked = []

    def denoised(x, sigma, t):
        asked.append(t)
        output = model(x / math.sqrt(sigma**2 + 1), t)
        if v_prediction:
            return x / (sigma**2 + 1) - output * sigma / math.sqrt(sigma**2 + 1)
        return x - output * sigma

    for i, (sigma, sigma_next) in enumerate(zip(sigmas, sigmas[1:])):
        picture = denoised(x, sigma, times[i])
        if sigma_next == 0:
            x = x + (x - picture) / sigma * (0 - sigma)
            continue
        up = min(sigma_next, math.sqrt(sigma_next**2 * (sigma**2 - sigma_next**2) / sigma**2))
        down = math.sqrt(sigma_next**2 - up**2)
        t, t_next = -math.log(sigma), -math.log(down)
        h = t_next - t
        middle = math.exp(-(t + h / 2))
        half = middle / sigma * x - math.expm1(-h / 2) * picture
        second = denoised(half, middle, levels.timestep(middle))
        x = down / sigma * x - math.expm1(-h) * second
        x = x + noise(len(asked) - 1) * up
    return asked, x
