"""The fleet as its users have it: a producer enqueues 300 mixed jobs, a dashboard polls, an operator
loses one worker and drains another, and everything ends as if nothing had happened.

Exit status 77: Java, Redis or Maven is missing.
"""

import json
import random
import subprocess
import sys
import time

from fleet import BUILD, ROOT, SLOWNESS, Fleet, Watch, job, policy_route, read_policy

JOBS = 300
MODELS = {  # name: tier and family by which jobs are routed; all are the same weights
    "shapes-fast": ("fast", "sd15"),
    "shapes-standard": ("standard", "sd21"),
    "shapes-premium": ("premium", "sdxl"),
}


def make_models(folder):
    folder.mkdir()
    for name in MODELS:
        (folder / name).symlink_to(ROOT / "models" / "tiny-shapes")
    catalogue = {name: {"tier": tier, "family": family}
                 for name, (tier, family) in MODELS.items()}
    (folder / "catalogue.json").write_text(json.dumps({"models": catalogue}))
    return folder


def make_jobs(dice, lasting):
    jobs = []
    for i in range(JOBS):
        side = dice.choice([64, 64, 64, 64, 64, 96, 96, 128, 192])
        jobs.append(job(id=f"story-{i}", model=dice.choice(list(MODELS)), width=side,
                        height=dice.choice([side, 64]), steps=dice.choice([2, 2, 3, 4]),
                        prompt=f"a {dice.choice(['red', 'blue', 'green'])} circle",
                        priority=dice.choice(["interactive", "normal", "bulk"]),
                        tenant=dice.choice(["studio", "press"]), batch=f"batch-{i % 3}",
                        images=2 if i % 20 == 0 else 1))
    for i in range(0, JOBS, 50):  # some that last, to be found running
        jobs[i].update(lasting, images=1)
    return jobs


def check(condition, message):
    if not condition:
        raise AssertionError(message)


def check_routes(fleet, jobs):
    policy, overflowed = read_policy(), 0
    for each in jobs:
        tier, family = MODELS[each["model"]]
        facts = {"tier": tier, "family": family, "model": each["model"], "tenant": each["tenant"],
                 "width": each["width"], "height": each["height"]}
        route = policy_route(policy, facts)
        got = fleet.ends(each["id"])[-1]["device_class"]
        check(got in route, f"{each['id']}: drawn by {got}, its route is {route}")
        overflowed += got != route[0]
    print(f"  routing held for {len(jobs)} jobs, {overflowed} of them overflowed")


def check_alone(fleet, jobs, models):
    """The same jobs in one undisturbed process: the same bytes."""
    path, out = fleet.dir / "alone.jsonl", fleet.dir / "alone"
    path.write_text("".join(json.dumps(each) + "\n" for each in jobs))
    subprocess.run([str(BUILD / "cli" / "atelier"), "run", str(path), "--models", str(models),
                    "--out", str(out), "--threads", "1"], check=True, stdout=subprocess.DEVNULL,
                   stderr=subprocess.DEVNULL, timeout=300 * SLOWNESS)
    for each in jobs:
        alone = json.loads((out / "results" / each["id"] / "manifest.json").read_text())
        check([file["sha256"] for file in alone["files"]] ==
              [file["sha256"] for file in fleet.ends(each["id"])[-1]["files"]],
              f"{each['id']}: other bytes than undisturbed")
    print(f"  {len(jobs)} jobs drawn again alone: the same bytes")


def drain_one(fleet, long, killed):
    """Drains another worker that is in the midst of a long job; returns when it has left."""
    def running():
        for name in long:
            status = fleet.status(name)
            if status.get("status") == "running" and int(status.get("step", 0)) > 5:
                if status["worker"] != killed:
                    return status["worker"]
        return None
    worker = fleet.until(running, 60, "a long job to run")
    fleet.signal(worker, 15)
    fleet.processes[worker].wait(60)
    fleet.start(worker)
    return worker


def story(fleet, models):
    jobs = make_jobs(random.Random(7), fleet.lasting(model=next(iter(MODELS))))
    ids = [each["id"] for each in jobs]
    long = [each["id"] for each in jobs[::50]]
    watch = Watch(fleet, ids)
    watch.start()
    begin = time.monotonic()
    fleet.produce(jobs)
    killed = fleet.until(lambda: next((status["worker"] for status in map(fleet.status, long[:5])
                                       if status.get("status") == "running"), None), 60,
                         "a long job to run")
    fleet.kill(killed)
    fleet.start(killed)
    drained = drain_one(fleet, long, killed)
    fleet.wait(ids, 150)
    print(f"  {len(ids)} jobs in {time.monotonic() - begin:.1f} s; {killed} was killed, {drained} "
          f"drained; the dashboard polled {watch.polls} times")
    watch.ended = True
    watch.join()
    fleet.audit()
    check(not watch.problems, f"statuses went back: {watch.problems[:5]}")
    check(watch.polls > 20, "the dashboard hardly looked")
    disturbed = [each for each in jobs if fleet.ends(each["id"])[-1]["returns"] or
                 fleet.ends(each["id"])[-1]["crashes"]]
    check(any(fleet.ends(each["id"])[-1]["returns"] for each in disturbed), "nothing was drained")
    check_routes(fleet, jobs)
    check_alone(fleet, disturbed, models)


def main():
    fleet = Fleet(cell="story", classes=("a100", "a10", "g8i"),
                  worker_options=("--grace", "0"))
    models = fleet.models = make_models(fleet.dir / "models")
    try:
        fleet.up()
        story(fleet, models)
    except BaseException:
        fleet.keep = True
        print(f"the logs are in {fleet.dir}", file=sys.stderr)
        raise
    finally:
        ends = fleet.down()
    broken = {name: end for name, end in ends.items() if end != 0}
    check(not broken, f"programs ended badly: {broken}")


if __name__ == "__main__":
    main()
