"""Measures the CUDA back end, and torch on the same card where it is installed.

Ours comes from `atelier-bench engine|switch|scenes --json`, the peers' figures from gpu_peers.py, one
process each, so that none outlives its time and one that fails costs no other. A picture is two rows
of the UNet, as guidance has it, here and in the peers. The pieces are in the order in which they
matter; what time does not allow is left out and said. Every result goes into the JSON file when it is
there; the table is printed at the end, after a signal too.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time

NO_DEVICE = 6  # exit status of atelier-bench without a card
RESERVE_S = 20  # kept for the table
PATIENCE = 3  # times what it takes as a rule: then a piece hangs
OURS = "atelier"
# By who wrote the networks: diffusers, or plain.py where diffusers is absent.
PEERS = {"diffusers": {"eager": "diffusers eager", "compile": "torch.compile"},
         "plain": {"eager": "plain torch", "compile": "plain compiled"}}
PLAIN = "plain torch, plain compiled: diffusers is absent, so these are tools/bench/plain.py's networks, the same " \
        "operators written plainly in torch; PYTHONPATH may name a folder that holds diffusers"
PEER_BATCHES = "1,4"
FAMILIES = {"sd1.5": (["--family", "sd1"], 512), "sdxl": (["--family", "sdxl"], 1024)}


class Run:
    def __init__(self, options):
        self.options = options
        self.begin = time.monotonic()
        self.piece_end = float("inf")
        self.rows = []
        self.card = None
        self.ceiling = 0.0
        self.notes = []

    def left(self):
        return self.options.seconds - RESERVE_S - (time.monotonic() - self.begin)

    def piece_left(self):
        return max(min(self.left(), self.piece_end - time.monotonic()), 1)

    def say(self, text):
        print(f"gpu-bench: {text}", file=sys.stderr, flush=True)

    def add(self, family, network, batch, seconds, engine=OURS, **more):
        row = {"engine": engine, "family": family, "network": network, "batch": batch, "seconds": seconds, **more}
        self.rows.append(row)
        flops = f", {row['tflops']:.1f} TFLOP/s" if row.get("tflops") else ""
        self.say(f"{engine} {family} {network} batch {batch}: {1000 * seconds:.2f} ms{flops}")
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


# ---- pieces: each measures one thing and adds its rows ----

def our_bench(run, what, *extra):
    """What atelier-bench says, which may end early, or None."""
    command = [run.options.bench, what, "--device", "cuda", "--json", "--precision", run.options.precision, *extra]
    done = subprocess.run(command, capture_output=True, text=True, timeout=run.piece_left())
    if done.returncode == NO_DEVICE:
        sys.stderr.write(done.stderr)
        sys.exit(NO_DEVICE)
    if done.returncode != 0:
        run.note(f"{' '.join([what, *extra])} failed: {' '.join(done.stderr.strip().splitlines()[-1:])}")
    try:
        return json.loads(done.stdout)
    except ValueError:
        return None


def note_operators(run, title, operators):
    """Each kind's share and rate, timed one by one."""
    total = sum(o["seconds"] for o in operators) or 1
    kinds = [f"{o['kind']} {100 * o['seconds'] / total:.0f} %" +
             (f" at {o['flop'] / o['seconds'] / 1e12:.0f} TFLOP/s" if o["flop"] else "") for o in operators]
    if kinds:
        run.note(f"{title}, operators one by one {1000 * total:.1f} ms: {', '.join(kinds)}")


def measure_engine(run, family, batch):
    extra, side = FAMILIES[family]
    f = our_bench(run, "engine", "--width", str(side), "--height", str(side), "--batch", str(batch), *extra)
    if f is None:
        return
    run.card = f"{f['processor']}, {f['isa']}"
    if f["library"] not in run.notes:
        run.note(f["library"])
    run.ceiling = max(run.ceiling, f["ceiling_matmul_flops"])

    def add(network, count, key, **more):
        if f[key] > 0:  # 0: it ended before that
            run.add(family, network, count, f[key], **more)

    add("unet step", batch, "step_s", tflops=f["step_flop"] / (f["step_s"] or 1) / 1e12)
    add("new size", batch, "new_size_first_s", ratio=f["new_size_first_s"] / (f["new_size_step_s"] or 1))
    if batch == 1:
        add("vae decode", 1, "decode_s", tflops=f["decode_flop"] / (f["decode_s"] or 1) / 1e12)
        add("load", 1, "load_s")
        add("text, a prompt", 1, "text_s")
        add("lora switch", 1, "lora_switch_s")
        note_operators(run, f"{family} decode", f["decode_operators"])
    note_operators(run, f"{family} step, batch {batch}", f["step_operators"])
    run.note(f"{family} batch {batch}: weights {f['weights_bytes'] / 1e9:.2f} GB, "
             f"activations {f['activations_bytes'] / 1e9:.2f} GB")


