"""Every way in which a part of the fleet can fail, one function each, with real processes.

    tests/fault/test_faults.py [NAME...]                   those faults, or the default set
    tests/fault/test_faults.py --long [NAME...]            all of them, at full length
    tests/fault/test_faults.py --random SECONDS [--seed N] all at random together
    tests/fault/test_faults.py --list

After each one the whole fleet is audited (fleet.py). Exit status 77: Java, Redis or Maven is missing.
"""

import argparse
import json
import random
import shutil
import sys
import threading
import time
import traceback

from fleet import (BUILD, TERMINAL, AuditError, Fleet, Watch, job, kafka, read_policy, redis)

FAULTS = {}
OTHERS = {}  # ends of jobs that were not to succeed
LONG = False
LEASE_S = 10
counter = 0


def fault(function=None, *, long=False):
    def enter(function):
        FAULTS[function.__name__] = (function, long)
        return function
    return enter(function) if function else enter


def expect(condition, message):
    if not condition:
        raise AuditError(message)


def names(count, label):
    global counter
    counter += 1
    return [f"{label}.{counter}.{i}" for i in range(count)]


def some(fleet, count, label="job", **fields):
    return fleet.produce([job(id=name, **fields) for name in names(count, label)])


def worker_of(fleet, name):
    return fleet.await_status(name, "assigned", "running", "publishing")["worker"]


def crashes(fleet, name):
    return fleet.state.values(name)[-1]["crashes"]


# ---- workers ----

@fault(long=True)
def worker_killed_loading(fleet):
    worker = fleet.workers()[0]
    fleet.kill(worker)
    ids = some(fleet, 12, "loading")
    fleet.start(worker)
    fleet.until(lambda: "event=serving" in fleet.log(worker).rsplit("event=stopped", 1)[-1], 30,
                "the worker to serve")
    fleet.kill(worker)
    fleet.start(worker)
    fleet.wait(ids)


@fault
def worker_killed_mid_step(fleet):
    ids = some(fleet, 6, "mid-step", **fleet.lasting())
    fleet.await_step(ids[0], 5)
    worker = fleet.status(ids[0])["worker"]
    fleet.kill(worker)
    fleet.wait(ids, 120)
    expect(crashes(fleet, ids[0]) == 1 or fleet.ends(ids[0])[-1]["attempts"] > 1,
           "the killed job was not tried again")
    fleet.start(worker)


@fault
def worker_killed_mid_upload(fleet):
    """The store takes the picture and is silent: the worker dies waiting."""
    reached = threading.Event()
    ids = names(1, "mid-upload")
    fleet.proxy.add("PUT", f"results/{ids[0]}/1-", call=lambda: (reached.set(), time.sleep(4)))
    fleet.produce([job(id=ids[0], images=3)])
    expect(reached.wait(30), "no upload")
    worker = fleet.status(ids[0])["worker"]
    fleet.kill(worker)
    fleet.start(worker)
    fleet.wait(ids)


@fault
def worker_killed_before_report(fleet):
    """The store makes the manifest, the worker dies before it hears of it."""
    ids, victims = names(1, "unreported"), []

    def strike():
        victims.append(fleet.status(ids[0])["worker"])
        fleet.kill(victims[0])
    fleet.proxy.add("PUT", f"results/{ids[0]}/manifest", call=strike)
    fleet.produce([job(id=ids[0], steps=20)])
    fleet.until(lambda: "manifest.json" in fleet.objects("results/").get(ids[0], {}), 30, "manifest")
    fleet.start(victims[0])
    fleet.wait(ids)
    expect(fleet.ends(ids[0])[0]["attempts"] >= 2, "it was reported after all")


@fault
def worker_stopped_past_its_lease(fleet):
    ids = some(fleet, 3, "stopped-worker", **fleet.lasting())
    fleet.await_step(ids[0], 2)
    worker = fleet.status(ids[0])["worker"]
    fleet.pause(worker)
    fleet.wait(ids, 120)
    expect(fleet.ends(ids[0])[0]["worker"] != worker, "a stopped worker ended its job")
    fleet.resume(worker)
    fleet.until(fleet.is_up, 30, "the worker to be back")
    fleet.wait(some(fleet, 6, "after"))


