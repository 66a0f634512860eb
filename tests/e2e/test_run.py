"""A run as its user sees it: results, reports, resuming after every kind of end."""

import base64
import json
import os
import pathlib
import random
import resource
import signal
import struct
import subprocess
import sys
import time
import unittest
import zlib

import e2e

KILLS = int(os.environ.get("KILLS", "55"))


def png(width, height):
    rows = b"".join(b"\0" + bytes((x * 3 % 256, y * 5 % 256, 90)[c] for x in range(width)
                                   for c in range(3)) for y in range(height))

    def chunk(name, data):
        return (struct.pack(">I", len(data)) + name + data
                + struct.pack(">I", zlib.crc32(name + data)))

    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
            + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


class Results(e2e.Case):
    def test_manifest_and_files(self):
        self.write_jobs([
            e2e.job(id="a", images=3, seed=7, output={"format": "png"}, labels={"k": "v"}),
            e2e.job(id="b", output={"format": "jpeg", "quality": 80}, prompt="<b>&\"x\"</b>"),
            e2e.job(id="c", output={"format": "webp", "metadata": False}),
            e2e.job(),
        ])
        self.run_jobs()
        manifests = self.manifests()
        own = next(name for name in manifests if name.startswith("line-000004-"))
        self.audit(["a", "b", "c", own])
        a = manifests["a"]
        self.assertEqual([file["seed"] for file in a["files"]], [7, 8, 9])
        self.assertEqual(len({file["sha256"] for file in a["files"]}), 3)
        self.assertEqual(a["request"]["labels"], {"k": "v"})
        self.assertEqual(a["request"]["guidance_scale"], 7.5)
        self.assertIn("sampler", a["request"])
        self.assertEqual(a["attempt"], 1)
        self.assertGreater(a["times"]["compute_s"], 0)
        for name, start in (("a", b"\x89PNG"), ("b", b"\xff\xd8\xff"), ("c", b"RIFF")):
            data = (self.out / "results" / name / manifests[name]["files"][0]["name"]).read_bytes()
            self.assertTrue(data.startswith(start))
            self.assertEqual(b'"prompt"' in data, name != "c")
        page = (self.out / "index.html").read_text(encoding="utf-8")
        self.assertIn("&lt;b&gt;&amp;", page)
        self.assertNotIn("<b>&", page)
        for manifest in manifests.values():
            for file in manifest["files"]:
                self.assertIn(f'results/{manifest["id"]}/{file["name"]}', page)

    def test_the_contact_sheet_shows_what_stood_beside_the_model(self):
        (self.dir / "in.png").write_bytes(png(64, 64))
        self.write_jobs([
            e2e.job(id="a", loras=[{"name": "sd1-peft", "scale": 0.5}, {"name": "sd1-kohya"}],
                    prompt="a toy boat"),
            e2e.job(id="c", model="sd1-plain", controlnets=[{"name": "sd1-canny", "image": "in.png"}]),
            e2e.job(id="p")])
        self.run_jobs()
        page = (self.out / "index.html").read_text(encoding="utf-8")
        a, c, p = sorted(page.split("<article")[1:], key=lambda card: card.split('class="id">')[1])
        self.assertIn("<dt>LoRA</dt><dd>sd1-peft × 0.5, sd1-kohya</dd>", a)
        self.assertIn("<dt>embedding</dt><dd>toy</dd>", a)
        self.assertIn("<dt>ControlNet</dt><dd>sd1-canny</dd>", c)
        for word in ("LoRA", "ControlNet", "embedding"):
            self.assertNotIn(f"<dt>{word}</dt>", p)

    def test_seeds_and_batches_do_not_change_a_picture(self):
        lines = [e2e.job(id=f"j{i}", seed=i, steps=2 + i % 3, prompt=f"cat {i}") for i in range(6)]
        self.write_jobs(lines)
        self.run_jobs("--batch-max", "1")
        alone = {name: m["files"][0]["sha256"] for name, m in self.manifests().items()}
        self.out = self.dir / "out2"
        self.run_jobs("--batch-max", "6")
        together = {name: m["files"][0]["sha256"] for name, m in self.manifests().items()}
        self.assertEqual(alone, together)

    def test_pictures_to_start_from(self):
        (self.dir / "in.png").write_bytes(png(72, 64))
        data = "data:image/png;base64," + base64.b64encode(png(64, 64)).decode()
        self.write_jobs([
            e2e.job(id="file", init_image="in.png", width=None, height=None, steps=4),
            e2e.job(id="data", init_image=data, strength=0.5, steps=4),
            e2e.job(id="other", init_image="in.png", strength=0.5, steps=4),
        ])
        self.run_jobs(expect=4)
        manifests = self.manifests()
        self.assertEqual(set(manifests), {"file", "data"})
        self.assertEqual(manifests["file"]["request"]["width"], 72)
        self.assertEqual(manifests["file"]["request"]["strength"], 0.8)
        self.assertIn("init_image: is 72×64", self.records("failed.jsonl")[0]["error"])

    def test_steps_that_a_sampler_does_not_do(self):
        self.write_jobs([e2e.job(id="few", sampler="lcm", steps=2),
                         e2e.job(id="many", sampler="lcm", steps=60)])
        self.run_jobs(expect=4)
        self.assertEqual(set(self.manifests()), {"few"})
        self.assertIn("steps: lcm takes at most 50", self.records("failed.jsonl")[0]["error"])

    def test_sdxl_is_told_sizes(self):
        sizes = {"original_size": [512, 333], "target_size": [640, 640], "crop": [4, 8]}
        fields = {"model": "sdxl-small", "width": None, "height": None, "seed": 5}
        self.write_jobs([
            e2e.job(id="plain", images=2, **fields),
            e2e.job(id="sizes", images=2, **fields, **sizes),
            e2e.job(id="empty", images=2, negative_prompt="", **fields),
            e2e.job(id="wrong", crop=[0, 0]),
        ])
        self.run_jobs(expect=4)
        manifests = self.manifests()
        self.assertEqual(set(manifests), {"plain", "sizes", "empty"})
        request = manifests["sizes"]["request"]
        self.assertEqual({name: request[name] for name in sizes}, sizes)
        self.assertEqual((request["width"], request["height"]), (96, 96))
        self.assertEqual(request["guidance_scale"], 5)
        hashes = {file["sha256"] for manifest in manifests.values() for file in manifest["files"]}
        self.assertEqual(len(hashes), 6)
        self.assertIn("crop", self.records("failed.jsonl")[0]["error"])

    def test_adapters_side_by_side(self):
        """Jobs with other adapters, in one batch, are drawn as each is alone."""
        fields = {"seed": 3, "output": {"metadata": False}}
        kohya, peft = {"name": "sd1-kohya", "scale": 0.8}, {"name": "sd1-peft"}
        jobs = [
            e2e.job(id="none", **fields),
            e2e.job(id="one", loras=[kohya], **fields),
            e2e.job(id="two", loras=[kohya, peft], **fields),
            e2e.job(id="copied", loras=[{"name": "sd1-dora", "scale": 0.5}], **fields),
        ]
        self.write_jobs(jobs)
        found = []
        for batch in ("4", "1"):
            self.out = self.dir / f"out{batch}"
            self.run_jobs("--batch-max", batch)
            manifests = self.manifests()
            found.append({name: manifest["files"][0]["sha256"] for name, manifest in manifests.items()})
        self.assertEqual(found[0], found[1])
        self.assertEqual(len(set(found[0].values())), 4)
        self.assertEqual(manifests["two"]["request"]["loras"], [kohya, {**peft, "scale": 1}])

    def test_adapters_make_room_for_each_other(self):
        """In memory that holds neither all of them at once nor two models, every job is drawn."""
        names = ["peft", "kohya", "locon", "first", "dora", "lycoris"]
        jobs = [
            e2e.job(id=f"{i}", loras=[{"name": f"sd1-{names[i % 6]}", "scale": 0.5 + i / 20}])
            for i in range(12)
        ]
        jobs.append(e2e.job(id="other", model="sd2-small", loras=[{"name": "sd2-kohya"}]))
        self.write_jobs(jobs)
        self.run_jobs("--memory", "14M", "--precision", "f32")
        self.audit([job["id"] for job in jobs])

    def test_words_that_were_learned(self):
        fields = {"seed": 3, "output": {"metadata": False}}
        self.write_jobs([
            e2e.job(id="named", prompt="a toy", embeddings=["toy"], **fields),
            e2e.job(id="found", prompt="a toy", **fields),
            e2e.job(id="other", prompt="a toys", **fields),
            e2e.job(id="family", prompt="a toy", model="sd2-small", steps=1),
        ])
        self.run_jobs()
        manifests = self.manifests()
        hashes = {name: manifest["files"][0]["sha256"] for name, manifest in manifests.items()}
        self.assertEqual(hashes["named"], hashes["found"])
        self.assertNotEqual(hashes["named"], hashes["other"])
        self.assertEqual(manifests["found"]["request"]["embeddings"], ["toy"])
        self.assertNotIn("embeddings", manifests["family"]["request"])
        self.write_jobs([e2e.job(id="bad", model="sd2-small", embeddings=["toy"])])
        self.out = self.dir / "out2"
        self.run_jobs(expect=None)
        self.assertIn("'<sculpture>' is not as wide", self.records("failed.jsonl")[0]["error"])

    def test_an_adapter_of_another_family(self):
        self.write_jobs([e2e.job(id="bad", loras=[{"name": "sdxl-kohya"}]), e2e.job(id="good")])
        self.run_jobs(expect=None)
        self.assertEqual(set(self.manifests()), {"good"})
        [record] = self.records("failed.jsonl")
        self.assertIn("sdxl-kohya.safetensors: key 'lora_", json.dumps(record))

    def test_a_refiner_takes_over(self):
        fields = {"model": "sdxl-small", "negative_prompt": "", "steps": 5, "output": {"metadata": False}}
        refiner = {"model": "sdxl-refiner"}
        self.write_jobs([
            e2e.job(id="base", seed=1, **fields),
            e2e.job(id="early", seed=1, refiner={**refiner, "switch_at": 0.2}, **fields),
            e2e.job(id="late", seed=1, images=3, refiner=refiner, aesthetic_score=7, **fields),
            e2e.job(id="other", seed=1, **fields),
        ])
        self.run_jobs("--batch-max", "1")
        alone = self.manifests()
        self.out = self.dir / "out2"
        self.run_jobs("--batch-max", "6")
        together = self.manifests()
        hashes = {name: [file["sha256"] for file in manifest["files"]] for name, manifest in alone.items()}
        self.assertEqual(hashes, {name: [file["sha256"] for file in manifest["files"]]
                                  for name, manifest in together.items()})
        self.assertEqual(hashes["base"], hashes["other"])
        self.assertEqual(len({hashes["base"][0], hashes["early"][0], *hashes["late"]}), 5)
        self.assertEqual(alone["late"]["request"]["refiner"], {**refiner, "switch_at": 0.8})
        self.out = self.dir / "out3"
        end = json.loads(self.run_jobs("--json").stdout.splitlines()[-1])
        self.assertEqual(end["model_loads"], 2)

    def test_a_second_pass(self):
        fields = {"width": 64, "height": 72, "steps": 3, "output": {"metadata": False}}
        self.write_jobs([
            e2e.job(id="once", seed=1, **fields),
            e2e.job(id="twice", seed=1, images=2, hires={"scale": 1.5, "steps": 4}, **fields),
            e2e.job(id="wide", seed=1, hires={"width": 128, "height": 80}, **fields),
            e2e.job(id="other", seed=1, **fields),
        ])
        hashes = []
        for batch in ("1", "6"):
            self.out = self.dir / f"out{batch}"
            self.run_jobs("--batch-max", batch)
            done = self.manifests()
            hashes.append({name: [file["sha256"] for file in manifest["files"]] for name, manifest in done.items()})
        self.assertEqual(hashes[0], hashes[1])
        self.assertEqual(hashes[0]["once"], hashes[0]["other"])
        sizes = {name: [(file["width"], file["height"]) for file in manifest["files"]] for name, manifest in done.items()}
        self.assertEqual(sizes, {"once": [(64, 72)], "twice": [(96, 112)] * 2, "wide": [(128, 80)], "other": [(64, 72)]})
        self.assertEqual(done["wide"]["request"]["hires"],
                         {"width": 128, "height": 80, "strength": 0.7, "steps": 3, "upscaler": "latent"})

    def test_a_second_pass_with_all_that_goes_along(self):
        jobs = pathlib.Path(e2e.ROOT) / "tests" / "golden" / "jobs"
        for name in ("init-72x64.png", "mask-72x64.png", "hint-101x53.png"):
            (self.dir / name).write_bytes((jobs / name).read_bytes())
        picture = {"init_image": "init-72x64.png", "mask": "mask-72x64.png", "width": None, "height": None}
        twice = {"steps": 3, "hires": {"scale": 1.25, "steps": 4}, "output": {"metadata": False}}
        hint = {"controlnets": [{"name": "sd1-canny", "image": "hint-101x53.png"}]}
        refiner = {"refiner": {"model": "sdxl-refiner", "switch_at": 0.6}}
        self.write_jobs([
            e2e.job(id="masked", model="sd1-plain", **picture, **twice),
            e2e.job(id="told", model="sd1-inpaint", **picture, **twice),
            e2e.job(id="guided", model="sd1-plain", **twice, **hint),
            e2e.job(id="both", model="sd1-plain", images=2, **picture, **twice, **hint),
            e2e.job(id="refined", model="sdxl-small", **twice, **refiner),
            e2e.job(id="all", model="sdxl-small", **picture, **twice, **refiner),
        ])
        hashes = []
        for batch in ("1", "6"):
            self.out = self.dir / f"out{batch}"
            self.run_jobs("--batch-max", batch)
            done = self.manifests()
            hashes.append({name: [file["sha256"] for file in manifest["files"]] for name, manifest in done.items()})
        self.assertEqual(hashes[0], hashes[1])
        self.assertEqual(len({file for files in hashes[0].values() for file in files}), 7)
        for name in ("masked", "told", "both", "all"):
            self.assertEqual({(file["width"], file["height"]) for file in done[name]["files"]}, {(88, 80)}, name)

    def test_two_models_that_do_not_fit_together(self):
        self.write_jobs([
            e2e.job(id="a", model="sdxl-single", refiner={"model": "sdxl-refiner-single"}),
        ])
        for memory in ("10M", "30M"):  # in which their weights, or their pictures, have no room
            self.run_jobs("--memory", memory, "--precision", "f32", expect=4)
            self.assertEqual(self.manifests(), {})
            self.assertIn(f"may use {memory[:-1]} MiB", self.records("failed.jsonl")[-1]["error"])

    def test_a_part_of_a_picture_is_redrawn(self):
        jobs = pathlib.Path(e2e.ROOT) / "tests" / "golden" / "jobs"
        for name in ("init-72x64.png", "mask-72x64.png", "init-64x88.png"):
            (self.dir / name).write_bytes((jobs / name).read_bytes())
        fields = {"init_image": "init-72x64.png", "width": None, "height": None, "steps": 3}
        mask = {"mask": "mask-72x64.png"}
        self.write_jobs([
            e2e.job(id="plain", model="sd1-plain", images=2, **mask, **fields),
            e2e.job(id="told", model="sd1-inpaint", **mask, **fields),
            e2e.job(id="half", model="sd1-inpaint", strength=0.7, **mask, **fields),
            e2e.job(id="obeys", model="sd1-pix2pix", image_guidance_scale=2, **fields),
            e2e.job(id="no-mask", model="sd1-inpaint", **fields),
            e2e.job(id="other-size", model="sd1-plain", **mask, **{**fields, "init_image": "init-64x88.png"}),
            e2e.job(id="not-there", model="sd1-plain", mask="none.png", **fields),
        ])
        self.run_jobs(expect=4)
        manifests = self.manifests()
        self.assertEqual(set(manifests), {"plain", "told", "half", "obeys"})
        self.assertEqual(manifests["told"]["request"]["strength"], 1)
        hashes = {file["sha256"] for manifest in manifests.values() for file in manifest["files"]}
        self.assertEqual(len(hashes), 5)
        errors = {record["id"]: record["error"] for record in self.records("failed.jsonl")}
        self.assertIn("needs init_image and mask", errors["no-mask"])
        self.assertIn("mask: is 72×64", errors["other-size"])
        self.assertIn("mask: ", errors["not-there"])
        self.assertIn("none.png", errors["not-there"])

    def test_pictures_guide(self):
        jobs = pathlib.Path(e2e.ROOT) / "tests" / "golden" / "jobs"
        for name in ("init-72x64.png", "hint-101x53.png"):
            (self.dir / name).write_bytes((jobs / name).read_bytes())
        (self.dir / "torn.png").write_bytes((jobs / "hint-101x53.png").read_bytes()[:500])
        fields = {"model": "sd1-plain", "width": 72, "height": 64, "steps": 3, "guidance_scale": 4, "seed": 5}

        def guided(name, *controls, **more):
            nets = [{"name": net, "image": image, **rest} for net, image, rest in controls]
            return e2e.job(id=name, controlnets=nets, **{**fields, **more})

        hint, init = "hint-101x53.png", "init-72x64.png"
        self.write_jobs([
            e2e.job(id="plain", **fields),
            guided("one", ("sd1-canny", hint, {})),
            guided("two", ("sd1-canny", hint, {"scale": 0.5}), ("sd1-pose", init, {"end": 0.5}), images=2),
            guided("edges", ("sd1-pose", init, {"preprocess": "canny"})),
            guided("fewer", ("sd1-pose", init, {"preprocess": "canny", "low_threshold": 300, "high_threshold": 600})),
            guided("guess", ("sd1-canny", hint, {"guess_mode": True})),
            guided("xl", ("sdxl-canny", hint, {}), model="sdxl-small", loras=[{"name": "sdxl-kohya"}]),
            guided("kinds", ("sdxl-union", hint, {"mode": 3}), ("sdxl-union", init, {"mode": 0, "preprocess": "canny"}),
                   model="sdxl-small"),
            guided("kindless", ("sdxl-union", hint, {}), model="sdxl-small"),
            guided("wrong", ("sdxl-canny", hint, {})),
            guided("gone", ("sd1-canny", "none.png", {})),
            guided("torn", ("sd1-canny", "torn.png", {})),
        ])
        self.run_jobs(expect=4)
        together = self.manifests()
        self.assertEqual(set(together), {"plain", "one", "two", "edges", "fewer", "guess", "xl", "kinds"})
        hashes = {file["sha256"] for manifest in together.values() for file in manifest["files"]}
        self.assertEqual(len(hashes), 9)
        self.assertEqual([hint["mode"] for hint in together["kinds"]["request"]["controlnets"]], [3, 0])
        self.assertEqual(together["one"]["request"]["controlnets"][0],
                         {"name": "sd1-canny", "image": hint, "scale": 1, "start": 0, "end": 1, "guess_mode": False})
        errors = {record["id"]: record["error"] for record in self.records("failed.jsonl")}
        self.assertIn("attn2.to_k.weight' has the shape [12, 40], the model needs [16, 16]", errors["wrong"])
        self.assertIn("controlnets[0].mode: must say which kind", errors["kindless"])
        self.assertIn("controlnets[0].image: ", errors["gone"])
        self.assertIn("none.png", errors["gone"])
        self.assertIn("torn.png", errors["torn"])
        self.out = self.dir / "alone"
        self.run_jobs("--batch-max", "1", expect=4)
        alone = self.manifests()
        for name, manifest in together.items():
            self.assertEqual(manifest["files"], alone[name]["files"], name)

    def test_stages_are_dumped(self):
        self.write_jobs([e2e.job(id="a", steps=3, guidance_scale=5)])
        self.run_jobs("--dump-stages", self.dir / "stages")
        data = (self.dir / "stages" / "a.safetensors").read_bytes()
        size = struct.unpack("<Q", data[:8])[0]
        header = json.loads(data[8:8 + size])
        wanted = {"tokens", "prompt_embeds", "negative_prompt_embeds", "noise", "latents.0",
                  "latents.1", "latents.2", "latents", "image"}
        self.assertLessEqual(wanted, set(header))
        end = max(tensor["data_offsets"][1] for tensor in header.values())
        self.assertEqual(8 + size + end, len(data))

    def test_philox_noise(self):
        """The start noise of seed 0 begins with what A1111 shows for it."""
        output = {"metadata": False}  # which would tell the pictures apart by itself
        self.write_jobs([e2e.job(id="t", seed=0, steps=2, output=output),
                         e2e.job(id="p", seed=0, steps=2, output=output, rng="philox")])
        self.run_jobs("--dump-stages", self.dir / "stages")
        data = (self.dir / "stages" / "p.safetensors").read_bytes()
        size = struct.unpack("<Q", data[:8])[0]
        begin = 8 + size + json.loads(data[8:8 + size])["noise"]["data_offsets"][0]
        for got, shown in zip(struct.unpack_from("<4f", data, begin),
                              (-0.92466259, -0.42534415, -2.6438457, 0.14518388)):
            self.assertAlmostEqual(got, shown, 6)
        manifests = self.manifests()
        self.assertEqual(manifests["p"]["request"]["rng"], "philox")
        self.assertNotEqual(*(manifests[name]["files"][0]["sha256"] for name in "tp"))

    def test_a_model_is_loaded_once(self):
        others = [p.parent.name for p in pathlib.Path(e2e.MODELS).glob("*/model_index.json")
                  if json.loads(p.read_text())["_class_name"] == "StableDiffusionPipeline"
                  and p.parent.name != e2e.MODEL]
        if not others:
            self.skipTest("one model only")
        lines = [e2e.job(id=f"j{i}", model=[e2e.MODEL, others[0]][i % 2]) for i in range(20)]
        self.write_jobs(lines)
        end = json.loads(self.run_jobs("--json").stdout.splitlines()[-1])
        self.assertEqual(end["model_loads"], 2)
        self.audit([f"j{i}" for i in range(20)])

    def test_catalogue_defaults(self):
        models = self.dir / "models"
        models.mkdir()
        os.symlink(pathlib.Path(e2e.MODELS).resolve() / e2e.MODEL, models / e2e.MODEL)
        (models / "catalogue.json").write_text(json.dumps({"models": {e2e.MODEL: {
            "tier": "fast", "defaults": {"width": 80, "height": 64, "steps": 3, "sampler": "euler",
                                         "schedule": "karras", "negative_prompt": "blur"}}}}))
        self.write_jobs([{"id": "a", "model": e2e.MODEL, "prompt": "x"},
                         {"id": "b", "model": e2e.MODEL, "prompt": "x", "sampler": "ddim"},
                         {"id": "c", "model": e2e.MODEL, "prompt": "x", "sampler": "euler"}])
        self.run_jobs("--models", models)
        request = self.manifests()["a"]["request"]
        self.assertEqual((request["width"], request["steps"], request["tier"]), (80, 3, "fast"))
        self.assertEqual(request["negative_prompt"], "blur")
        schedules = {name: manifest["request"].get("schedule") for name, manifest in self.manifests().items()}
        self.assertEqual(schedules, {"a": "karras", "b": None, "c": "karras"})

    def test_standard_input(self):
        path = self.write_jobs([e2e.job(id="a")])
        with open(path, "rb") as file:
            self.run_jobs(jobs="-", stdin=file)
        self.audit(["a"])


