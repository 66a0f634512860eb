"""One peer's figures for one family on this card, a JSON object a line as they come; for gpu.py.

The networks are built from the published configurations with random weights: diffusers' modules, or
where diffusers is absent those of plain.py, and each line says which. --engine product is the card's
own 8192³ matrix product by torch. --device cpu --tiny shows that it runs where there is no card.
"""

import argparse
import json
import os
import sys
import time

import torch

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import peers
import plain

SIDE = 8192  # of the product that everything is set beside
WRITTEN = {"diffusers": peers, "plain": plain}
DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16}


def placed(values, device, dtype):
    """Inputs as the networks want them: 16 bit but for the timestep, pictures channels last."""
    out = [value.to(device, dtype) if value.ndim else value.to(device) for value in values]
    return [value.to(memory_format=torch.channels_last) if value.ndim == 4 else value for value in out]


def finish(device):
    if device == "cuda":
        torch.cuda.synchronize()


def timed(call, device, runs=5):
    """Seconds of the median run, after warming up."""
    for _ in range(3):
        call()
    finish(device)
    times = []
    for _ in range(runs):
        begin = time.perf_counter()
        call()
        finish(device)
        times.append(time.perf_counter() - begin)
    return sorted(times)[len(times) // 2]


def measure(module, inputs, options):
    call = module
    if options.engine == "compile":
        torch._dynamo.reset()  # every batch gets code of its own, as its users would have it
        call = torch.compile(module, mode="max-autotune-no-cudagraphs" if options.device == "cuda" else "default")
    begin = time.monotonic()
    with torch.inference_mode():
        call(*inputs)
        finish(options.device)
        return time.monotonic() - begin, timed(lambda: call(*inputs), options.device)


def network_of(name, batch, options):
    """A module on the device, and what it is called with. SDXL's VAE leaves f16's range: bf16, as ours."""
    family = peers.family(options.family, options.tiny)
    vae = name == "vae decode"
    dtype = torch.bfloat16 if vae and options.family == "sdxl" else DTYPES[options.precision]
    torch.manual_seed(0)
    with torch.device(options.device):
        written = WRITTEN[options.networks]
        module = written.VaeDecode(family["vae"]) if vae else written.UnetCall(family["unet"])
    inputs = peers.vae_inputs(options.side) if vae else peers.unet_inputs(family["unet"], 2 * batch, options.side)
    return module.eval().to(dtype=dtype, memory_format=torch.channels_last), placed(inputs, options.device, dtype)


def figures(options):
    """The UNet at each batch, then the decoding of one picture."""
    for network, batch in [("unet step", int(text)) for text in options.batches.split(",")] + [("vae decode", 1)]:
        first, seconds = measure(*network_of(network, batch, options), options)
        yield {"network": network, "batch": batch, "seconds": seconds, "first_s": first, "networks": options.networks}


def product(options):
    """A matrix product of random numbers: zeros would flatter the card."""
    side = 256 if options.tiny else SIDE
    a, b = (torch.rand(side, side, device=options.device).mul_(2).sub_(1).to(DTYPES[options.precision])
            for _ in range(2))
    with torch.inference_mode():
        seconds = timed(lambda: a @ b.T, options.device, runs=50)
    yield {"network": f"{side}³ product", "batch": 1, "seconds": seconds, "tflops": 2 * side ** 3 / seconds / 1e12}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", choices=("eager", "compile", "product"), required=True)
    parser.add_argument("--family", choices=tuple(peers.FAMILIES), default="sd1.5")
    parser.add_argument("--networks", choices=tuple(WRITTEN), default="diffusers" if peers.AutoencoderKL else "plain",
                        help="whose modules; plain where diffusers is absent")
    parser.add_argument("--precision", choices=tuple(DTYPES), default="bf16")
    parser.add_argument("--side", type=int, default=512, help="of the picture")
    parser.add_argument("--batches", default="1,4", help="pictures; each is two rows of the UNet")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small networks: to see that it runs")
    options = parser.parse_args()
    for figure in (product if options.engine == "product" else figures)(options):
        print(json.dumps(figure), flush=True)


if __name__ == "__main__":
    main()
