"""Measures SD1.5's or SDXL's networks in other engines and sets ours beside them.

The networks are built from the published configuration with random weights. Each measurement is
warm and the best of a few runs: one UNet call with the guidance pair (batch 2), and the decoding of
one picture. Ours comes from `atelier bench engine --json`, which prints

    {"processor", "isa", "threads", "results": [{"network": "unet" | "vae_decode", "precision":
     "bf16" | "f32", "width", "height", "batch", "seconds"}, ...]}
"""

import argparse
import json
import os
import subprocess
import sys
import time

import torch

try:
    from diffusers import AutoencoderKL, UNet2DConditionModel
except ImportError:  # then configurations and inputs are all that there is here
    AutoencoderKL = UNet2DConditionModel = None

UNET = {
    "sample_size": 64,
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
    "norm_num_groups": 32,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
}
UNET_XL = {
    "sample_size": 128,
    "block_out_channels": [320, 640, 1280],
    "layers_per_block": 2,
    "attention_head_dim": [5, 10, 20],
    "transformer_layers_per_block": [1, 2, 10],
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 1280 + 6 * 256,
    "norm_num_groups": 32,
    "down_block_types": ["DownBlock2D"] + ["CrossAttnDownBlock2D"] * 2,
    "up_block_types": ["CrossAttnUpBlock2D"] * 2 + ["UpBlock2D"],
}
VAE = {
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "latent_channels": 4,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
FAMILIES = {"sd1.5": {"unet": UNET, "vae": VAE}, "sdxl": {"unet": UNET_XL, "vae": VAE}}
OURS = {"sd1.5": "sd1", "sdxl": "sdxl"}  # as atelier bench engine calls them
TOKENS = 77
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


class UnetCall(torch.nn.Module):
    """The UNet as a function of tensors."""

    def __init__(self, config):
        super().__init__()
        self.unet = UNet2DConditionModel(**config)

    def forward(self, latents, timestep, embeds, pooled=None, ids=None):
        added = None if pooled is None else {"text_embeds": pooled, "time_ids": ids}
        return self.unet(latents, timestep, embeds, added_cond_kwargs=added, return_dict=False)[0]


class VaeDecode(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        vae = AutoencoderKL(**config)
        self.post_quant_conv, self.decoder = vae.post_quant_conv, vae.decoder

    def forward(self, latents):
        return self.decoder(self.post_quant_conv(latents))


def family(name, tiny=False):
    """The configurations of a family's networks; tiny: of the same build, to see that it runs."""
    if not tiny:
        return FAMILIES[name]
    unet = FAMILIES[name]["unet"]
    widths = [32, 64, 64, 64][:len(unet["block_out_channels"])]
    return {"unet": {**unet, "block_out_channels": widths, "cross_attention_dim": 64,
                     "attention_head_dim": 2 if name == "sdxl" else 8},
            "vae": {**VAE, "block_out_channels": [32, 32, 64, 64]}}


def unet_inputs(unet, rows, size):
    """Latents, timestep, texts and, where the network is told of them, a pooled text and six numbers."""
    side = size // 8
    inputs = [torch.randn(rows, 4, side, side), torch.tensor(501.0),
              torch.randn(rows, TOKENS, unet["cross_attention_dim"])]
    if "addition_time_embed_dim" in unet:
        pooled = unet["projection_class_embeddings_input_dim"] - 6 * unet["addition_time_embed_dim"]
        inputs += [torch.randn(rows, pooled), torch.tensor([[size, size, 0, 0, size, size]] * rows, dtype=torch.float32)]
    return inputs


def vae_inputs(size):
    return [torch.randn(1, 4, size // 8, size // 8)]


def networks(options):
    """{name: (module, inputs)}, f32."""
    torch.manual_seed(0)
    configs = family(options.family, options.tiny)
    return {
        "unet": (UnetCall(configs["unet"]).eval(), unet_inputs(configs["unet"], 2, options.size)),
        "vae_decode": (VaeDecode(configs["vae"]).eval(), vae_inputs(options.size)),
    }


def best(call, runs):
    """Seconds of the fastest of `runs`, after one that does not count."""
    times = []
    for _ in range(runs + 1):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def measure_torch(module, inputs, precision, options):
    dtype = DTYPES[precision]
    module = module.to(dtype=dtype, memory_format=torch.channels_last)
    inputs = [value.to(dtype) if value.ndim else value for value in inputs]
    inputs = [value.to(memory_format=torch.channels_last) if value.ndim == 4 else value for value in inputs]
    with torch.inference_mode():
        return best(lambda: module(*inputs), options.runs)


def measure_openvino(module, inputs, precision, options):
    import openvino

    module = module.to(dtype=torch.float32, memory_format=torch.contiguous_format)
    shapes = [tuple(value.shape) for value in inputs]
    with torch.no_grad():
        model = openvino.convert_model(module, example_input=tuple(inputs), input=shapes)
    settings = {
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": options.threads,
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = openvino.Core().compile_model(model, "CPU", settings).create_infer_request()
    arrays = [value.numpy() for value in inputs]
    return best(lambda: request.infer(arrays), options.runs)


PEERS = {"torch": measure_torch, "openvino": measure_openvino}


def measure_peers(options):
    rows = []
    for peer in options.peers.split(","):
        for precision in options.precisions.split(","):
            for network, (module, inputs) in networks(options).items():
                print(f"{peer} {precision} {network} ...", file=sys.stderr, flush=True)
                seconds = PEERS[peer](module, inputs, precision, options)
                rows.append({"engine": peer, "precision": precision, "network": network, "seconds": seconds})
    return rows


def measure_ours(options):
    """Rows of our own engine, and what it says of the machine."""
    command = [options.atelier, "bench", "engine", "--json", "--threads", str(options.threads),
               "--family", OURS[options.family], "--width", str(options.size), "--height", str(options.size)]
    report = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    rows = [
        {"engine": "atelier", "precision": row["precision"], "network": row["network"], "seconds": row["seconds"]}
        for row in report["results"]
    ]
    return rows, {key: report.get(key) for key in ("processor", "isa", "threads")}


def processor():
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return "unknown"


def versions(options):
    found = {"torch": torch.__version__, "torch ISA": torch.backends.cpu.get_cpu_capability()}
    if "openvino" in options.peers:
        import openvino

        found["openvino"] = openvino.__version__
    return found


def print_table(rows):
    """A line per engine and precision: seconds, and how many times the fastest peer's they are."""
    fastest = {}
    for row in rows:
        if row["engine"] != "atelier":
            fastest[row["network"]] = min(row["seconds"], fastest.get(row["network"], row["seconds"]))
    print(f"{'engine':<10} {'precision':<10} {'UNet pair':>12} {'ratio':>7} {'VAE decode':>12} {'ratio':>7}")
    for engine, precision in dict.fromkeys((row["engine"], row["precision"]) for row in rows):
        line = f"{engine:<10} {precision:<10}"
        for network in ("unet", "vae_decode"):
            seconds = [row["seconds"] for row in rows
                       if (row["engine"], row["precision"], row["network"]) == (engine, precision, network)]
            if seconds and network in fastest:
                line += f" {seconds[0]:>10.3f} s {seconds[0] / fastest[network]:>7.2f}"
            else:
                line += f" {'-':>12} {'-':>7}"
        print(line)


def main():
    parser = argparse.ArgumentParser(prog="bench-peers", description="SD1.5 or SDXL in other engines and here.")
    parser.add_argument("--atelier", help="our program; without it only the peers are measured")
    parser.add_argument("--json", help="file to write the measurements to")
    parser.add_argument("--family", choices=tuple(FAMILIES), default="sd1.5")
    parser.add_argument("--size", type=int, default=512, help="side of the picture")
    parser.add_argument("--runs", type=int, default=3, help="the best of so many counts")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--peers", default="torch,openvino")
    parser.add_argument("--precisions", default="bf16,f32")
    parser.add_argument("--tiny", action="store_true", help="small networks: to see that it runs")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    machine = {"processor": processor(), "threads": options.threads}
    ours = []
    if options.atelier:
        ours, about = measure_ours(options)
        machine |= {key: value for key, value in about.items() if value}
    rows = ours + measure_peers(options)
    machine["versions"] = versions(options)
    print(f"{options.family}, {machine['processor']}, {machine.get('isa', 'ISA not asked')}, {machine['threads']} threads, "
          f"{options.size}x{options.size}, best of {options.runs}")
    print_table(rows)
    if options.json:
        with open(options.json, "w") as out:
            json.dump({"machine": machine, "family": options.family, "size": options.size, "tiny": options.tiny, "results": rows}, out, indent=2)
            out.write("\n")


if __name__ == "__main__":
    main()