class Ends(e2e.Case):
    def stamps(self):
        """What is visible, and how it would show that it was drawn again."""
        found = {}
        for path in (self.out / "results").glob("*/manifest.json"):
            for file in path.parent.iterdir():
                if not file.name.startswith(".tmp-"):
                    status = file.stat()
                    found[str(file)] = (status.st_ino, status.st_mtime_ns)
        return found

    def test_kill_at_any_moment(self):
        count = 150 // e2e.CAREFUL
        ids = [f"job-{i:03}" for i in range(count)]
        self.write_jobs([e2e.job(id=name, seed=i, images=1 + i % 2, steps=2 + i % 3,
                                 height=64 + 8 * (i % 2)) for i, name in enumerate(ids)])
        chance = random.Random(int(os.environ.get("SEED", "1")))
        kills, visible, runs = 0, {}, 0
        out, self.out = self.out, self.dir / "undisturbed"
        begin = time.monotonic()
        self.run_jobs("--batch-max", "4")
        whole_s, self.out = time.monotonic() - begin, out
        while kills < KILLS:
            runs += 1
            self.assertLess(runs, 20 * KILLS, "runs end before they are killed")
            process = subprocess.Popen(self.command("--batch-max", "4"), stdout=subprocess.DEVNULL,
                                       stderr=subprocess.DEVNULL)
            try:
                process.wait(chance.uniform(0.02, 0.4) * whole_s)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
                kills += 1
            if not (self.out / "results").exists():
                continue
            self.audit_names()
            now = self.stamps()
            for file, stamp in visible.items():
                self.assertEqual(now.get(file), stamp, f"{file} was touched again")
            visible = now
            if len(self.manifests()) == count:  # begin anew, so that kills hit work
                self.audit_after(ids, visible)
                visible = {}
                self.out = self.dir / f"out-{kills}"
        self.audit_after(ids, visible)
        print(f"{kills} kills in {runs} runs", file=sys.stderr)

    def audit_after(self, ids, visible):
        done = len(self.manifests())
        end = json.loads(self.run_jobs("--json").stdout.splitlines()[-1])
        self.assertEqual(end["skipped"], done)
        self.assertEqual(end["done"], len(ids) - done)
        self.audit(ids)
        now = self.stamps()
        for file, stamp in visible.items():
            self.assertEqual(now.get(file), stamp)
        page = (self.out / "index.html").read_text(encoding="utf-8")
        self.assertEqual(page.count("<article"), len(ids))

    def test_interrupt_and_resume(self):
        ids = [f"j{i}" for i in range(400 // e2e.CAREFUL)]
        self.write_jobs([e2e.job(id=name, steps=8) for name in ids])
        process = subprocess.Popen(self.command(), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                   text=True)
        while not (self.out / "results").exists() or len(self.manifests()) < 3:
            time.sleep(0.02)
        begun = time.monotonic()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        self.assertLess(time.monotonic() - begun, 10 * e2e.CAREFUL)
        self.assertEqual(process.returncode, 130, out + err)
        self.assertIn("run the same command again to resume", err)
        self.assertTrue((self.out / "index.html").exists())
        done = set(self.manifests())
        self.assertTrue(0 < len(done) < len(ids))
        self.audit(done)
        self.run_jobs()
        self.audit(ids)

    def test_a_second_interrupt_quits_at_once(self):
        self.write_jobs([e2e.job(id="slow", width=1024, height=1024, steps=50)])
        process = subprocess.Popen(self.command(), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                   text=True)
        while not (self.out / "results" / "slow").exists():
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20 * e2e.CAREFUL)
        self.assertEqual(process.returncode, 130)

    def test_two_runs_in_one_directory(self):
        self.write_jobs([e2e.job(id=f"j{i}", steps=8) for i in range(400)])
        first = subprocess.Popen(self.command(), stdout=subprocess.DEVNULL,
                                 stderr=subprocess.DEVNULL)
        while not (self.out / "results").exists() or len(self.manifests()) < 1:
            time.sleep(0.02)
        result = self.run_jobs(expect=5)
        self.assertIn("in use by another run", result.stderr)
        first.send_signal(signal.SIGINT)
        first.wait(60)

    def test_a_full_disk(self):
        """A limit on file size stands for the disk's; the journal is small enough to go on."""
        ids = [f"j{i}" for i in range(6)]
        self.write_jobs([e2e.job(id=name, width=256, height=256) for name in ids])

        def limit():
            resource.setrlimit(resource.RLIMIT_FSIZE, (20000, resource.RLIM_INFINITY))

        result = self.run_jobs(expect=5, preexec_fn=limit)
        self.assertIn("free some space and run again", result.stderr)
        self.audit([])
        self.run_jobs()
        self.audit(ids)

    @unittest.skipUnless(os.geteuid() == 0, "mounting needs privilege")
    def test_a_disk_that_fills_up(self):
        self.out.mkdir()
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1500k", "tmpfs", str(self.out)],
                          stderr=subprocess.DEVNULL).returncode != 0:
            self.skipTest("cannot mount here")
        self.addCleanup(subprocess.run, ["umount", str(self.out)])
        ids = [f"j{i}" for i in range(100)]
        self.write_jobs([e2e.job(id=name, seed=i, width=128, height=128)
                         for i, name in enumerate(ids)])
        result = self.run_jobs(expect=5)
        self.assertIn("No space left on device", result.stderr)
        done = set(self.manifests())
        self.assertTrue(0 < len(done) < len(ids))
        self.audit_names()
        subprocess.run(["mount", "-o", "remount,size=64m", str(self.out)], check=True)
        self.run_jobs()
        self.audit(ids)


