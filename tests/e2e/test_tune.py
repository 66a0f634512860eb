"""`atelier-bench tune` as its users see it, on a card or an emulated one; exit status 77: there is none."""

import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
BENCH = os.environ.get("ATELIER_BENCH", str(ROOT / "build" / "cuda-emulated" / "atelier-bench"))
MODEL = ROOT / "tests" / "golden" / "models" / "sd1-small"
NO_DEVICE = 6
ENTRY = re.compile(r"    \{(\d+), (\d+), (1|9), (\d+), (\d+), \{(64|128), (64|128|160|256), [1-8].*\}\},")


class Tune(unittest.TestCase):
    def setUp(self):
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="atelier-e2e-"))
        self.addCleanup(shutil.rmtree, self.dir, ignore_errors=True)
        self.out = self.dir / "lines"

    def begin(self, *words):
        return subprocess.Popen([BENCH, "tune", "--model", str(MODEL), "--width", "64", "--height", "64", *words],
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def begin_and_see(self, number):
        """A run that has printed so many results."""
        process = self.begin("--out", str(self.out))
        for line in process.stderr:
            if line.startswith(f"{number:3}/"):
                break
        return process

    def end(self, process, status):
        printed, said = process.communicate(timeout=120)
        self.assertEqual(process.returncode, status, said)
        return printed, said

    def entries(self, text):
        for line in text.splitlines():
            self.assertRegex(line, ENTRY)
        keys = [tuple(int(n) for n in ENTRY.match(line).groups()[:5]) for line in text.splitlines()]
        self.assertEqual(keys, sorted(set(keys)))
        return len(keys)

    def test_interrupted_it_leaves_what_it_has(self):
        process = self.begin_and_see(5)
        process.send_signal(signal.SIGINT)
        printed, said = self.end(process, 0)
        self.assertEqual(self.out.read_text(), printed)
        self.assertGreaterEqual(self.entries(printed), 5)
        self.assertRegex(said, r"\d of \d+ products, interrupted; .*\n$")

    def test_killed_it_leaves_what_it_has(self):
        process = self.begin_and_see(5)
        process.kill()
        self.end(process, -signal.SIGKILL)
        self.assertGreaterEqual(self.entries(self.out.read_text()), 4)

    def test_nowhere_to_write(self):
        _, said = self.end(self.begin("--out", str(self.dir / "none" / "lines")), 5)
        self.assertIn(f"cannot create a file in {self.dir}/none", said)

    def test_nothing_to_tune(self):
        _, said = self.end(self.begin("--precision", "f32"), 5)
        self.assertIn("nothing to tune", said)


if __name__ == "__main__":
    if subprocess.run([BENCH, "tune", "--model", "/none"], capture_output=True, text=True).returncode == NO_DEVICE:
        print("SKIP: no card")
        sys.exit(77)
    unittest.main()