@fault(long=True)
def worker_restarted_under_its_name(fleet):
    ids = some(fleet, 8, "restarted", **fleet.lasting())
    fleet.await_step(ids[0], 2)
    worker = fleet.status(ids[0])["worker"]
    fleet.kill(worker)
    fleet.start(worker)
    fleet.wait(ids, 120)


@fault
def worker_drained(fleet):
    """By SIGTERM, with no grace: what is under way goes on elsewhere from where it was."""
    ids = some(fleet, 2, "drained", **fleet.lasting())
    status = fleet.await_step(ids[0], 20)
    fleet.signal(status["worker"], 15)
    fleet.processes[status["worker"]].wait(60)
    fleet.start(status["worker"])
    fleet.wait(ids, 180)
    end = fleet.ends(ids[0])[0]
    expect(end["crashes"] == 0 and end["returns"] == 1, f"not handed back once: {end}")


@fault(long=True)
def worker_drained_by_order(fleet):
    ids = some(fleet, 2, "ordered", **fleet.lasting())
    status = fleet.await_step(ids[0], 20)
    fleet.control(action="drain", worker=status["worker"])
    fleet.processes[status["worker"]].wait(60)
    fleet.start(status["worker"])
    fleet.wait(ids, 180)
    expect(fleet.ends(ids[0])[0]["crashes"] == 0, "draining counted as a crash")


@fault(long=True)
def worker_drained_while_redis_is_away(fleet):
    ids = some(fleet, 2, "unheard", **fleet.lasting())
    status = fleet.await_step(ids[0], 20)
    fleet.services("kill", "redis")
    fleet.signal(status["worker"], 15)
    fleet.processes[status["worker"]].wait(90)
    fleet.services("start", "redis")
    fleet.start(status["worker"])
    fleet.wait(ids, 240)


@fault
def job_that_crashes_every_worker(fleet):
    bad = names(1, "poison")[0]
    OTHERS[bad] = "dead"
    fleet.produce([job(id=bad, **fleet.lasting())])
    good = some(fleet, 12, "innocent", steps=20)
    deadline = time.monotonic() + 150
    while not fleet.ends(bad):
        expect(time.monotonic() < deadline, "the job did not die")
        status = fleet.status(bad)
        if status.get("status") == "running" and fleet.runs(status["worker"]):
            fleet.kill(status["worker"])
            fleet.start(status["worker"])
        time.sleep(0.05)
    fleet.wait(good, 120)
    end = fleet.ends(bad)[0]
    expect(end["crashes"] == 3, f"dead after {end['crashes']} crashes")


# ---- the leader ----

def kill_leader(fleet):
    """Returns the seconds until another leads."""
    old, epoch = fleet.leader(), fleet.epoch()
    fleet.kill(old)
    begin = time.monotonic()
    fleet.until(lambda: fleet.epoch() > epoch, 30, "another leader")
    took = time.monotonic() - begin
    fleet.start(old)
    return took


@fault
def leader_killed(fleet):
    ids = some(fleet, 6, "takeover", **fleet.lasting())
    fleet.await_step(ids[0], 2)
    watch = Watch(fleet, ids)
    watch.start()
    took = kill_leader(fleet)
    print(f"    another leads after {took:.1f} s", flush=True)
    fleet.wait(ids, 120)
    watch.ended = True
    watch.join()
    expect(took < 10, f"took {took:.1f} s")
    expect(not watch.problems, f"statuses went back: {watch.problems[:5]}")
    for name in ids:
        expect(fleet.ends(name)[0]["crashes"] == 0, f"{name}: the leader's death cost a crash")


@fault
def leader_killed_mid_ingest(fleet):
    ids = names(1000 if LONG else 60, "ingest")
    sender = threading.Thread(target=fleet.produce,
                              args=([job(id=name, steps=1) for name in ids],))
    sender.start()
    fleet.until(lambda: any(name in fleet.state.records or fleet.state.values(name)
                            for name in ids[:50]), 30, "the first to be accepted")
    kill_leader(fleet)
    sender.join()
    fleet.wait(ids, 200)


@fault
def leader_killed_mid_dispatch(fleet):
    """Between the commit and the order, and after the order: as it falls."""
    for pause in (0.0, 0.03, 0.1) if LONG else (0.03,):
        ids = some(fleet, 8, "dispatch", steps=20)
        time.sleep(pause)
        kill_leader(fleet)
        fleet.wait(ids, 120)