class Many(e2e.Case):
    def measure(self, command):
        """Peak memory of one process, in MB."""
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        out = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        process.stderr.close()
        process.stdout.close()
        return process.returncode, usage.ru_maxrss / 1024, out.decode()

    def test_bounded_memory(self):
        few, many = 2000, 200000
        peaks = {}
        for count in (few, many):
            path = self.dir / f"{count}.jsonl"
            with open(path, "w", encoding="utf-8") as file:
                for i in range(count):
                    file.write(json.dumps(e2e.job(seed=i, prompt=f"picture {i} " + "long " * 40)))
                    file.write("\n")
            status, peaks[count], out = self.measure(self.command("--dry-run", "--json", jobs=path))
            self.assertEqual(status, 0)
            end = json.loads(out.splitlines()[-1])
            self.assertEqual((end["jobs"], end["rejected"]), (count, 0))
            self.assertGreater(end["seconds"], 0)
        print(f"peak memory: {peaks[few]:.0f} MB for {few} lines, {peaks[many]:.0f} MB for {many}",
              file=sys.stderr)
        if e2e.CAREFUL == 1:
            self.assertLess(peaks[many] - peaks[few], 30)

    def test_a_long_run_reads_ahead_only_a_window(self):
        path = self.dir / "jobs.jsonl"
        with open(path, "w", encoding="utf-8") as file:
            for i in range(100000):
                file.write(json.dumps(e2e.job(seed=i, steps=8, prompt=f"picture {i} " + "x" * 400)))
                file.write("\n")
        process = subprocess.Popen(self.command(), stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL)
        while not (self.out / "results").exists() or len(self.manifests()) < 5:
            time.sleep(0.05)
        with open(f"/proc/{process.pid}/fdinfo/" + jobs_fd(process.pid, path), encoding="ascii") as file:
            read = int(file.readline().split()[1])
        status = pathlib.Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
        peak = int(status.split("VmHWM:")[1].split()[0]) / 1024
        process.send_signal(signal.SIGINT)
        process.wait(60)
        self.assertLess(read, 5000 * 560 + (1 << 20))
        print(f"peak memory of a run with a full window: {peak:.0f} MB", file=sys.stderr)
        if e2e.CAREFUL == 1:
            self.assertLess(peak, 300)


