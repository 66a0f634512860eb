"""Every kind of bad input gets a message that names the place and the remedy; the rest is drawn."""

import json
import os
import pathlib
import subprocess
import unittest

import e2e


class Lines(e2e.Case):
    """One bad line between two good ones."""

    def check(self, line, field, *parts):
        self.write_jobs([e2e.job(id="good-1"), line, e2e.job(id="good-2")])
        self.run_jobs(expect=3)
        self.audit(["good-1", "good-2"])
        records = self.records("rejected.jsonl")
        self.assertEqual([record["line"] for record in records], [2])
        problems = [p for p in records[0]["problems"] if p["field"] == field]
        self.assertTrue(problems, records)
        for part in parts:
            self.assertTrue(any(part in p["problem"] for p in problems), (part, problems))
        return records[0]

    def test_broken_json(self):
        self.check('{"model": "m", "prompt": ', "", "byte 25")

    def test_no_object(self):
        self.check("[1, 2]", "", "must be a JSON object")

    def test_wrong_type(self):
        self.check(e2e.job(steps="many"), "steps", "must be a number, not a string")

    def test_unknown_field(self):
        self.check(e2e.job(promt="x"), "promt", 'did you mean "prompt"?')

    def test_out_of_range(self):
        self.check(e2e.job(width=100), "width", "multiple of 8 from 64 to 2048")

    def test_not_utf8(self):
        self.check(b'{"model": "m", "prompt": "\xff"}', "", "not UTF-8")

    def test_a_long_line(self):
        record = self.check(e2e.job(prompt="x" * 300 * 1024), "", "at most 262144 are allowed")
        self.assertLessEqual(len(record["text"]), 200)

    def test_a_line_of_megabytes(self):
        self.check(b"[" * (5 << 20), "", "at most 262144 are allowed")

    def test_a_misspelt_model(self):
        self.check(e2e.job(model=e2e.MODEL.replace("-", "_")), "model",
                   f'did you mean "{e2e.MODEL}"', "no such model")

    def test_a_model_nothing_like_any(self):
        self.check(e2e.job(model="qqqqqqqqqqqqqqqqqqq"), "model", "there are: ", e2e.MODEL)

    def test_a_second_pass_that_cannot_be(self):
        self.check(e2e.job(width=1024, height=512, hires={"scale": 2.5}), "hires.scale", "makes a picture of 2560×1280")
        self.check(e2e.job(hires={"width": 4096, "height": 512}), "hires.width", "multiple of 8 from 64 to 2048")
        self.check(e2e.job(hires={"scale": 2, "upscaler": "lanczos"}), "hires.upscaler", "latent-bicubic")
        self.check(e2e.job(hires={"strength": 0.5}), "hires", "needs either scale or both width and height")

    def test_what_is_not_supported_yet(self):
        line = e2e.job(embeddings=["e"], refiner={"model": "r"}, output={"prefix": "a"},
                       confidential=True, callback="https://example.org/x", max_price=1)
        record = self.check(line, "output.prefix", "not supported by this version")
        fields = {problem["field"] for problem in record["problems"]}
        self.assertEqual(fields, {"embeddings[0]", "refiner.model", "output.prefix", "confidential", "callback",
                                  "max_price"})

    def test_adapters_that_are_not_there(self):
        self.check(e2e.job(embeddings=["toi"]), "embeddings[0]", 'did you mean "toy"')
        self.check(e2e.job(loras=[{"name": "sd1-peft"}, {"name": "sd1-koyha"}]), "loras[1].name",
                   "there is no such file in", 'did you mean "sd1-kohya"')
        self.check(e2e.job(loras=[{"name": "../sd1-peft"}]), "loras[0].name",
                   "must be a file's name")

    def test_adapters_without_a_name(self):
        self.check(e2e.job(loras=["sd1-peft"]), "loras[0]", "must be an object, not a string")
        self.check(e2e.job(loras=[{"scale": 1}]), "loras[0].name", "is required")
        self.check(e2e.job(loras=[{"name": 1}]), "loras[0].name", "must be a string, not a number")
        self.check(e2e.job(controlnets=["sd1-canny"]), "controlnets[0]", "must be an object, not a string")
        self.check(e2e.job(controlnets=[{"image": "x.png"}]), "controlnets[0].name", "is required")
        self.check(e2e.job(embeddings=[5]), "embeddings[0]", "must be a string, not a number")

    def test_pictures_that_cannot_guide(self):
        def guided(**more):
            return e2e.job(controlnets=[{"name": "sd1-canny", "image": "x.png", **more}])

        self.check(guided(name="sd1-cany"), "controlnets[0].name", "there is no such file in", 'did you mean "sd1-canny"')
        self.check(e2e.job(controlnets=[{"name": "sd1-canny"}]), "controlnets[0].image", "is required")
        self.check(guided(image="s3://a/b"), "controlnets[0].image", "reads only local files")
        self.check(guided(preprocess="cany"), "controlnets[0].preprocess", 'did you mean "canny"')
        self.check(guided(low_threshold=5), "controlnets[0].low_threshold", 'need "preprocess"')
        self.check(guided(start=0.5, end=0.4), "controlnets[0].start", "is after its end")

    def test_a_schedule_that_the_sampler_lacks(self):
        self.check(e2e.job(sampler="ddim", schedule="karras"), "schedule",
                   "the sampler ddim has none such: it has normal, sgm_uniform")

    def test_the_same_id_with_other_content(self):
        self.check(e2e.job(id="good-1", steps=3), "id", "an earlier line has this id")

    def test_all_problems_of_a_line_at_once(self):
        record = self.check({"promt": "x", "width": 7, "seed": -1, "model": "nosuch"}, "promt")
        fields = {problem["field"] for problem in record["problems"]}
        self.assertEqual(fields, {"promt", "width", "seed", "model", "prompt"})