def measure_switch(run):
    f = our_bench(run, "switch")
    if f is None:
        return
    run.add("sd1.5", "model switch", 1, max(f["changing_step_s"] - f["step_s"], 0.0))
    run.add("sd1.5", "load from file", 1, f["load_s"])
    run.note(f"loading {f['file_bytes'] / 1e9:.2f} GB from the page cache: {f['file_bytes'] / f['load_s'] / 1e9:.1f} "
             f"GB/s, {100 * f['file_bytes'] / f['load_s'] / f['copy_bytes_per_s']:.0f} % of the bus's "
             f"{f['copy_bytes_per_s'] / 1e9:.1f} GB/s (target 60 %); a step and a load begun together "
             f"{1000 * f['beside_step_s']:.0f} ms and {1000 * f['beside_load_s']:.0f} ms")


def measure_scenes(run):
    f = our_bench(run, "scenes")
    for scene in (f or {}).get("scenes", []):
        run.add(scene["scene"], f"{scene['steps']}-step picture", 1, scene["picture_s"])


def peer_lines(run, name, *words):
    """What gpu_peers.py prints, as it comes, for as long as there is time."""
    script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "gpu_peers.py")
    log = os.path.join(run.options.out, f"{'-'.join(name.split())}.log")
    os.makedirs(run.options.out, exist_ok=True)
    with open(log, "w", encoding="utf-8") as errors:
        process = subprocess.Popen([sys.executable, script, "--precision", run.options.precision, *words],
                                   stdout=subprocess.PIPE, stderr=errors, text=True)
    ended = threading.Timer(run.piece_left(), process.kill)
    ended.start()
    try:
        for line in process.stdout:
            yield json.loads(line)
        process.wait()
    finally:
        ended.cancel()
        process.kill()
        process.stdout.close()
    if process.returncode == -signal.SIGKILL:
        run.note(f"{name}: ended after its time")
    elif process.returncode != 0:
        with open(log, encoding="utf-8", errors="replace") as errors:
            run.note(f"{name} failed: {' '.join(errors.read().strip().splitlines()[-1:])}")


def measure_peer(run, engine, family):
    for row in peer_lines(run, f"torch {engine} {family}", "--engine", engine, "--family", family,
                          "--side", str(FAMILIES[family][1]), "--batches", PEER_BATCHES):
        networks = row.pop("networks")
        if networks == "plain" and PLAIN not in run.notes:
            run.note(PLAIN)
        run.add(family, row.pop("network"), row.pop("batch"), row.pop("seconds"), engine=PEERS[networks][engine], **row)


def measure_product(run):
    """By torch: where our own rate for it is lower, this one is what all is judged by."""
    for row in peer_lines(run, "torch product", "--engine", "product"):
        run.add("-", row.pop("network"), row.pop("batch"), row.pop("seconds"), engine="torch", **row)
        run.ceiling = max(run.ceiling, 1e12 * row["tflops"])


# What is measured, in order: the name, seconds that it takes at most as a rule, and how.
PIECES = (
    ("sd1.5 batch 8", 30, measure_engine, ("sd1.5", 8)),
    ("sdxl batch 2", 45, measure_engine, ("sdxl", 2)),
    ("sd1.5 batch 1", 20, measure_engine, ("sd1.5", 1)),
    ("sdxl batch 1", 40, measure_engine, ("sdxl", 1)),
    ("torch's 8192³ product", 15, measure_product, ()),
    ("torch eager sd1.5", 40, measure_peer, ("eager", "sd1.5")),
    ("torch eager sdxl", 50, measure_peer, ("eager", "sdxl")),
    ("sd1.5 batch 4", 20, measure_engine, ("sd1.5", 4)),
    ("sdxl batch 4", 50, measure_engine, ("sdxl", 4)),
    ("switching", 40, measure_switch, ()),
    ("torch.compile sd1.5", 90, measure_peer, ("compile", "sd1.5")),
    ("scenes", 60, measure_scenes, ()),
    ("torch.compile sdxl", 120, measure_peer, ("compile", "sdxl")),
    ("sd1.5 batch 2", 20, measure_engine, ("sd1.5", 2)),
    ("sdxl batch 8", 60, measure_engine, ("sdxl", 8)),
)


