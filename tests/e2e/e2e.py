"""What the end-to-end tests share: the program, a place to work in, and an auditor of out directories.

Needs Python's standard library only. ATELIER names the program, MODELS a models directory.
"""

import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROGRAM = os.environ.get("ATELIER", str(ROOT / "build" / "cli" / "atelier"))
MODELS = os.environ.get("MODELS", str(ROOT / "tests" / "golden" / "models"))
MODEL = os.environ.get("MODEL", "sd1-small")
os.environ.setdefault("UBSAN_OPTIONS", "halt_on_error=1")
os.environ.setdefault("TSAN_OPTIONS", "halt_on_error=1")
CAREFUL = int(os.environ.get("SLOWNESS", "1"))  # under sanitizers everything takes longer


def job(**fields):
    """A small job; fields given win, None takes a field away."""
    base = {"model": MODEL, "prompt": "a red cat", "width": 64, "height": 64, "steps": 2}
    base.update(fields)
    return {key: value for key, value in base.items() if value is not None}


class Case(unittest.TestCase):
    def setUp(self):
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="atelier-e2e-"))
        self.addCleanup(shutil.rmtree, self.dir, ignore_errors=True)
        self.out = self.dir / "out"

    def write_jobs(self, lines, name="jobs.jsonl"):
        """Writes lines: dicts as JSON, bytes and strings as they are."""
        path = self.dir / name
        with open(path, "wb") as file:
            for line in lines:
                if isinstance(line, dict):
                    line = json.dumps(line)
                file.write(line if isinstance(line, bytes) else line.encode())
                file.write(b"\n")
        return path

    def command(self, *words, jobs=None):
        command = [PROGRAM, "run", str(jobs or self.dir / "jobs.jsonl")]
        if "--models" not in words:
            command += ["--models", MODELS]
        if "--dry-run" not in words:
            command += ["--out", str(self.out)]
        return command + ["--threads", "1"] + [str(word) for word in words]

    def run_jobs(self, *words, jobs=None, expect=0, **options):
        result = subprocess.run(self.command(*words, jobs=jobs), capture_output=True, text=True,
                                timeout=600, **options)
        if expect is not None:
            self.assertEqual(result.returncode, expect, result.stdout + result.stderr)
        return result

    def records(self, name):
        path = self.out / name
        if not path.exists():
            return []
        with open(path, encoding="utf-8") as file:
            return [json.loads(line) for line in file]

    def manifests(self):
        """The manifest of every job that is done, by id."""
        found = {}
        for path in (self.out / "results").glob("*/manifest.json"):
            found[path.parent.name] = json.loads(path.read_text(encoding="utf-8"))
        return found

    def audit_names(self):
        """Whatever stands under a final name is whole: its hash is in its name."""
        for path in (self.out / "results").glob("*/*"):
            if path.name.startswith(".tmp-"):
                continue
            if path.name == "manifest.json":
                json.loads(path.read_text(encoding="utf-8"))
                continue
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            self.assertEqual(path.name.split("-")[1].split(".")[0], digest, path)

    def audit(self, ids):
        """Exactly the jobs `ids` are done, their files exist with the right hashes, nothing else is
        there."""
        manifests = self.manifests()
        self.assertEqual(set(manifests), set(ids))
        for name, manifest in manifests.items():
            folder = self.out / "results" / name
            files = {file["name"] for file in manifest["files"]}
            self.assertEqual({path.name for path in folder.iterdir()}, files | {"manifest.json"})
            self.assertEqual(len(files), manifest["request"]["images"])
        self.audit_names()
        self.assertEqual({path.name for path in (self.out / "results").iterdir()}, set(ids))
        left = [path for path in self.out.rglob(".tmp-*")]
        self.assertEqual(left, [])