def jobs_fd(pid, path):
    for fd in os.listdir(f"/proc/{pid}/fd"):
        try:
            if os.readlink(f"/proc/{pid}/fd/{fd}") == str(path):
                return fd
        except OSError:
            pass
    raise AssertionError("the jobs file is not open")


class Commands(e2e.Case):
    def call(self, *words, expect=0):
        result = subprocess.run([e2e.PROGRAM, *map(str, words)], capture_output=True, text=True,
                                timeout=300)
        self.assertEqual(result.returncode, expect, result.stdout + result.stderr)
        return result

    def test_generate(self):
        for name, start in (("a.png", b"\x89PNG"), ("a.jpg", b"\xff\xd8"), ("a.webp", b"RIFF")):
            path = self.dir / name
            self.call("generate", "--models", e2e.MODELS, "--model", e2e.MODEL, "--prompt", "a cat",
                      "--width", 64, "--height", 72, "--steps", 2, "--out", path)
            self.assertTrue(path.read_bytes().startswith(start))

    def test_generate_says_what_is_wrong(self):
        result = self.call("generate", "--models", e2e.MODELS, "--model", e2e.MODEL + "x",
                           "--prompt", "p", "--width", "65", "--steps", "many", expect=5)
        for part in ("multiple of 8", "steps", "did you mean"):
            self.assertIn(part, result.stderr)
        self.call("generate", "--model", "m", expect=2)
        result = self.call("generate", "--models", e2e.MODELS, "--model", e2e.MODEL, "--prompt", "a cat",
                           "--out", self.dir / "cat.gif", expect=2)
        self.assertIn("must end in .png, .jpg or .webp", result.stderr)
        result = self.call("generate", "--models", e2e.MODELS, "--model", e2e.MODEL, "--prompt", "a cat",
                           "--out", self.dir / "none" / "cat.png", expect=2)
        self.assertIn("--out: there is no directory", result.stderr)
        result = self.call("generate", "--models", e2e.MODELS, "--model", e2e.MODEL, "--prompt", "a cat",
                           "--init-image", self.dir / "none.png", expect=5)
        self.assertIn("init_image: ", result.stderr)

    def test_generate_with_what_stands_beside_a_model(self):
        jobs = pathlib.Path(e2e.ROOT) / "tests" / "golden" / "jobs"
        common = ("generate", "--models", e2e.MODELS, "--model", "sdxl-small", "--prompt", "a cat", "--steps", "2",
                  "--width", "64", "--height", "64", "--seed", "5")
        variants = {
            "plain": (),
            "lora": ("--lora", "sdxl-kohya:0.5,sdxl-peft"),
            "net": ("--controlnet", f"sdxl-canny={jobs / 'hint-101x53.png'}:0.7"),
            "both": ("--lora", "sdxl-peft", "--controlnet",
                     f"sdxl-canny={jobs / 'hint-101x53.png'}:0.7,sdxl-sketch={jobs / 'init-72x64.png'}"),
        }
        for name, more in variants.items():
            self.call(*common, *more, "--out", self.dir / f"{name}.webp")
        self.assertEqual(len({(self.dir / f"{name}.webp").read_bytes() for name in variants}), 4)
        result = self.call(*common, "--lora", "sdxl-koyha", "--controlnet", "sdxl-canny", expect=5)
        self.assertIn('did you mean "sdxl-kohya"', result.stderr)
        self.assertIn("controlnets[0].image: is required", result.stderr)
        result = self.call(*common, "--controlnet", "sdxl-canny=none.png", expect=5)
        self.assertIn("none.png", result.stderr)

    def test_model_inspect(self):
        path = pathlib.Path(e2e.MODELS) / e2e.MODEL
        self.assertIn("sd1", self.call("model", "inspect", path).stdout)
        json.loads(self.call("model", "inspect", path, "--json").stdout)
        self.call("model", "inspect", "/no/such", expect=5)
        self.assertIn("name the model's folder",
                      self.call("model", "inspect", path / "model_index.json", expect=5).stderr)
        beside = {"controlnets/sd1-canny": "ControlNet", "controlnets/sdxl-union": "ControlNet-Union",
                  "controlnets/sd1-pose.safetensors": "ControlNet",
                  "controlnets/sdxl-sketch": "T2I-Adapter", "loras/sd1-kohya.safetensors": "LoRA",
                  "loras/sdxl-peft.safetensors": "LoRA", "loras/sd1-first.safetensors": "LoRA",
                  "embeddings/xl-mood.safetensors": "textual inversion",
                  "embeddings/toy.safetensors": "textual inversion"}
        for name, kind in beside.items():
            path = e2e.ROOT / "tests" / "golden" / "models" / name
            self.assertIn(kind, self.call("model", "inspect", path).stdout)
            self.assertEqual(json.loads(self.call("model", "inspect", path, "--json").stdout)["kind"], kind)

    def test_own_schedulers(self):
        """A tree's scheduler file of a few-step class is its default; one of another kind is refused."""
        source = pathlib.Path(__file__).resolve().parents[1] / "golden" / "models" / "sd1-small"
        models = self.dir / "models"
        for name, scheduler in (("lcm", "LCMScheduler"), ("tcd", "TCDScheduler"),
                                ("edm", "EDMEulerScheduler")):
            (models / name / "scheduler").mkdir(parents=True)
            for part in source.iterdir():
                if part.name != "scheduler":
                    os.symlink(part, models / name / part.name)
            (models / name / "scheduler" / "scheduler_config.json").write_text(
                json.dumps({"_class_name": scheduler}))
            out = self.dir / f"{name}.png"
            result = self.call("generate", "--models", models, "--model", name, "--prompt", "p",
                               "--steps", "2", "--width", "64", "--height", "64", "--out", out,
                               expect=5 if name == "edm" else 0)
            self.assertIn("EDMEulerScheduler is of a kind of model that is not supported"
                          if name == "edm" else f"2 steps of {name}",
                          result.stderr + result.stdout)
        self.assertRegex(self.call("model", "inspect", models / "edm").stdout,
                         "refused .*the scheduler EDMEulerScheduler")

    def test_documents_are_current(self):
        if "submit" not in self.call("help").stdout:
            self.skipTest("this build has no fleet, whose options the page has too")
        self.assertEqual(self.call("help", "--markdown").stdout,
                         (e2e.ROOT / "docs" / "configuration.md").read_text(encoding="utf-8"),
                         "run: atelier help --markdown > docs/configuration.md")
        self.assertEqual(self.call("schema", "job").stdout,
                         (e2e.ROOT / "schema" / "job.schema.json").read_text(encoding="utf-8"))

    def test_help_and_version(self):
        self.assertIn("atelier run", self.call("run", "--help").stdout)
        self.assertIn("atelier 0", self.call("version").stdout)
        self.assertIn('did you mean "run"', self.call("rum", expect=2).stderr)

    def test_dry_run_says_what_is_wrong(self):
        self.write_jobs([e2e.job(width=100), e2e.job(id="a")])
        result = self.run_jobs("--dry-run", expect=3)
        self.assertIn('line 1: width "100": must be a multiple of 8', result.stderr)
        self.assertIn("1 job, 1 picture of 1 model in 2 lines", result.stdout)
        self.write_jobs([e2e.job(id="a"), "{", *[e2e.job(id=f"b{i}", width=100) for i in range(30)]])
        self.assertIn("--json says all of them", self.run_jobs("--dry-run", expect=3).stderr)
        events = [json.loads(line) for line in self.run_jobs("--dry-run", "--json", expect=3).stdout.splitlines()]
        rejected = [event for event in events if event["event"] == "rejected"]
        self.assertEqual([event["line"] for event in rejected], list(range(2, 33)))
        self.assertEqual((rejected[1]["id"], rejected[1]["problems"][0]["field"]), ("b0", "width"))
        self.assertFalse(self.out.exists())

    def test_a_dry_run_refuses_what_a_run_would(self):
        (self.dir / "in.png").write_bytes(png(64, 64))
        (self.dir / "wide.png").write_bytes(png(128, 64))
        (self.dir / "cut.png").write_bytes(png(64, 64)[:-20])
        unfit = {
            "absent": {"init_image": "none.png"},
            "cut": {"init_image": "cut.png"},
            "mask": {"init_image": "in.png", "mask": "wide.png"},
            "size": {"init_image": "wide.png"},
            "hint": {"model": "sd1-plain", "controlnets": [{"name": "sd1-canny", "image": "cut.png"}]},
            "family": {"controlnets": [{"name": "sdxl-canny", "image": "in.png"}]},
            "lora": {"loras": [{"name": "sdxl-peft"}]},
            "word": {"embeddings": ["xl-mood"]},
            "strength": {"init_image": "in.png", "strength": 0, "sampler": "euler"},
            "steps": {"sampler": "lcm", "steps": 60},
            "schedule": {"model": "sd1-lcm", "schedule": "karras"},
            "clip_skip": {"clip_skip": 12},
            "told": {"target_size": [64, 64]},
            "score": {"model": "sdxl-small", "aesthetic_score": 6},
            "instructed": {"model": "sd1-pix2pix"},
            "refiner": {"refiner": {"model": "sdxl-refiner"}},
            "parts": {"model": "sd1-lcm", "dialect": "a1111", "prompt": "a AND b"},
            "late": {"deadline": "2026-01-01T00:00:00Z"},
        }
        good = {"plain": {}, "picture": {"init_image": "in.png"}, "guided": {
            "model": "sd1-plain", "controlnets": [{"name": "sd1-canny", "image": "wide.png"}]}, "adapted": {
            "loras": [{"name": "sd1-peft"}], "embeddings": ["toy"]}}
        self.write_jobs([e2e.job(id=name, **fields) for name, fields in {**unfit, **good}.items()])
        dry = self.run_jobs("--dry-run", "--json", expect=3).stdout
        dry = {event["id"]: event["problems"][0] for line in dry.splitlines()
               if (event := json.loads(line))["event"] == "rejected"}
        self.assertEqual(dry.keys(), unfit.keys())
        self.run_jobs(expect=4)
        self.assertEqual(set(self.manifests()), set(good))
        for record in self.records("failed.jsonl"):
            problem = dry.pop(record["id"])
            if record["id"] != "late":
                self.assertEqual(record["error"], ": ".join(filter(None, (problem["field"], problem["problem"]))))
        self.assertEqual(dry, {})

    def test_a_dry_run_counts_second_passes(self):
        self.write_jobs([e2e.job(images=64, steps=20), e2e.job(images=64, steps=20),
                         e2e.job(images=64, steps=20, hires={"scale": 2})])
        lines = self.run_jobs("--dry-run", "--json").stdout.splitlines()
        first, again = [event for event in map(json.loads, lines) if event["event"] == "estimate"]
        self.assertEqual((first["width"], again["width"]), (64, 128))
        # Against two of the first: 1 + 4 × 0.7 passes' work, and four times the pixels to decode.
        self.assertTrue(1.85 < again["seconds"] / first["seconds"] < 2.05, (first, again))


if __name__ == "__main__":
    unittest.main()