def measure(run):
    for name, needs, piece, words in PIECES:
        if piece in (measure_peer, measure_product) and run.options.no_peers:
            continue
        if run.left() < needs:
            run.note(f"{name}: left out, {max(run.left(), 0):.0f} s are left and it may take {needs}")
            continue
        run.say(name)
        run.piece_end = time.monotonic() + PATIENCE * needs
        try:
            piece(run, *words)
        except subprocess.TimeoutExpired:
            run.note(f"{name}: ended after its time")


# ---- the table ----

def ratio_of(run, row):
    """A peer's time over ours, or what the row itself is a ratio of."""
    same = [r["seconds"] for r in run.rows if r["engine"] == OURS and row["engine"] != OURS and
            all(r[key] == row[key] for key in ("family", "network", "batch"))]
    return row["seconds"] / same[0] if same else row.get("ratio")


def share_of(run, row):
    """Per cent of the card's own product."""
    return 100e12 * row["tflops"] / run.ceiling if row.get("tflops") and run.ceiling else None


def target_of(run, row):
    """What the row should be at least or at most: sign, number, unit, and what it is; None: no target."""
    network, batch = row["network"], row["batch"]
    if row["engine"] != OURS:
        least = 2 if row["engine"] in [names["eager"] for names in PEERS.values()] else 1.2
        return (">=", least, "x", ratio_of(run, row)) if network == "unet step" else None
    if network == "unet step" and (row["family"], batch >= 2) == ("sdxl", True):
        return ">=", 60, "%", share_of(run, row)
    if network == "unet step" and (row["family"], batch) == ("sd1.5", 8):
        return ">=", 50, "%", share_of(run, row)
    return {"vae decode": (">=", 40, "%", share_of(run, row)),
            "new size": ("<=", 1.2, "x", row.get("ratio")),
            "lora switch": ("<", 50, "ms", 1000 * row["seconds"]),
            "model switch": ("<", 1, "ms", 1000 * row["seconds"])}.get(network)


def judged(run, row):
    target = target_of(run, row)
    if target is None or target[3] is None:
        return ""
    sign, limit, unit, value = target
    met = value >= limit if sign == ">=" else value <= limit if sign == "<=" else value < limit
    return f"{sign} {limit:g} {unit}: {'met' if met else 'MISSED'}"


def print_table(run):
    print(f"\n{run.card}, {run.options.precision}; 8192³ product {run.ceiling / 1e12:.1f} TFLOP/s")
    print(f"{'engine':<16} {'family':<20} {'what':<16} {'batch':>5} {'ms':>9} {'TFLOP/s':>8} {'of 8192³':>9} "
          f"{'ratio':>6}  target")
    for r in run.rows:
        share, ratio = share_of(run, r), ratio_of(run, r)
        print(f"{r['engine']:<16} {r['family']:<20} {r['network']:<16} {r['batch']:>5} {1000 * r['seconds']:>9.2f} "
              f"{format(r['tflops'], '.1f') if r.get('tflops') else '-':>8} "
              f"{f'{share:.0f} %' if share else '-':>9} {f'{ratio:.2f}' if ratio else '-':>6}  {judged(run, r)}".rstrip())
    print("ratio: a peer's time over ours; the first step at a new size over the next")
    for text in run.notes:
        print(f"  {text}")
    verdicts = [judged(run, r) for r in run.rows]
    run.say(f"{len(run.rows)} figures of {run.card}, {sum(v.endswith(': met') for v in verdicts)} of "
            f"{sum(v != '' for v in verdicts)} targets met, in {time.monotonic() - run.begin:.0f} s; "
            f"{os.path.join(run.options.out, 'gpu-bench.json')}")


def stop(*_):
    raise KeyboardInterrupt


def main():
    parser = argparse.ArgumentParser(prog="gpu-bench", description="The CUDA back end on this card.")
    parser.add_argument("--bench", required=True, help=argparse.SUPPRESS)
    parser.add_argument("--out", default="build/gpu-bench", help="where gpu-bench.json goes")
    parser.add_argument("--precision", choices=("bf16", "f16"), default="bf16")
    parser.add_argument("--seconds", type=int, default=540, help="be done after so long")
    parser.add_argument("--no-peers", action="store_true")
    run = Run(parser.parse_args())
    signal.signal(signal.SIGTERM, stop)
    try:
        measure(run)
    except KeyboardInterrupt:
        run.note("interrupted")
    run.save()
    print_table(run)


if __name__ == "__main__":
    main()