@fault
def leader_stopped_past_its_session(fleet):
    ids = some(fleet, 6, "zombie", **fleet.lasting())
    fleet.await_step(ids[0], 2)
    old, epoch = fleet.leader(), fleet.epoch()
    fleet.pause(old)
    fleet.until(lambda: fleet.epoch() > epoch, 30, "another leader")
    new = fleet.leader()
    time.sleep(4)
    more = some(fleet, 6, "zombie", steps=20)
    fleet.resume(old)
    time.sleep(3)
    expect(fleet.leader() == new and fleet.epoch() == epoch + 1, "the old leader is back")
    expect(set(fleet.redis.zrange("workers", 0, -1)) >= set(fleet.workers()),
           "the old leader removed workers")
    fleet.wait(ids + more, 120)
    for name in ids + more:
        expect(fleet.ends(name)[0]["crashes"] == 0, f"{name} has a crash")
        expect(fleet.ends(name)[0]["epoch"] <= epoch + 1, f"{name} ended under another epoch")
    expect(all(fleet.ends(name)[0]["epoch"] == epoch + 1 for name in more), "of another epoch")


@fault(long=True)
def leader_leaves_in_good_order(fleet):
    ids = some(fleet, 4, "leaving", **fleet.lasting())
    fleet.await_step(ids[0], 2)
    old, epoch = fleet.leader(), fleet.epoch()
    fleet.signal(old, 15)
    begin = time.monotonic()
    fleet.until(lambda: fleet.epoch() > epoch, 30, "another leader")
    print(f"    another leads after {time.monotonic() - begin:.1f} s", flush=True)
    fleet.processes[old].wait(30)
    fleet.start(old)
    fleet.wait(ids, 120)


@fault(long=True)
def leader_leaves_while_kafka_is_away(fleet):
    ids = some(fleet, 2, "unheard", **fleet.lasting())
    fleet.await_step(ids[0], 2)
    leader = fleet.leader()
    fleet.services("pause", "kafka")
    time.sleep(6)  # by now their ends wait to be committed
    fleet.signal(leader, 15)
    begin = time.monotonic()
    fleet.processes[leader].wait(60)
    print(f"    left after {time.monotonic() - begin:.1f} s", flush=True)
    fleet.services("resume", "kafka")
    fleet.start(leader)
    fleet.wait(ids, 120)


@fault(long=True)
def all_coordinators_killed(fleet):
    ids = some(fleet, 6, "headless", **fleet.lasting())
    fleet.await_step(ids[0], 2)
    for name in fleet.names:
        if name.startswith("coordinator"):
            fleet.kill(name)
    time.sleep(15)
    fleet.mend()
    fleet.wait(ids, 120)


# ---- clocks ----

def set_clock(fleet, name, seconds):
    (fleet.dir / f"{name}.clock").write_text(f"{seconds:+d}\n")


def with_clock(fleet, name):
    """Starts it again under a wall clock that the test sets; the monotonic one stays right."""
    set_clock(fleet, name, 0)
    fleet.kill(name)
    fleet.extra[name] = {"LD_PRELOAD": str(BUILD / "tests" / "libshifted_clock.so"),
                         "SHIFTED_CLOCK": str(fleet.dir / f"{name}.clock"),
                         "ASAN_OPTIONS": "verify_asan_link_order=0"}
    fleet.start(name)


@fault
def clocks_jump(fleet):
    """The leader's by an hour there and back, while jobs run and wait for their time; a worker's by
    as much as S3 puts up with. librdkafka's timers sleep through an hour that comes again, so a
    leader may fall silent: then its standby, whose clock is another machine's, leads."""
    epoch, worker = fleet.epoch(), fleet.workers()[0]
    leader, standby = sorted(name for name in fleet.names if name.startswith("coordinator"))
    begin = {name: len(fleet.log(name)) for name in (leader, standby)}
    fleet.kill(standby)
    try:
        with_clock(fleet, leader)
        with_clock(fleet, worker)
        fleet.until(lambda: fleet.epoch() > epoch and fleet.leader() == leader, 60, "a leader")
        fleet.start(standby)
        fleet.until(fleet.is_up, 30, "the fleet")
        for jumps in ((3600, 600), (-3600, -600), (0, 0)):
            jump(fleet, leader, worker, jumps)
        for name in (leader, standby):
            elected = fleet.log(name)[begin[name]:].count("event=elected")
            expect(elected <= 3, f"{name} was elected {elected} times: leaders oust each other")
    finally:
        fleet.extra.clear()
        fleet.kill(leader)
        fleet.kill(worker)


