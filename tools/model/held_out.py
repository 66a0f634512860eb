"""Writes the held-out prompts as jobs files, or draws true pictures to test the checker with.

    python tools/model/held_out.py jobs
        examples/held-out-200.jsonl and tests/golden/held-out-40.jsonl (its first 40)
    python tools/model/held_out.py truth DIR [--count N] [--shuffle]
        DIR/jobs.jsonl and DIR/results: N scenes as draw.py draws them, no model involved;
        with --shuffle every prompt gets the picture of another scene
"""

import argparse
import hashlib
import io
import json
import os
import random

import draw

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def scenes(count, seed, wanted=lambda scene: True):
    rng, found = random.Random(seed), []
    while len(found) < count:
        scene = draw.random_scene(rng)
        if wanted(scene):
            found.append((scene, draw.prompt(scene, rng)))
    return found


def write(path, jobs):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(job) + "\n" for job in jobs)


def write_jobs():
    jobs = [{"id": f"h{i:03d}", "model": "tiny-shapes", "prompt": prompt, "seed": 1000 + i}
            for i, (_, prompt) in enumerate(scenes(200, "held out", draw.held_out))]
    write(os.path.join(ROOT, "examples", "held-out-200.jsonl"), jobs)
    write(os.path.join(ROOT, "tests", "golden", "held-out-40.jsonl"), jobs[:40])


def write_truth(folder, count, shuffle):
    found, rng = scenes(count, "truth"), random.Random("jitter")
    order = list(range(count))
    if shuffle:
        order = order[1:] + order[:1]
    jobs = []
    for i, (_, prompt) in enumerate(found):
        out = io.BytesIO()
        draw.picture(found[order[i]][0], rng).save(out, "PNG")
        jobs.append({"id": f"t{i:05d}", "model": "tiny-shapes", "prompt": prompt})
        where = os.path.join(folder, "results", jobs[-1]["id"])
        os.makedirs(where, exist_ok=True)
        name = f"0-{hashlib.sha256(out.getvalue()).hexdigest()}.png"
        with open(os.path.join(where, name), "wb") as file:
            file.write(out.getvalue())
    write(os.path.join(folder, "jobs.jsonl"), jobs)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=("jobs", "truth"))
    parser.add_argument("folder", nargs="?")
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--shuffle", action="store_true")
    args = parser.parse_args()
    if args.what == "jobs":
        write_jobs()
    else:
        write_truth(args.folder, args.count, args.shuffle)


if __name__ == "__main__":
    main()
