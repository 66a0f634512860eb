"""What scripts/gpu-bench makes of figures, with a program in atelier-bench's place that invents them."""

import argparse
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest
import unittest.mock

ROOT = pathlib.Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "tools" / "bench" / "gpu.py"
sys.path.insert(0, str(SCRIPT.parent))
import gpu

# A card of 1000 TFLOP/s that meets every target but the LoRA switch's; FAKE says what else goes wrong.
FAKE = r'''#!{python}
import json, os, sys, time
what, words = sys.argv[1], sys.argv[2:]
pairs = [word for word in words if word != "--json"]
option = dict(zip(pairs[::2], pairs[1::2]))
wrong = os.environ.get("FAKE", "")
with open(os.environ["CALLS"], "a") as calls:
    calls.write(" ".join(sys.argv[1:]) + "\n")
assert option["--device"] == "cuda" and "--json" in words
if wrong == "no card":
    sys.stderr.write("atelier bench: no card\n")
    sys.exit(6)
if wrong == "switch fails" and what == "switch":
    sys.stderr.write("atelier bench: TMPDIR is full\n")
    sys.exit(5)
if wrong == "slow":
    time.sleep(60)
batch = int(option.get("--batch", 1))
if what == "engine":
    xl = option["--family"] == "sdxl"
    assert option["--width"] == option["--height"] == ("1024" if xl else "512")
    print(json.dumps({"processor": "a fake card", "isa": "sm_90", "family": option["--family"],
        "ceiling_matmul_flops": 1e15, "step_s": 0.01 * batch, "step_flop": (6.1e12 if xl else 5.5e12) * batch,
        "decode_s": 0.01, "decode_flop": 4.5e12, "load_s": 1.0, "text_s": 0.001, "lora_switch_s": 0 if wrong == "lora fails" else 0.06,
        "new_size_first_s": 0.011, "new_size_step_s": 0.01, "weights_bytes": 7e9, "activations_bytes": 1e9,
        "library": "cublasLt of nowhere", "decode_operators": [], "step_operators": [
            {"kind": "matmul", "calls": 2, "seconds": 0.003, "flop": 1e12},
            {"kind": "group norm", "calls": 9, "seconds": 0.001, "flop": 0}]}))
    if wrong == "lora fails":
        sys.stderr.write("atelier bench: no memory for a LoRA\n")
        sys.exit(5)
elif what == "switch":
    print(json.dumps({"changing_step_s": 0.0105, "step_s": 0.01, "load_s": 0.5, "file_bytes": 2e9,
        "copy_bytes_per_s": 1e10, "beside_step_s": 0.5, "beside_load_s": 0.6}))
else:
    print(json.dumps({"scenes": [{"scene": "sd15", "steps": 20, "picture_s": 0.5}]}))
'''