def jump(fleet, leader, worker, seconds):
    ids = some(fleet, 4, "clock", **fleet.lasting(3))
    soon = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 6))
    if seconds[0] < 0:  # the leader is asked for a time by its right clock, which then goes back
        set_clock(fleet, leader, 0)
        time.sleep(2)
        ids += some(fleet, 1, "clock", not_before=soon)
    fleet.await_step(ids[0], 2)
    set_clock(fleet, leader, seconds[0])
    set_clock(fleet, worker, seconds[1])
    fleet.wait(ids, 90)
    for name in ids:
        expect(fleet.ends(name)[0]["crashes"] == 0, f"{name}: the clock cost a crash")


# ---- Redis ----

@fault
def redis_flushed(fleet):
    done = some(fleet, 4, "before-flush")
    fleet.wait(done)
    ids = some(fleet, 6, "flushed", **fleet.lasting())
    fleet.await_step(ids[0], 2)
    fleet.redis.flushall()
    fleet.await_step(ids[0], 5)  # it is shown again while it runs
    fleet.wait(ids, 120)
    for name in ids:
        expect(fleet.ends(name)[0]["crashes"] == 0, f"{name}: a flush cost a crash")


@fault
def redis_killed_and_empty(fleet):
    done = some(fleet, 4, "before-kill", batch="kept")
    fleet.wait(done)
    ids = some(fleet, 6, "redis-killed", **fleet.lasting())
    fleet.await_step(ids[0], 2)
    fleet.services("kill", "redis")
    shutil.rmtree(f"{fleet.services_dir}/redis/data")
    late = some(fleet, 2, "meanwhile")
    time.sleep(3)
    fleet.services("start", "redis")
    fleet.wait(ids + late, 120)
    for name in ids:
        expect(fleet.ends(name)[0]["crashes"] == 0, f"{name}: Redis' death cost a crash")


@fault(long=True)
def redis_killed_with_its_data(fleet):
    ids = some(fleet, 6, "redis-again", **fleet.lasting())
    fleet.await_step(ids[0], 2)
    fleet.services("kill", "redis")
    time.sleep(12 if LONG else 4)  # some are done meanwhile
    fleet.services("start", "redis")
    fleet.wait(ids, 120)


@fault(long=True)
def redis_silent(fleet):
    """Its connections stay, and nobody answers, for longer than a lease."""
    ids = some(fleet, 4, "silent", **fleet.lasting())
    fleet.await_step(ids[0], 2)
    fleet.services("pause", "redis")
    time.sleep(LEASE_S + 5)
    fleet.services("resume", "redis")
    fleet.wait(ids, 120)
    for name in ids:
        expect(fleet.ends(name)[0]["crashes"] == 0, f"{name}: silence cost a crash")


# ---- Kafka ----

@fault(long=True)
def kafka_restarted(fleet):
    ids = some(fleet, 6, "kafka-restarted", **fleet.lasting())
    fleet.await_step(ids[0], 2)
    fleet.services("kill", "kafka")
    fleet.services("start", "kafka")
    fleet.wait(ids + some(fleet, 4, "after-kafka"), 180)


@fault
def kafka_stopped(fleet):
    ids = some(fleet, 8, "kafka-stopped", **fleet.lasting())
    fleet.await_step(ids[0], 2)
    fleet.services("stop", "kafka")
    time.sleep(70 if LONG else 20)
    fleet.services("start", "kafka")
    fleet.wait(ids + some(fleet, 4, "after-kafka"), 240)
    for name in ids:
        expect(fleet.ends(name)[0]["crashes"] == 0, f"{name}: Kafka's absence cost a crash")


# ---- the store ----

@fault(long=True)
def s3_stopped(fleet):
    ids = some(fleet, 6, "s3-stopped", steps=20)
    fleet.services("stop", "s3")
    time.sleep(60 if LONG else 10)
    fleet.services("start", "s3")
    fleet.wait(ids, 240)