class Files(e2e.Case):
    def test_the_same_id_with_the_same_content_counts_once(self):
        self.write_jobs([e2e.job(id="a"), e2e.job(id="a"), e2e.job(id="a", images=1)])
        result = self.run_jobs("--json")
        end = json.loads(result.stdout.splitlines()[-1])
        self.assertEqual((end["done"], end["repeated"]), (1, 2))
        self.audit(["a"])

    def test_an_id_of_an_earlier_run_with_other_content(self):
        self.write_jobs([e2e.job(id="a")])
        self.run_jobs()
        self.write_jobs([e2e.job(id="a", steps=3), e2e.job(id="b")])
        self.run_jobs(expect=3)
        problem = self.records("rejected.jsonl")[0]["problems"][0]
        self.assertIn("another request's pictures", problem["problem"])
        self.audit(["a", "b"])
        (self.out / "journal.jsonl").unlink()  # the manifest alone says the same
        self.run_jobs(expect=3)
        self.assertEqual(len(self.records("rejected.jsonl")), 1)

    def test_blank_lines_a_byte_order_mark_and_no_last_newline(self):
        path = self.write_jobs([])
        text = "\ufeff" + json.dumps(e2e.job(id="a")) + "\r\n\n  \n" + json.dumps(e2e.job(id="b"))
        path.write_bytes(text.encode())
        self.run_jobs()
        self.audit(["a", "b"])

    def test_a_jobs_file_that_is_not_there(self):
        result = self.run_jobs(expect=5)
        self.assertIn("jobs.jsonl: No such file", result.stderr)

    def test_an_out_directory_that_is_a_file(self):
        self.write_jobs([e2e.job()])
        self.out.write_text("x")
        result = self.run_jobs(expect=5)
        self.assertIn("is a file", result.stderr)

    def test_an_out_directory_that_cannot_be_written(self):
        self.write_jobs([e2e.job()])
        self.out = pathlib.Path("/proc/atelier-out")
        result = self.run_jobs(expect=5)
        self.assertIn("/proc/atelier-out", result.stderr)

    def test_an_out_directory_that_is_read_only(self):
        self.write_jobs([e2e.job()])
        self.out.mkdir(mode=0o500)
        if os.geteuid() == 0:  # whom only a read-only file system stops
            mount = ["mount", "-t", "tmpfs", "-o", "ro,size=64k", "tmpfs", str(self.out)]
            if subprocess.run(mount, stderr=subprocess.DEVNULL).returncode != 0:
                self.skipTest("cannot mount here")
            self.addCleanup(subprocess.run, ["umount", str(self.out)])
        result = self.run_jobs(expect=5)
        self.assertIn("give write permission", result.stderr)

    def test_a_models_directory_that_is_not_there(self):
        self.write_jobs([e2e.job()])
        result = self.run_jobs("--models", "/no/such/models", expect=5)
        self.assertIn("/no/such/models", result.stderr)

    def test_a_models_directory_without_models(self):
        self.write_jobs([e2e.job()])
        result = self.run_jobs("--models", self.dir, expect=5)
        self.assertIn("holds no model", result.stderr)

    def test_a_model_that_is_damaged(self):
        models = self.dir / "models"
        models.mkdir()
        (models / "torn.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{}")
        os.symlink(pathlib.Path(e2e.MODELS).resolve() / e2e.MODEL, models / e2e.MODEL)
        self.write_jobs([e2e.job(id="a", model="torn"), e2e.job(id="b"),
                         e2e.job(id="c", model="torn")])
        self.run_jobs("--models", models, expect=4)
        self.audit(["b"])
        failed = self.records("failed.jsonl")
        self.assertEqual({record["id"] for record in failed}, {"a", "c"})
        for record in failed:
            self.assertIn("torn.safetensors", record["error"])

    def test_a_wrong_catalogue(self):
        models = self.dir / "models"
        models.mkdir()
        os.symlink(pathlib.Path(e2e.MODELS).resolve() / e2e.MODEL, models / e2e.MODEL)
        self.write_jobs([e2e.job()])
        for text, part in (
            ('{"models": {"%s": {"defaults": {"steps": 0}}}}', "from 1 to 500"),
            ('{"models": {"%sx": {}}}', "did you mean"),
            ('{"models": {"%s": {"speed": 1}}}', "is no key"),
            ("{", "catalogue.json"),
        ):
            (models / "catalogue.json").write_text(text.replace("%s", e2e.MODEL))
            result = self.run_jobs("--models", models, expect=5)
            self.assertIn(part, result.stderr)

    def test_init_images(self):
        (self.dir / "damaged.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0")
        (self.dir / "text.png").write_text("no picture")
        self.write_jobs([
            e2e.job(id="none", init_image="none.png", width=None, height=None),
            e2e.job(id="damaged", init_image="damaged.png", width=None, height=None),
            e2e.job(id="text", init_image="text.png", width=None, height=None),
            e2e.job(id="data", init_image="data:image/png;base64,AAAA", width=None, height=None),
            e2e.job(id="good"),
        ])
        self.run_jobs(expect=4)
        self.audit(["good"])
        errors = {record["id"]: record["error"] for record in self.records("failed.jsonl")}
        self.assertIn("none.png", errors["none"])
        self.assertIn("damaged.png: PNG", errors["damaged"])
        self.assertIn("neither PNG, JPEG nor WebP", errors["text"])
        self.assertIn("data URI", errors["data"])

    def test_a_size_that_does_not_fit_memory(self):
        self.write_jobs([e2e.job(id="small"), e2e.job(id="large", width=2048, height=2048)])
        result = self.run_jobs("--memory", "60M", expect=4)
        self.audit(["small"])
        self.assertIn("2048×2048 does not fit", self.records("failed.jsonl")[0]["error"])
        self.assertIn("2048×2048 does not fit", result.stderr)

    def test_expired_and_later(self):
        self.write_jobs([e2e.job(id="late", deadline="2020-01-01T00:00:00Z"), e2e.job(id="good")])
        self.run_jobs(expect=4)
        self.audit(["good"])
        self.assertIn("deadline", self.records("failed.jsonl")[0]["error"])

    def test_wrong_words(self):
        self.write_jobs([e2e.job()])
        result = self.run_jobs("--batch-mx", "3", expect=2)
        self.assertIn('did you mean "batch-max"?', result.stderr)


if __name__ == "__main__":
    unittest.main()
