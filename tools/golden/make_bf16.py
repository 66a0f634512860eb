"""tests/golden/bf16.json: how far bf16 alone takes diffusers' pictures from the f32 ones, in dB.

The networks run in bf16, latents and sampler stay f32, as in our engine; the noise is the same. A
random network magnifies rounding as a trained one does not, so how close a bf16 picture can be
asked to be is measured per job.
"""

import json
import math
import sys

import torch
from safetensors.torch import load_file

import controls
import jobs
import load
import make_jobs
import shared


def to_bf16(value):
    if isinstance(value, (list, tuple)):
        return type(value)(to_bf16(part) for part in value)
    if torch.is_tensor(value):
        return value.bfloat16() if value.is_floating_point() and value.ndim else value
    return value


def to_f32(value):
    if torch.is_tensor(value):
        return value.float() if value.is_floating_point() else value
    if isinstance(value, tuple):
        return tuple(to_f32(part) for part in value)
    if hasattr(value, "keys"):
        for key in value.keys():
            value[key] = to_f32(value[key])
    return value


def compute_in_bf16(module):
    """Makes `module` a network of bf16 weights and sums that takes and gives f32."""
    module.to(torch.bfloat16)
    forward = module.forward

    def wrapped(*args, **kwargs):
        args = [to_bf16(value) for value in args]
        kwargs = {key: to_bf16(value) for key, value in kwargs.items()}
        return to_f32(forward(*args, **kwargs))

    module.forward = wrapped
    # What the pipeline asks for its own arithmetic.
    type(module).dtype = property(lambda self: torch.float32)


def pipeline_in_bf16(name, original=load.pipeline):
    pipe = original(name)
    compute_in_bf16(pipe.unet)
    for encoder in (pipe.text_encoder, getattr(pipe, "text_encoder_2", None)):
        if encoder is not None:
            text = getattr(encoder, "text_model", encoder)
            compute_in_bf16(encoder)
            compute_in_bf16(text.final_layer_norm)
            if hasattr(encoder, "text_projection"):
                compute_in_bf16(encoder.text_projection)
    pipe.vae.register_to_config(force_upcast=False)
    for module in (pipe.vae.encoder, pipe.vae.decoder, pipe.vae.quant_conv, pipe.vae.post_quant_conv):
        compute_in_bf16(module)
    return pipe


def control_in_bf16(name, original=controls.network):
    net = original(name)
    compute_in_bf16(net)
    return net


def decibels(want, got):
    error = ((want.double() - got.double()) ** 2).mean().item()
    return 200.0 if error == 0 else -10 * math.log10(error)


def main():
    load.pipeline = pipeline_in_bf16
    controls.network = control_in_bf16
    path = shared.GOLDEN / "bf16.json"
    wanted = sys.argv[1:]
    before = json.loads(path.read_text()) if wanted else {}
    found = {}
    for job in jobs.every():
        if job.get("latents_only"):
            continue
        if wanted and not any(job["id"].startswith(name) for name in wanted):
            found |= {key: value for key, value in before.items() if key == job["id"]}
            continue
        want = load_file(shared.JOBS / f"{job['id']}.safetensors")
        name = "image.thin" if job.get("thin") else "image"
        found[job["id"]] = round(decibels(want[name], make_jobs.run(job)[name]), 1)
        print(job["id"], found[job["id"]])
    shared.write_json(path, found)


if __name__ == "__main__":
    main()