@fault
def s3_slow_and_failing(fleet):
    ids = names(8, "s3-faults")
    for i, what in enumerate(({"status": 500}, {"status": 503, "code": "SlowDown"}, {"delay": 2},
                              {"cut_request": 500}, {"drop_answer": True})):
        fleet.proxy.add("PUT", f"results/{ids[i]}/0-", times=2, **what)
        fleet.proxy.add("PUT", f"results/{ids[i]}/manifest", times=2, **what)
    fleet.proxy.add("PUT", f"results/{ids[5]}/manifest", drop_answer=True)
    fleet.produce([job(id=name) for name in ids])
    fleet.wait(ids, 120)


# ---- input ----

@fault
def poisonous_input(fleet):
    unknown = json.dumps(job(id="x", model="no-such-model")).encode()
    two = json.dumps(job(id="two", steps=0, colour="red", width=65)).encode()
    poison = [
        ("p.empty", b"", ["nothing"]),
        ("p.text", b"draw me a cat", [""]),
        ("p.array", b"[1,2]", ["object"]),
        ("p.large", b'{"id":"p.large","prompt":"' + b"x" * (1 << 20) + b'"}', [""]),
        ("p.types", json.dumps(job(id="p.types", width="wide", steps=[3])).encode(),
         ["width", "steps"]),
        ("x", unknown, ["model"]),
        ("two", two, ["steps", "colour", "width"]),
        ("p.utf8", b'{"id":"p.utf8","model":"tiny-shapes","prompt":"\xff\xfe"}', [""]),
        (None, json.dumps(job(id="p.nokey")).encode(), ["key"]),
        ("p.other", json.dumps(job(id="p.mine")).encode(), ["key"]),
        ("p.noid", json.dumps(job()).encode(), ["id"]),
        ("p.null", None, ["empty"]),
        ("p.dear", json.dumps(job(id="p.dear", max_price=1e-12)).encode(), ["max_price", "cost"]),
        ("p.full", b"y" * ((2 << 20) - 200), [""]),
    ]
    before = {key: len(records) for key, records in fleet.dlq.records.items()}
    for key, value, _ in poison:
        fleet.send(value, key.encode() if key else None,
                   headers=[("x-mine", b"1")])
    fleet.producer.flush(60)
    fleet.wait(some(fleet, 3, "after-poison"))
    for key, value, parts in poison:
        found = (key.encode() if key else None)
        fleet.until(lambda: len(fleet.dlq.records.get(found, [])) > before.get(found, 0), 20,
                    f"{key} in the dlq")
        record = fleet.dlq.records[found][-1]
        headers = dict(record.headers)
        expect(record.value == (value or None) or record.value == value,
               f"{key}: other bytes in the dlq")
        expect(headers.get("x-mine") == b"1", f"{key}: its headers are lost")
        problems = headers["atelier-problems"].decode()
        expect(isinstance(json.loads(problems), list) and json.loads(problems), f"{key}: no problem")
        for part in parts:
            expect(part in problems, f"{key}: {part} is not among {problems}")


@fault
def no_more_than_max_price(fleet):
    """What is cheap enough for a g8i alone waits for one, with an a10 idle beside it. What a job will
    cost is learned from how long jobs take, and a loaded machine's speed moves: so an hour of an a10 costs
    a hundred times as much meanwhile, and a job that is refused as too cheap nevertheless is offered again
    at the price of that moment."""
    policy = read_policy()
    policy["classes"]["a10"]["price_per_hour"] = 100 * policy["classes"]["g8i"]["price_per_hour"]
    leader = fleet.leader()
    seen = fleet.log(leader).count("event=policy_read")
    fleet.write_policy(policy)
    try:
        fleet.until(lambda: fleet.log(leader).count("event=policy_read") > seen, 20, "the new prices")
        time.sleep(3)  # every worker's next beat takes them up
        draw_cheaply(fleet)
    finally:
        fleet.write_policy(read_policy())


