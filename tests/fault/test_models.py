"""Models that workers fetch: from S3, over HTTP and from disk, into a cache with a limit.

    tests/fault/test_models.py
"""

import hashlib
import http.server
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import threading

from fleet import ROOT, Fleet, job

FOLDER = ROOT / "models" / "tiny-shapes"
SINGLE = next((ROOT / "tests" / "golden" / "models").glob("*.safetensors"))


class Files(http.server.BaseHTTPRequestHandler):
    """One file, whole or from a place on; remembers what it was asked for."""
    asked = []

    def do_GET(self):
        data, begin = SINGLE.read_bytes(), 0
        spoken = self.headers.get("Range")
        if spoken:
            begin = int(spoken.removeprefix("bytes=").split("-")[0])
        Files.asked.append((self.path, begin))
        self.send_response(206 if spoken else 200)
        self.send_header("Content-Length", str(len(data) - begin))
        self.send_header("ETag", '"one"')
        if spoken:
            self.send_header("Content-Range", f"bytes {begin}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        self.wfile.write(data[begin:])

    def log_message(self, *arguments):
        pass


def expect(condition, message):
    if not condition:
        raise AssertionError(message)


def folders(cache):
    return sorted(entry.name.rsplit("-", 1)[0] for entry in cache.iterdir() if entry.is_dir())


def catalogue(port, bucket):
    sha = hashlib.sha256(SINGLE.read_bytes()).hexdigest()
    common = {"tier": "fast", "family": "sd15"}
    return {"models": {
        "from-s3": {**common, "source": f"s3://{bucket}/models/tiny/"},
        "from-http": {**common, "source": f"http://127.0.0.1:{port}/single", "sha256": sha},
        "from-disk": {**common, "source": f"file://{FOLDER}"},
        "damaged": {**common, "source": f"http://127.0.0.1:{port}/other", "sha256": "0" * 64},
        "nowhere": {**common, "source": f"s3://{bucket}/models/none.safetensors"},
    }}


def check_full_disk(fleet, cache):
    """The model does not fit on the disk: the job is tried elsewhere, in the end given up with the
    reason; the worker goes on, and draws it when there is room again."""
    small = cache.parent / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(small)]
    if os.geteuid() != 0 or subprocess.run(mount, stderr=subprocess.DEVNULL).returncode != 0:
        return "not tried: cannot mount here"
    try:
        fleet.kill("worker1")
        fleet.commands["worker1"][fleet.commands["worker1"].index("--cache") + 1] = str(small)
        fleet.start("worker1")
        fleet.await_up()
        fleet.produce([job(id="full", model="from-s3", max_attempts=2)])
        fleet.wait(["full"])
        end = fleet.state.values("full")[-1]
        expect(end["state"] == "dead" and "No space left on device" in end["error"],
               f"ended as {end}")
        fleet.produce([job(id="beside", model="from-disk")])
        fleet.wait(["beside"])
        subprocess.run(["mount", "-o", "remount,size=64m", str(small)], check=True)
        fleet.produce([job(id="room", model="from-s3")])
        fleet.wait(["room"])
        expect(fleet.end("room") == "succeeded", "not drawn with room again")
    finally:
        fleet.kill("worker1")
        subprocess.run(["umount", str(small)], check=True)
    return "a full disk"


def main():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Files)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory() as temp:
        models, cache = pathlib.Path(temp, "models"), pathlib.Path(temp, "cache")
        models.mkdir()
        size = sum(p.stat().st_size for p in FOLDER.rglob("*") if p.is_file())
        limit = size + SINGLE.stat().st_size // 2  # either, never both
        fleet = Fleet(cell="models", coordinators=1, classes=("g8i",), models=models,
                      worker_options=("--cache", str(cache), "--cache-max", str(limit)))
        fleet.services("up")
        bucket = next(line.split("=")[1] for line in fleet.services("env").splitlines()
                      if "ATELIER_S3_BUCKET=" in line)
        (models / "catalogue.json").write_text(
            json.dumps(catalogue(server.server_address[1], bucket)))
        fleet.up()
        for path in FOLDER.rglob("*"):
            if path.is_file():
                fleet.s3.upload_file(str(path), bucket, f"models/tiny/{path.relative_to(FOLDER)}")

        try:
            fleet.produce([job(id="s3", model="from-s3")])
            fleet.wait(["s3"])
            expect(folders(cache) == ["from-s3"], f"the cache holds {folders(cache)}")
            for path in FOLDER.rglob("*.safetensors"):
                kept = next(cache.glob("from-s3-*")) / path.relative_to(FOLDER)
                expect(kept.read_bytes() == path.read_bytes(), f"{kept} is not {path}")

            fleet.produce([job(id="disk", model="from-disk")])
            fleet.wait(["disk"])
            expect(folders(cache) == ["from-s3"], "a file:// source is used where it is")

            fleet.produce([job(id="http", model="from-http")])
            fleet.wait(["http"])
            expect(folders(cache) == ["from-http"], f"over the limit, the cache holds {folders(cache)}")

            # An earlier go left half of it: the rest is asked for, from there on.
            fleet.kill("worker1")
            kept = next(cache.glob("from-http-*"))
            part = cache / f".part-{kept.name}"
            kept.rename(part)
            whole = next(part.glob("*.safetensors"))
            half = whole.stat().st_size // 2
            whole.rename(f"{whole}.part")
            os.truncate(f"{whole}.part", half)
            pathlib.Path(f"{whole}.part.tag").write_text(
                f'http://127.0.0.1:{server.server_address[1]}/single\n"one"')
            Files.asked.clear()
            fleet.start("worker1")
            fleet.await_up()
            fleet.produce([job(id="again", model="from-http")])
            fleet.wait(["again"])
            expect(("/single", half) in Files.asked, f"resumed from {half}, asked for {Files.asked}")

            fleet.produce([job(id="damaged", model="damaged", max_attempts=1),
                           job(id="nowhere", model="nowhere", max_attempts=1)])
            fleet.wait(["damaged", "nowhere"])
            for name, word in (("damaged", "SHA-256"), ("nowhere", "404")):
                end = fleet.state.values(name)[-1]
                expect(end["state"] == "dead" and word in end["error"], f"{name} ended as {end}")
            expect("damaged" not in folders(cache), "a damaged model is in the cache")
            fleet.produce([job(id="after", model="from-disk")])
            fleet.wait(["after"])
            full = check_full_disk(fleet, cache)
        finally:
            fleet.down()
    print(f"models from S3, HTTP and disk; eviction, resuming, damage: as they should be; {full}")


if __name__ == "__main__":
    sys.exit(main())
