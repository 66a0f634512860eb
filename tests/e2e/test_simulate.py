"""atelier simulate as operators use it: the example files, figures that add up, policies compared,
a drawing, and what it says of files that it cannot take.
"""

import json
import subprocess
import unittest
import xml.etree.ElementTree

import e2e

POLICY = e2e.ROOT / "deploy" / "routing.json"
WORKERS = e2e.ROOT / "examples" / "simulate" / "workers.json"
JOBS = e2e.ROOT / "examples" / "simulate" / "jobs.jsonl"


class Simulate(e2e.Case):
    def simulate(self, *words, policy=POLICY, workers=WORKERS, expect=0):
        command = [e2e.PROGRAM, "simulate", "--policy", policy, "--workers", workers, *words]
        result = subprocess.run([str(word) for word in command], capture_output=True, text=True,
                                timeout=300)
        self.assertEqual(result.returncode, expect, result.stdout + result.stderr)
        return result.stdout if expect == 0 else result.stderr

    def figures(self, *words, **options):
        return json.loads(self.simulate("--json", *words, **options))["simulations"]

    def test_the_example(self):
        text = self.simulate("--jobs", JOBS)
        for part in ("24 jobs", "a100", "interactive", "studio", "no promise broken"):
            self.assertIn(part, text)
        figures = self.figures("--jobs", JOBS)[0]
        self.assertEqual(figures["all"]["done"], 24)
        self.assertAlmostEqual(figures["price"], sum(p["price"] for p in figures["pools"]), 6)
        for groups in ("priorities", "tenants"):
            for key in ("jobs", "done", "pictures"):
                self.assertEqual(sum(g[key] for g in figures[groups]), figures["all"][key])
        self.assertEqual(sum(p["jobs"] for p in figures["pools"]), 24)
        self.assertGreaterEqual(figures["all"]["wait_s"]["p99"], figures["all"]["wait_s"]["p50"])

    def test_the_same_again_and_another_seed(self):
        words = ("--invent", 3000, "--hours", 2)
        first = self.simulate(*words)
        self.assertEqual(first, self.simulate(*words))
        self.assertNotEqual(first, self.simulate(*words, "--seed", 2))

    def test_more_load_waits_longer(self):
        words = ("--invent", 5000, "--hours", 4)
        slow, fast = (self.figures(*words, "--speed", speed)[0] for speed in (1, 20))
        self.assertLess(slow["all"]["wait_s"]["p95"], fast["all"]["wait_s"]["p95"])
        self.assertGreater(slow["span_s"], fast["span_s"])

    def test_two_policies(self):
        policy = json.loads(POLICY.read_text())
        policy["rules"] = [{"route": ["a100"]}]
        other = self.dir / "a100-only.json"
        other.write_text(json.dumps(policy))
        words = ("--invent", 2000, "--hours", 2, "--compare", other)
        first, second = self.figures(*words)
        self.assertEqual(first["all"]["jobs"], second["all"]["jobs"])
        self.assertEqual([p["jobs"] for p in second["pools"] if p["name"] != "a100"], [0, 0, 0])
        text = self.simulate(*words)
        self.assertIn("a100-only.json", text)
        self.assertIn("deadlines missed", text)

    def test_a_drawing(self):
        path = self.dir / "out.svg"
        self.simulate("--jobs", JOBS, "--svg", path)
        root = xml.etree.ElementTree.parse(path).getroot()
        kinds = [element.tag.rsplit("}")[-1] for element in root]
        self.assertEqual(kinds.count("polyline"), 4)
        self.assertEqual(kinds.count("polygon"), 8)

    def test_a_trace(self):
        trace = self.dir / "requests.csv"
        trace.write_text(
            "gmt_create,predict_type,predict_status,exec_time_seconds,groupId,prompt_length,"
            "negative_prompt_length,num_images_per_prompt,num_inference_steps,"
            "checkpoint_model_version_id,num_lora\n" +
            "".join(f"2026-03-01 12:00:{i:02},TXT_2_IMG,SUCCEED,32.0,G{i % 3},63.0,26.0,2.0,30.0,"
                    f"M{i % 2},0\n" for i in range(20)))
        figures = self.figures("--jobs", trace)[0]
        self.assertEqual(figures["all"]["pictures"], 40)
        self.assertEqual(len(figures["tenants"]), 3)

    def test_what_is_wrong_is_said_with_its_place(self):
        bad = self.write_jobs([{"model": "sd15", "prompt": ""}, {"model": "sd15", "prompt": "",
                                                                 "width": 500}])
        text = self.simulate("--jobs", bad, expect=5)
        self.assertIn(f"{bad}: line 2: width", text)
        fleet = self.dir / "workers.json"
        fleet.write_text('{"pools": {"a100": {"memory_gb": 70, "wokers": 3}}}')
        text = self.simulate("--jobs", JOBS, workers=fleet, expect=5)
        self.assertIn('pools.a100: there is no key "wokers"; did you mean "workers"?', text)
        fleet.write_text('{"pools": {"a100": {"memory_gb": 70}}}')
        self.assertIn('model: "sd15" is not under "models"',
                      self.simulate("--jobs", JOBS, workers=fleet, expect=5))
        self.assertIn("--jobs FILE or --invent N", self.simulate(expect=2))
        self.assertIn("--start", self.simulate("--jobs", JOBS, "--start", "noon", expect=5))


if __name__ == "__main__":
    unittest.main()