def draw_cheaply(fleet):
    slow, drawn = fleet.lasting(1), 0
    for _ in range(5):
        free = fleet.produce([job(id=names(1, "any-price")[0], max_price=1000, **slow)])
        fleet.wait(free)
        status = fleet.status(free[0])
        if status["device_class"] != "g8i":
            continue
        most = 8 * float(status["price"])
        held = fleet.produce([job(id=name, max_price=most, **slow) for name in names(6, "cheap")])
        fleet.until(lambda: all(fleet.ends(name) or fleet.dlq.records.get(name.encode())
                                for name in held), 90, "cheap jobs to be drawn or refused")
        for name in held:
            if fleet.dlq.records.get(name.encode()):
                del fleet.sent[name]
                continue
            status = fleet.status(name)
            expect(status["device_class"] == "g8i", f"{name}: not on the cheapest class")
            expect(float(status["price"]) <= most, f"{name}: cost more than it may")
            drawn += 1
        if drawn >= 6:
            return
    expect(False, "jobs that are cheap enough were not drawn")


@fault
def repeats(fleet):
    one = job(id=names(1, "repeat")[0], batch="repeats")
    fleet.produce([one, one])
    fleet.wait([one["id"]])
    fleet.produce([one])
    other = {**one, "prompt": "a blue square"}
    fleet.send(json.dumps(other).encode(), one["id"].encode())
    fleet.until(lambda: fleet.dlq.records.get(one["id"].encode()), 20, "the other in the dlq")
    fleet.until(lambda: fleet.redis.hget("batch:repeats", "repeated") == "2", 10,
                "the repeats to be counted")
    expect(len(fleet.ends(one["id"])) == 1, "a repeat was drawn")


# ---- orders ----

@fault
def cancel(fleet):
    fleet.control(action="pause", batch="cancelled")
    fleet.until(lambda: fleet.state.values("@paused:cancelled"), 60, "the batch to be paused")
    queued = some(fleet, 3, "cancel-queued", batch="cancelled")
    fleet.until(lambda: all(fleet.state.values(name) for name in queued), 20, "acceptance")
    long = some(fleet, 1, "cancel-running", **fleet.lasting(8))[0]
    fleet.await_step(long, 3)
    OTHERS.update(dict.fromkeys([long, *queued], "cancelled"))
    begin = time.monotonic()
    fleet.control(action="cancel", job=long)
    fleet.control(action="cancel", batch="cancelled")
    fleet.wait([long, *queued], 20)
    print(f"    cancelled within {time.monotonic() - begin:.1f} s", flush=True)
    fleet.control(action="resume", batch="cancelled")


@fault
def cancel_survives_the_leader(fleet):
    """The order is taken, the worker does not hear it, and the leader dies."""
    long = some(fleet, 1, "cancel-late", **fleet.lasting(8))[0]
    fleet.await_step(long, 3)
    worker = fleet.status(long)["worker"]
    OTHERS[long] = "cancelled"
    fleet.pause(worker)
    fleet.control(action="cancel", job=long)
    time.sleep(1)
    fleet.redis.delete(f"q:{worker}")
    kill_leader(fleet)
    fleet.resume(worker)
    fleet.wait([long], 60)


@fault
def pause_and_resume(fleet):
    fleet.control(action="pause", batch="paused")
    fleet.until(lambda: fleet.state.values("@paused:paused"), 20, "the pause in the journal")
    ids = some(fleet, 4, "paused", batch="paused")
    other = some(fleet, 2, "not-paused")
    fleet.wait(other)
    kill_leader(fleet)
    time.sleep(4)
    expect(not any(fleet.ends(name) for name in ids), "a paused batch was drawn")
    fleet.control(action="resume", batch="paused")
    fleet.wait(ids)


@fault
def not_before_and_deadline(fleet):
    def stamp(seconds):
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at + seconds))
    at = time.time() + 5
    fleet.control(action="pause", batch="expiring")
    late = some(fleet, 1, "not-before", not_before=stamp(0))[0]
    never = names(1, "deadline")[0]
    OTHERS[never] = "expired"
    fleet.produce([job(id=never, batch="expiring", deadline=stamp(2))])
    time.sleep(2)
    expect(not fleet.ends(late), "drawn before its time")
    fleet.wait([late, never], 40)
    expect(time.time() >= at - 1, "drawn before its time")


def lead_with(fleet, *options):
    """Starts the coordinators anew, with further options."""
    before = fleet.epoch()
    for name in ("coordinator1", "coordinator2"):
        fleet.kill(name)
        fleet.commands[name] = fleet.command(name) + list(options)
        fleet.start(name)
    fleet.until(lambda: fleet.epoch() > before, 60, "a new leader")
    fleet.await_up()


