"""Measures the CUDA back end, and diffusers on the same card where it is installed.

Ours comes from `atelier-bench engine --json`, one process per batch. A picture is two rows of the
UNet, as guidance has it, here and in the peers. Every result goes into the JSON file when it is
there; the table is printed at the end, after a signal too.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time

NO_DEVICE = 6  # exit status of atelier-bench without a card
BATCHES = (1, 2, 4, 8)
PEER_BATCHES = (1, 4)
RESERVE_S = 30  # kept for the table

# What is measured: name, options of atelier-bench, side, batches. SDXL joins when atelier-bench has it.
FAMILIES = (("sd1.5", [], 512, BATCHES),)


class Run:
    def __init__(self, options):
        self.options = options
        self.begin = time.monotonic()
        self.rows = []
        self.card = None
        self.ceiling = 0.0
        self.notes = []

    def left(self):
        return self.options.seconds - RESERVE_S - (time.monotonic() - self.begin)

    def say(self, text):
        print(f"gpu-bench: {text}", file=sys.stderr, flush=True)

    def add(self, **row):
        self.rows.append(row)
        flops = f", {row['tflops']:.1f} TFLOP/s" if row.get("tflops") else ""
        self.say(f"{row['engine']} {row['network']} batch {row['batch']}: {1000 * row['seconds']:.1f} ms{flops}")
        self.save()

    def note(self, text):
        self.notes.append(text)
        self.say(text)

    def save(self):
        os.makedirs(self.options.out, exist_ok=True)
        path = os.path.join(self.options.out, "gpu-bench.json")
        with open(path + ".new", "w", encoding="utf-8") as file:
            json.dump({"card": self.card, "date": time.strftime("%Y-%m-%d"),
                       "precision": self.options.precision, "ceiling_tflops": self.ceiling / 1e12,
                       "results": self.rows, "notes": self.notes}, file, indent=1)
        os.replace(path + ".new", path)


def measure_ours(run, family, extra, side, batch):
    command = [run.options.bench, "engine", "--device", "cuda", "--json", "--precision",
               run.options.precision, "--width", str(side), "--height", str(side), "--batch", str(batch), *extra]
    done = subprocess.run(command, capture_output=True, text=True, timeout=max(run.left(), 1))
    if done.returncode == NO_DEVICE:
        sys.stderr.write(done.stderr)
        sys.exit(NO_DEVICE)
    if done.returncode != 0:
        run.note(f"{family} batch {batch} failed: {done.stderr.strip().splitlines()[-1:]}")
        return
    f = json.loads(done.stdout)
    run.card = f"{f['processor']}, {f['isa']}"
    run.ceiling = max(run.ceiling, f["ceiling_matmul_flops"])
    run.add(engine="atelier", family=family, network="unet step", batch=batch, seconds=f["step_s"],
            tflops=f["step_flop"] / f["step_s"] / 1e12)
    if batch == 1:
        run.add(engine="atelier", family=family, network="vae decode", batch=1, seconds=f["decode_s"],
                tflops=f["decode_flop"] / f["decode_s"] / 1e12)
        run.add(engine="atelier", family=family, network="load", batch=1, seconds=f["load_s"])
        run.add(engine="atelier", family=family, network="text, a prompt", batch=1, seconds=f["text_s"])
        if f.get("lora_switch_s"):
            run.add(engine="atelier", family=family, network="lora switch", batch=1, seconds=f["lora_switch_s"])
    run.note(f"{family} batch {batch}: first step at a new size over the next "
             f"{f['new_size_first_s'] / f['new_size_step_s']:.2f}; weights {f['weights_bytes'] / 1e9:.2f} GB, "
             f"activations {f['activations_bytes'] / 1e9:.2f} GB")


def timed(torch, call, runs=5):
    """Seconds of the median run between events, after warming up."""
    for _ in range(3):
        call()
    times = []
    for _ in range(runs):
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        first.record()
        call()
        last.record()
        torch.cuda.synchronize()
        times.append(first.elapsed_time(last) / 1000)
    return sorted(times)[len(times) // 2]


def measure_peers(run):
    try:
        import torch

        sys.path.insert(0, os.path.dirname(__file__))
        import peers
    except ImportError as error:
        run.note(f"no peers: {error}")
        return
    dtype = {"bf16": torch.bfloat16, "f16": torch.float16}[run.options.precision]
    torch.manual_seed(0)
    unet = peers.UnetCall(peers.UNET).eval().to("cuda", dtype, memory_format=torch.channels_last)
    vae = peers.VaeDecode(peers.VAE).eval().to("cuda", dtype, memory_format=torch.channels_last)
    networks = [("unet step", batch, unet,
                 (torch.randn(2 * batch, 4, 64, 64, device="cuda", dtype=dtype)
                  .to(memory_format=torch.channels_last), torch.tensor(501.0, device="cuda"),
                  torch.randn(2 * batch, peers.TOKENS, 768, device="cuda", dtype=dtype)))
                for batch in PEER_BATCHES]
    networks.append(("vae decode", 1, vae, (torch.randn(1, 4, 64, 64, device="cuda", dtype=dtype),)))
    for engine in ("diffusers eager", "torch.compile"):
        for network, batch, module, inputs in networks:
            if run.left() < 60:
                run.note(f"{engine} {network} batch {batch}: left out, the time is up")
                continue
            call = module if engine == "diffusers eager" else torch.compile(module, mode="max-autotune-no-cudagraphs")
            begin = time.monotonic()
            with torch.inference_mode():
                call(*inputs)
                torch.cuda.synchronize()
                first = time.monotonic() - begin
                run.add(engine=engine, family="sd1.5", network=network, batch=batch, first_s=first,
                        seconds=timed(torch, lambda: call(*inputs)))


def print_table(run):
    ours = {(r["family"], r["network"], r["batch"]): r["seconds"] for r in run.rows if r["engine"] == "atelier"}
    print(f"\n{run.card}, {run.options.precision}; 8192³ product {run.ceiling / 1e12:.1f} TFLOP/s")
    print(f"{'engine':<16} {'family':<7} {'network':<15} {'batch':>5} {'ms':>9} {'TFLOP/s':>8} {'of 8192³':>9} {'to ours':>8}")
    for r in run.rows:
        flops, own = r.get("tflops"), ours.get((r["family"], r["network"], r["batch"]))
        share = f"{100e12 * flops / run.ceiling:.0f} %" if flops and run.ceiling else "-"
        ratio = f"{r['seconds'] / own:.2f}" if own else "-"
        print(f"{r['engine']:<16} {r['family']:<7} {r['network']:<15} {r['batch']:>5} {1000 * r['seconds']:>9.2f} "
              f"{f'{flops:.1f}' if flops else '-':>8} {share:>9} {ratio:>8}")
    for text in run.notes:
        print(f"  {text}")
    run.say(f"{len(run.rows)} figures of {run.card} in {time.monotonic() - run.begin:.0f} s; "
            f"{os.path.join(run.options.out, 'gpu-bench.json')}")


def stop(*_):
    raise KeyboardInterrupt


def main():
    parser = argparse.ArgumentParser(prog="gpu-bench", description="The CUDA back end on this card.")
    parser.add_argument("--bench", required=True, help=argparse.SUPPRESS)
    parser.add_argument("--out", default="build/gpu-bench", help="where gpu-bench.json goes")
    parser.add_argument("--precision", choices=("bf16", "f16"), default="bf16")
    parser.add_argument("--seconds", type=int, default=540, help="begin nothing after so long")
    parser.add_argument("--no-peers", action="store_true")
    run = Run(parser.parse_args())
    signal.signal(signal.SIGTERM, stop)
    try:
        for family, extra, side, batches in FAMILIES:
            for batch in batches:
                if run.left() > 0:
                    measure_ours(run, family, extra, side, batch)
        if not run.options.no_peers:
            measure_peers(run)
    except (KeyboardInterrupt, subprocess.TimeoutExpired):
        run.note("interrupted")
    print_table(run)


if __name__ == "__main__":
    main()
