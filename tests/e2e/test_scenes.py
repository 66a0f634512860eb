"""The example files, drawn: the five scenes with small random models under the names that the files
use, and what the shipped adapters do to the shipped model's pictures, judged by geometry.
"""

import importlib.machinery
import importlib.util
import json
import math
import os
import pathlib
import shutil
import unittest

import e2e

SCENES = e2e.ROOT / "examples" / "scenes"
SHIPPED = e2e.ROOT / "models"
SMALL = {"sd15": "sd1-small", "sd21": "sd2-small", "dreamlike": "sd1-plain", "sdxl": "sdxl-small",
         "sdxl-refiner": "sdxl-refiner"}
# The small model that has both a LoRA and a ControlNet.
ADAPTED = {"sd15": "sdxl-small", "loras/watercolour.safetensors": "loras/sdxl-kohya.safetensors",
           "controlnets/canny": "controlnets/sdxl-canny"}


def load_checker():
    path = str(e2e.ROOT / "scripts" / "check-pictures")
    loader = importlib.machinery.SourceFileLoader("check_pictures", path)
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("check_pictures", loader))
    loader.exec_module(module)
    return module


check = load_checker()


class Scenes(e2e.Case):
    def draw(self, name, models=None):
        """Fewer steps and an eighth of the area: the models' weights are random."""
        jobs = [json.loads(line) for line in (SCENES / f"{name}.jsonl").read_text().splitlines()]
        for job in jobs:
            job.update(steps=3, width=job["width"] // 32 * 8, height=job["height"] // 32 * 8)
            for net in job.get("controlnets", []):
                shutil.copy(SCENES / net["image"], self.dir)
        self.models = self.dir / "models"
        for wanted, small in (models or SMALL).items():
            (self.models / wanted).parent.mkdir(parents=True, exist_ok=True)
            os.symlink(pathlib.Path(e2e.MODELS) / small, self.models / wanted)
        self.write_jobs(jobs)
        self.run_jobs("--models", self.models)
        self.audit([job["id"] for job in jobs])
        return {name: m["files"][0]["sha256"] for name, m in self.manifests().items()}

    def test_sd15(self):
        self.assertEqual(len(set(self.draw("1-sd15").values())), 4)

    def test_sdxl(self):
        self.draw("2-sdxl")

    def test_lora_and_controlnet_at_mixed_sizes(self):
        self.draw("3-lora-controlnet", ADAPTED)
        manifests = self.manifests()
        sizes = {(m["files"][0]["width"], m["files"][0]["height"]) for m in manifests.values()}
        self.assertEqual(sizes, {(128, 128), (160, 112), (112, 160)})

    def test_three_models_in_turn(self):
        self.draw("4-three-models")
        families = {m["request"]["model"] for m in self.manifests().values()}
        self.assertEqual(families, {"sd15", "sd21", "dreamlike"})

    def test_base_and_refiner(self):
        refined = self.draw("5-sdxl-refiner")
        self.out = self.dir / "plain"
        jobs = [json.loads(line) for line in (self.dir / "jobs.jsonl").read_text().splitlines()]
        for job in jobs:
            del job["refiner"]
        self.write_jobs(jobs)
        self.run_jobs("--models", self.models)
        plain = {name: m["files"][0]["sha256"] for name, m in self.manifests().items()}
        for name in refined:
            self.assertNotEqual(refined[name], plain[name])


class Shipped(e2e.Case):
    def draw(self, jobs):
        self.write_jobs(jobs)
        self.run_jobs("--models", SHIPPED)

    def picture(self, name):
        return check.read_png(next((self.out / "results" / name).glob("0-*.png")))

    def pieces(self, name, least=40):
        width, height, rows = self.picture(name)
        found = check.pieces(width, height, rows, check.border_rows(width, height, rows))
        return [piece for piece in found if len(piece) >= least]

    def test_the_lora_changes_the_style_and_not_the_shape(self):
        prompts = ["a big red heart on a cream background", "a big green circle on a white background",
                   "a big blue square in the sky", "a big yellow star on a grey background",
                   "a big purple diamond on a white background"]
        jobs = []
        for i, prompt in enumerate(prompts):
            base = {"model": "tiny-shapes", "prompt": prompt, "seed": i}
            jobs += [{**base, "id": f"plain{i}"},
                     {**base, "id": f"neon{i}", "loras": [{"name": "neon"}]}]
        self.draw(jobs)
        overlaps = []
        for i, prompt in enumerate(prompts):
            width, height, rows = self.picture(f"neon{i}")
            ground = check.border_rows(width, height, rows)
            self.assertLess(max(check.luma(p) for p in ground), 70, prompt)
            shining = [rows[y][x] for piece in self.pieces(f"neon{i}") for x, y in piece
                       if check.luma(rows[y][x]) > 60]
            self.assertEqual(check.colour_name(shining)[0], prompt.split()[2])
            plain, neon = (set().union(*self.pieces(f"{kind}{i}")) for kind in ("plain", "neon"))
            overlaps.append(len(plain & neon) / len(plain | neon))
        print("overlap of the shapes, plain and neon:", *(f"{o:.2f}" for o in overlaps))
        self.assertGreater(sum(overlaps) / len(overlaps), 0.75)
        self.assertGreater(min(overlaps), 0.6)

    def test_the_learned_word_is_a_smiling_yellow_circle(self):
        grounds = ["white", "navy", "cream", "black", "grey"]
        self.draw([{"id": ground, "model": "tiny-shapes", "seed": i,
                    "prompt": f"a sunface on a {ground} background"}
                   for i, ground in enumerate(grounds)])
        right = []
        for ground in grounds:
            want = check.expectations(f"a big smiling yellow circle on a {ground} background")
            right.append(check.problem(want, *self.picture(ground)) == "")
        print("pictures of the learned word that are right:", sum(right), "of", len(right))
        self.assertGreaterEqual(sum(right), len(right) - 1)

    def test_the_controlnet_puts_edges_where_the_hint_has_them(self):
        prompts = {"star-top-left": "a yellow star on a navy background",
                   "heart-bottom-right": "a pink heart on a white background",
                   "diamond-right": "a purple diamond on a cream background"}
        jobs = []
        for i, (hint, prompt) in enumerate(prompts.items()):
            base = {"model": "tiny-shapes", "prompt": prompt, "seed": i}
            shutil.copy(e2e.ROOT / "examples" / "hints" / f"{hint}.png", self.dir)
            net = {"name": "shapes-edges", "image": f"{hint}.png", "preprocess": "canny"}
            jobs += [{**base, "id": f"{hint}-free"}, {**base, "id": hint, "controlnets": [net]}]
        self.draw(jobs)
        near, far = [], []
        for hint in prompts:
            target = self.middle_of(check.read_png(e2e.ROOT / "examples" / "hints" / f"{hint}.png"))
            near.append(math.dist(target, self.middle_of(self.picture(hint))))
            far.append(math.dist(target, self.middle_of(self.picture(f"{hint}-free"))))
        print("pixels from the hint's middle with it:", *(f"{d:.1f}" for d in near),
              "and without it:", *(f"{d:.1f}" for d in far))
        self.assertLess(max(near), 6)
        self.assertGreater(min(far), 12)

    def middle_of(self, picture):
        found = set().union(*check.pieces(*picture, check.border_rows(*picture)))
        return (sum(x for x, _ in found) / len(found), sum(y for _, y in found) / len(found))


if __name__ == "__main__":
    unittest.main()