@fault
def backlog_larger_than_memory(fleet):
    def live():
        counts = fleet.redis.hgetall("counts")
        return int(counts.get("waiting", 0)) + int(counts.get("running", 0))
    lead_with(fleet, "--jobs-max", "32")
    bulk = some(fleet, 150, "backlog", priority="bulk")
    fleet.until(lambda: live() >= 24, 30, "a full window")
    urgent = names(1, "urgent")
    fleet.produce([job(id=urgent[0], priority="interactive")], topic="interactive")
    fleet.wait(urgent, 60)
    left = sum(not fleet.ends(name) for name in bulk)
    expect(left > 50, f"an interactive job waited for {150 - left} bulk ones")
    most = max(live() for _ in range(20) if not time.sleep(0.1))
    expect(most <= 32, f"{most} live jobs where 32 may be")
    kill_leader(fleet)  # what it had not read is read by the next one
    fleet.wait([*bulk, *urgent], 240)
    lead_with(fleet)


@fault
def redrive(fleet):
    one = job(id=names(1, "redrive")[0], batch="redriven", **fleet.lasting())
    fleet.produce([one])
    fleet.await_step(one["id"], 2)
    fleet.control(action="cancel", job=one["id"])
    fleet.wait([one["id"]], 30)
    fleet.control(action="redrive", job=one["id"], request=one)
    fleet.wait([one["id"]], 120, drives=2)
    expect(fleet.end(one["id"]) == "succeeded", "not drawn")


def run_one(fleet, name):
    begin = time.monotonic()
    try:
        FAULTS[name][0](fleet)
        fleet.mend()
        fleet.audit(others=OTHERS)
        print(f"  {name:36} passed  {time.monotonic() - begin:6.1f} s", flush=True)
        return True
    except Exception as error:  # the next fault is worth trying all the same
        if not isinstance(error, AuditError):
            traceback.print_exc()
        print(f"  {name:36} FAILED  {time.monotonic() - begin:6.1f} s: {error}", flush=True)
        fleet.mend()
        return False


# ---- all at random ----