class GpuBench(unittest.TestCase):
    def setUp(self):
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="atelier-e2e-"))
        self.addCleanup(shutil.rmtree, self.dir, ignore_errors=True)
        self.bench = self.dir / "atelier-bench"
        self.bench.write_text(FAKE.replace("{python}", sys.executable))
        self.bench.chmod(0o755)
        self.calls = self.dir / "calls"
        self.calls.touch()

    def command(self, *words):
        return [sys.executable, str(SCRIPT), "--bench", str(self.bench), "--out", str(self.dir / "out"), "--no-peers",
                *words]

    def environment(self, wrong):
        return {**os.environ, "FAKE": wrong, "CALLS": str(self.calls)}

    def measure(self, *words, wrong="", expect=0):
        done = subprocess.run(self.command(*words), capture_output=True, text=True, timeout=120,
                              env=self.environment(wrong))
        self.assertEqual(done.returncode, expect, done.stdout + done.stderr)
        return done

    def report(self):
        return json.loads((self.dir / "out" / "gpu-bench.json").read_text())

    def line(self, text, *words):
        lines = [line for line in text.splitlines() if all(f" {word} " in f" {line} " for word in words)]
        self.assertEqual(len(lines), 1, f"{words} in\n{text}")
        return lines[0]

    def test_everything_is_measured_and_judged(self):
        done = self.measure()
        table = done.stdout
        self.assertRegex(self.line(table, "sdxl", "unet step", "2"), r"610\.0 +61 % +- +>= 60 %: met$")
        self.assertRegex(self.line(table, "sdxl", "unet step", "1"), r"61 % +-$")
        self.assertRegex(self.line(table, "sd1.5", "unet step", "8"), r"55 % +- +>= 50 %: met$")
        self.assertRegex(self.line(table, "sd1.5", "vae decode"), r"45 % +- +>= 40 %: met$")
        self.assertRegex(self.line(table, "sdxl", "new size", "4"), r"1\.10 +<= 1\.2 x: met$")
        self.assertRegex(self.line(table, "sdxl", "lora switch"), r"< 50 ms: MISSED$")
        self.assertRegex(self.line(table, "model switch"), r"0\.50 .*< 1 ms: met$")
        self.assertIn("sd15", self.line(table, "20-step picture"))
        self.assertIn("targets met", done.stderr.splitlines()[-1])
        steps = [(r["family"], r["batch"]) for r in self.report()["results"] if r["network"] == "unet step"]
        self.assertEqual(sorted(steps), [(f, b) for f in ("sd1.5", "sdxl") for b in (1, 2, 4, 8)])
        self.assertEqual(steps[:2], [("sd1.5", 8), ("sdxl", 2)], "what the targets are about comes first")

    def test_no_card(self):
        done = self.measure(wrong="no card", expect=6)
        self.assertIn("no card", done.stderr)
        self.assertFalse((self.dir / "out").exists())

    def test_a_piece_that_fails_costs_no_other(self):
        done = self.measure(wrong="switch fails")
        self.assertIn("switch failed: atelier bench: TMPDIR is full", done.stdout)
        self.line(done.stdout, "20-step picture")
        self.assertFalse([r for r in self.report()["results"] if r["network"] == "model switch"])

    def test_what_was_measured_before_a_failure_counts(self):
        done = self.measure(wrong="lora fails")
        self.assertIn("no memory for a LoRA", done.stdout)
        self.line(done.stdout, "sdxl", "unet step", "2")
        self.assertNotIn("lora switch", done.stdout.split("ratio:")[0])

    def test_operators_and_the_library_are_said(self):
        done = self.measure()
        self.assertIn("sdxl step, batch 2, operators one by one 4.0 ms: matmul 75 % at 333 TFLOP/s, group norm 25 %",
                      done.stdout)
        self.assertEqual(done.stdout.count("cublasLt of nowhere"), 1)

    def test_what_time_does_not_allow_is_said(self):
        done = self.measure("--seconds", "64")
        self.assertIn("sdxl batch 2: left out", done.stdout)
        self.line(done.stdout, "sd1.5", "unet step", "8")
        self.assertNotIn("--batch 2 --family sdxl", self.calls.read_text())

    def run_here(self, **options):
        return gpu.Run(argparse.Namespace(bench=str(self.bench), out=str(self.dir / "out"), precision="bf16",
                                          no_peers=True, **options))

    def test_a_piece_ends_with_its_time(self):
        pieces = (("a slow one", 1, gpu.measure_scenes, ()), ("the next", 1, gpu.measure_switch, ()))
        run = self.run_here(seconds=gpu.RESERVE_S + 2)
        with unittest.mock.patch.dict(os.environ, self.environment("slow")), \
                unittest.mock.patch.object(gpu, "PIECES", pieces):
            gpu.measure(run)
        self.assertEqual(run.notes[0], "a slow one: ended after its time")
        self.assertIn("the next: left out", run.notes[1])

    def test_peers_are_judged_by_ours(self):
        run = self.run_here(seconds=600)
        run.add("sdxl", "unet step", 4, 0.1)
        for engine, seconds, verdict in (("eager", 0.21, "met"), ("eager", 0.19, "MISSED"),
                                         ("compile", 0.13, "met"), ("compile", 0.11, "MISSED")):
            run.add("sdxl", "unet step", 4, seconds, engine=gpu.PEERS["plain"][engine])
            self.assertTrue(gpu.judged(run, run.rows[-1]).endswith(f": {verdict}"), run.rows[-1])
        run.add("sdxl", "unet step", 1, 0.1, engine=gpu.PEERS["diffusers"]["eager"])
        self.assertEqual(gpu.judged(run, run.rows[-1]), "", "there is nothing of ours to compare with")

    def test_a_peer_that_fails_is_said(self):
        run = self.run_here(seconds=600)
        with unittest.mock.patch.object(gpu.sys, "executable", "/bin/false"):
            gpu.measure_peer(run, "eager", "sdxl")
        self.assertIn("torch eager sdxl failed", run.notes[0])

    def test_interrupted(self):
        process = subprocess.Popen(self.command(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                   env=self.environment("slow"))
        while not self.calls.read_text():
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        table, _ = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 0)
        self.assertIn("interrupted", table)
        self.assertEqual(self.report()["notes"], ["interrupted"])


if __name__ == "__main__":
    unittest.main()
