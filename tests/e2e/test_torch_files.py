"""Files of torch (.ckpt, .bin, .pt, .pth) draw the same bytes as the .safetensors they were made of."""

import os
import pathlib
import shutil
import struct
import unittest

import e2e
import torch_zip

GOLDEN = pathlib.Path(e2e.MODELS)


def pixels(path):
    """The picture's chunks of a PNG: the request that is embedded beside them names its files."""
    data, at, found = path.read_bytes(), 8, []
    while at < len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind in (b"IHDR", b"IDAT"):
            found.append(data[at + 8:at + 8 + length])
        at += 12 + length
    return b"".join(found)


class TorchFiles(e2e.Case):
    def setUp(self):
        super().setUp()
        self.models = self.dir / "models"
        for folder in ("loras", "embeddings", "controlnets"):
            (self.models / folder).mkdir(parents=True)

    def draw(self, **fields):
        """The pictures of a job, drawn with one after another of what lists give."""
        count = max(len(value) for value in fields.values())
        jobs = [e2e.job(id=str(i), seed=3, **{key: value[i % len(value)] for key, value in fields.items()})
                for i in range(count)]
        self.write_jobs(jobs)
        self.run_jobs("--models", self.models)
        self.audit([job["id"] for job in jobs])
        return [pixels(next((self.out / "results" / str(i)).glob("*.png"))) for i in range(count)]

    def assert_same(self, pictures):
        self.assertEqual([i for i, picture in enumerate(pictures) if picture != pictures[0]], [])

    def convert(self, source, target, content=lambda tensors: tensors):
        torch_zip.save(content(torch_zip.read_safetensors(GOLDEN / source)), self.models / target)

    def test_checkpoint(self):
        os.symlink(GOLDEN / "sd1-single.safetensors", self.models / "one.safetensors")
        self.convert("sd1-single.safetensors", "two.ckpt", torch_zip.trained)
        self.convert("sd1-single.safetensors", "three.ckpt")
        self.assert_same(self.draw(model=["one", "two", "three"]))

    def test_safetensors_go_first(self):
        os.symlink(GOLDEN / "sd1-single.safetensors", self.models / "one.safetensors")
        (self.models / "one.ckpt").write_bytes(b"not read")
        self.draw(model=["one"])

    def test_folder(self):
        os.symlink(GOLDEN / "sd1-plain", self.models / "one")
        shutil.copytree(GOLDEN / "sd1-plain", self.models / "two")
        for path in sorted((self.models / "two").rglob("*.safetensors")):
            name = path.name.replace(".safetensors", ".bin")
            if path.parent.name.startswith("text_encoder"):
                name = "pytorch_" + name
            torch_zip.save(torch_zip.read_safetensors(path), path.with_name(name))
            path.unlink()
        self.assert_same(self.draw(model=["one", "two"]))

    def test_lora(self):
        os.symlink(GOLDEN / "sd1-small", self.models / "m")
        os.symlink(GOLDEN / "loras" / "sd1-kohya.safetensors", self.models / "loras" / "a.safetensors")
        self.convert("loras/sd1-kohya.safetensors", "loras/b.pt")
        self.assert_same(self.draw(model=["m"], loras=[[{"name": "a"}], [{"name": "b"}]]))

    def test_embedding_as_a1111_trains_it(self):
        os.symlink(GOLDEN / "sd1-small", self.models / "m")
        vector = next(iter(torch_zip.read_safetensors(GOLDEN / "embeddings" / "toy.safetensors").values()))
        shutil.copy(GOLDEN / "embeddings" / "toy.safetensors", self.models / "embeddings" / "one.safetensors")
        torch_zip.save({"string_to_token": {"*": 265}, "string_to_param": {"*": vector}, "name": "said",
                        "step": 5, "sd_checkpoint": None}, self.models / "embeddings" / "two.pt")
        torch_zip.save({"<learned>": vector}, self.models / "embeddings" / "three.bin")
        pictures = self.draw(model=["m"], prompt=["a one boat", "a two boat", "a said boat", "a three boat",
                                                 "a <learned> boat", "a boat"],
                            embeddings=[["one"], ["two"], ["two"], ["three"], ["three"], ["one"]])
        self.assert_same(pictures[:5])
        self.assertNotEqual(pictures[0], pictures[5])

    def test_what_is_none(self):
        """Each is refused with the file's name and what to do; the other job is drawn."""
        os.symlink(GOLDEN / "sd1-small", self.models / "good")
        (self.models / "old.ckpt").write_bytes(bytes.fromhex("80028a0a6cfc9c46f9206aa850192e80024d"))
        torch_zip.save([1, 2], self.models / "list.ckpt")
        self.convert("embeddings/toy.safetensors", "small.ckpt")
        whole = self.models / "whole.pth"
        self.convert("sd1-single.safetensors", "whole.pth")
        (self.models / "half.ckpt").write_bytes(whole.read_bytes()[:3000000])
        expected = {"old": "torch before 1.6", "list": "no dictionary of tensors",
                    "small": "no Stable Diffusion model", "half": "truncated"}
        self.write_jobs([e2e.job(id=name, model=name) for name in [*expected, "good"]])
        self.run_jobs("--models", self.models, expect=4)
        errors = {record["id"]: record["error"] for record in self.records("failed.jsonl")}
        self.assertEqual(set(errors), set(expected))
        for name, part in expected.items():
            self.assertIn(part, errors[name])
            self.assertIn(f"{name}.ckpt", errors[name])


if __name__ == "__main__":
    unittest.main()