def at_random(fleet, seconds, seed):
    dice = random.Random(seed)
    ids, deadline = [], time.monotonic() + seconds
    counts = {}

    def any_of(kind):
        running = [name for name in fleet.names if name.startswith(kind) and fleet.runs(name)]
        return dice.choice(running) if running else None

    def kill(kind):
        name = any_of(kind)
        if name:
            fleet.kill(name)
            fleet.later.append((time.monotonic() + dice.uniform(0, 6), fleet.start, name))

    def stop(kind):
        name = any_of(kind)
        if name:
            fleet.pause(name)
            fleet.later.append((time.monotonic() + dice.uniform(1, 14), fleet.resume, name))

    def drain():
        name = any_of("worker")
        if name:
            fleet.signal(name, 15)
            fleet.later.append((time.monotonic() + dice.uniform(0, 10), fleet.start, name))

    def come_back(how, service):
        try:
            fleet.services(how, service)
        except AuditError:  # a broker that recovers on a busy core takes its time: waits again
            fleet.services(how, service)

    def break_service(how, service, back, seconds):
        fleet.services(how, service)
        fleet.later.append((time.monotonic() + dice.uniform(*seconds), come_back, back, service))

    def spoil():
        what = dice.choice([{"status": 500}, {"status": 503, "code": "SlowDown"}, {"delay": 3},
                            {"cut_request": 500}, {"drop_answer": True}])
        fleet.proxy.add(dice.choice(["PUT", "PUT", "GET", "HEAD"]), "", times=dice.randint(1, 5), **what)

    def flush():
        fleet.redis.flushall()

    def cancel_one():
        if ids:
            name = dice.choice(ids[-20:])
            fleet.send(json.dumps({"action": "cancel", "job": name}).encode(), name.encode(), "control")

    actions = [
        (4, "kill -9 of a worker", lambda: kill("worker")),
        (2, "kill -9 of a coordinator", lambda: kill("coordinator")),
        (2, "SIGSTOP of a worker", lambda: stop("worker")),
        (1, "SIGSTOP of a coordinator", lambda: stop("coordinator")),
        (3, "drain of a worker", drain),
        (1, "kill -9 of Redis", lambda: break_service("kill", "redis", "start", (0, 5))),
        (1, "silent Redis", lambda: break_service("pause", "redis", "resume", (1, 14))),
        (1, "FLUSHALL", flush),
        (1, "kill -9 of Kafka", lambda: break_service("kill", "kafka", "start", (0, 5))),
        (1, "silent S3", lambda: break_service("pause", "s3", "resume", (1, 8))),
        (3, "spoiled exchange with S3", spoil),
        (2, "cancel", cancel_one),
    ]
    def keep_producing():
        dice = random.Random(seed + 1)
        while time.monotonic() < deadline:
            batch = [job(id=name, steps=dice.choice([1, 2, 4, 10, 80]),
                         images=dice.choice([1, 1, 1, 3]), width=dice.choice([64, 64, 96]),
                         batch=f"random{dice.randint(0, 3)}",
                         priority=dice.choice(["interactive", "normal", "bulk"]))
                     for name in names(dice.randint(1, 6), "random")]
            try:
                ids.extend(fleet.produce(batch))
            except kafka.errors.KafkaError as error:  # not even metadata
                print(f"  not sent: {error}", flush=True)
            time.sleep(dice.uniform(1, 4))

    fleet.later = []
    print(f"  seed {seed}, {seconds} s", flush=True)
    producer = threading.Thread(target=keep_producing, daemon=True)
    producer.start()
    while time.monotonic() < deadline:
        try:
            _, label, act = dice.choices(actions, [weight for weight, *_ in actions])[0]
            act()
            counts[label] = counts.get(label, 0) + 1
        except (redis.RedisError, kafka.errors.KafkaError):
            pass
        until = time.monotonic() + dice.uniform(0.5, 5)
        while time.monotonic() < until:
            for due in [item for item in fleet.later if item[0] <= time.monotonic()]:
                fleet.later.remove(due)
                due[1](*due[2:])
            time.sleep(0.05)
    for _, back, *words in sorted(fleet.later, key=lambda item: item[0]):
        back(*words)
    producer.join()
    fleet.mend()
    fleet.wait(ids, 400)
    fleet.audit(allow=("succeeded", "cancelled"), others=OTHERS, settle=40)
    ends = [fleet.ends(name)[-1] for name in ids]
    print(f"  {len(ids)} jobs: " + ", ".join(
        f"{sum(end['state'] == state for end in ends)} {state}" for state in TERMINAL) +
        f"; {sum(end['attempts'] for end in ends)} attempts, "
        f"{sum(end['crashes'] for end in ends)} crashes, {sum(end['returns'] for end in ends)} "
        f"handed back, {fleet.epoch()} terms", flush=True)
    print("  " + ", ".join(f"{count} × {label}" for label, count in sorted(counts.items())))


def main():
    global LONG
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*")
    parser.add_argument("--long", action="store_true")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--random", type=int, metavar="SECONDS")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    options = parser.parse_args()
    LONG = options.long
    if options.list:
        print("\n".join(FAULTS))
        return 0
    unknown = set(options.names) - set(FAULTS)
    if unknown:
        parser.error(f"no such fault: {', '.join(sorted(unknown))}")
    chosen = options.names or [name for name, (_, long) in FAULTS.items() if LONG or not long]
    patience = ("--crashes-max", "100") if options.random else ()
    fleet = Fleet(coordinator_options=patience,
                  worker_options=("--grace", "0", "--batch-max", "2", "--ahead", "2"))
    failed = []
    try:
        fleet.up()
        if options.random:
            at_random(fleet, options.random, options.seed)
        else:
            failed = [name for name in chosen if not run_one(fleet, name)]
    except BaseException:
        print(f"the logs are in {fleet.dir}", file=sys.stderr)
        fleet.keep = True
        raise
    finally:
        fleet.keep = getattr(fleet, "keep", False) or bool(failed)
        ends = fleet.down()
        print(f"  logs: {fleet.dir}" if fleet.keep else "", flush=True)
    broken = {name: end for name, end in ends.items() if end not in (0, "killed")}
    if broken:
        print(f"  programs that ended badly: {broken}")
    print(f"{len(chosen) - len(failed)} of {len(chosen)} faults passed" if not options.random else "")
    return 1 if failed or broken else 0


if __name__ == "__main__":
    sys.exit(main())
