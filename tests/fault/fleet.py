"""A fleet of real processes that can be broken anywhere, and its auditor.

    fleet = Fleet(classes=("a100", "a10", "g8i"), coordinators=2)
    fleet.up()
    fleet.produce([job(id="a"), job(id="b", steps=200)])
    fleet.kill("worker1"); fleet.start("worker1")
    fleet.wait(["a", "b"])
    fleet.audit()
    fleet.down()

Services are scripts/services' own set, programs those of ATELIER_BUILD. Everything is looked at with
clients that are not Atelier's: kafka-python, redis-py, boto3. Workers reach S3 through `fleet.proxy`
(tests/e2e/fault_proxy.py). Import this module first: it exits with 77 where Java, Redis or Maven is
missing and goes on in the Python of scripts/clients-env.
"""

import hashlib
import json
import math
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("ATELIER_BUILD", ROOT / "build" / "release"))
SLOWNESS = int(os.environ.get("SLOWNESS", "1"))  # under sanitizers everything takes longer
STEPS_MAX = 500
MODEL = "tiny-shapes"

for tool in ("java", "mvn", "redis-server"):
    if not shutil.which(tool):
        print(f"SKIP: needs {tool}; scripts/test installs it")
        sys.exit(77)
python = subprocess.run([str(ROOT / "scripts" / "clients-env")], stdout=subprocess.PIPE,
                        check=True, text=True).stdout.strip()
if pathlib.Path(sys.prefix) != pathlib.Path(python).parents[1]:
    os.execv(python, [python, *sys.argv])

import boto3  # noqa: E402
import botocore.config  # noqa: E402
import kafka  # noqa: E402
import redis  # noqa: E402

sys.path.insert(0, str(ROOT / "tests" / "e2e"))
import fault_proxy  # noqa: E402

TERMINAL = ("succeeded", "failed", "dead", "cancelled", "expired")
STEPS = ("assigned", "running", "publishing")
# What finishes a drive of a job, what a driver saw of it, and how far that is.
LIVE = ("queued", "retrying")


def job(**fields):
    """A small job; fields given win, None takes a field away."""
    base = {"model": MODEL, "prompt": "a red circle", "width": 64, "height": 64, "steps": 3}
    base.update(fields)
    return {key: value for key, value in base.items() if value is not None}


class AuditError(AssertionError):
    pass


class Journal(threading.Thread):
    """Follows a topic: `records` by key, in order, of committed transactions."""

    def __init__(self, brokers, topic):
        super().__init__(daemon=True)
        self.brokers, self.topic = brokers, topic
        self.records, self.lock, self.ended = {}, threading.Lock(), False
        self.trouble = None # the latest

    def run(self):
        consumer = None
        while not self.ended:
            try:
                if consumer is None:
                    consumer = kafka.KafkaConsumer(
                        self.topic, bootstrap_servers=self.brokers, group_id=None,
                        auto_offset_reset="earliest", enable_auto_commit=False,
                        isolation_level="read_committed")
                for batch in consumer.poll(timeout_ms=200).values():
                    with self.lock:
                        for record in batch:
                            self.records.setdefault(record.key, []).append(record)
            except (kafka.errors.KafkaError, OSError) as error:
                self.trouble = error
                time.sleep(0.2)
        if consumer:
            consumer.close()

    def values(self, key):
        with self.lock:
            found = list(self.records.get(key.encode(), []))
        return [json.loads(record.value) if record.value else None for record in found]

    def keys(self):
        with self.lock:
            return [key.decode() for key in self.records if key is not None]


class Fleet:
    def __init__(self, cell="fault", coordinators=2, classes=("g8i", "g8i", "a10"), models=None,
                 coordinator_options=(), worker_options=()):
        self.cell, self.classes = cell, classes
        self.models = models or ROOT / "models"
        self.coordinator_options, self.worker_options = coordinator_options, worker_options
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="atelier-fleet-"))
        self.services_dir = os.environ.get("ATELIER_SERVICES_DIR", str(self.dir / "services"))
        self.own_services = "ATELIER_SERVICES_DIR" not in os.environ
        self.policy = self.dir / "routing.json"
        self.write_policy(read_policy())
        self.processes, self.commands, self.sent, self.bad = {}, {}, {}, []
        self.extra = {}  # environment of single programs
        self.step_s = None  # of 64 x 64, once it was measured
        self.names = [f"coordinator{i + 1}" for i in range(coordinators)]
        self.names += [f"worker{i + 1}" for i in range(len(classes))]

    # ---- services ----

    def services(self, *words):
        result = subprocess.run([str(ROOT / "scripts" / "services"), *words],
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                env={**os.environ, "ATELIER_SERVICES_DIR": self.services_dir})
        if result.returncode != 0:
            raise AuditError(f"services {' '.join(words)}: {result.stderr}")
        return result.stdout

    def up(self):
        self.services("up")
        self.settings = {}
        for line in self.services("env").splitlines():
            name, _, value = line.removeprefix("export ").partition("=")
            self.settings[name] = value
        self.brokers = self.settings["ATELIER_KAFKA_BROKERS"]
        self.redis = redis.Redis.from_url(self.settings["ATELIER_REDIS_URL"],
                                          decode_responses=True, socket_timeout=5)
        self.redis.flushall()
        host, port = self.settings["ATELIER_S3_ENDPOINT"].removeprefix("http://").split(":")
        self.proxy = fault_proxy.FaultProxy((host, int(port)))
        self.prefix = f"{self.cell}-{os.getpid()}/"
        self.s3 = boto3.client(
            "s3", endpoint_url=self.settings["ATELIER_S3_ENDPOINT"], region_name="us-east-1",
            aws_access_key_id=self.settings["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=self.settings["AWS_SECRET_ACCESS_KEY"],
            config=botocore.config.Config(request_checksum_calculation="when_required",
                                          response_checksum_validation="when_required"))
        self.bucket = self.settings["ATELIER_S3_BUCKET"]
        self.topic = f"{self.cell}-{os.getpid()}"
        for name in self.names:
            self.commands[name] = self.command(name)
            self.start(name)
        self.await_up()
        self.producer = kafka.KafkaProducer(bootstrap_servers=self.brokers, acks="all", linger_ms=5,
                                            max_request_size=4 << 20)
        self.state = Journal(self.brokers, f"{self.topic}.state")
        self.dlq = Journal(self.brokers, f"{self.topic}.dlq")
        self.state.start()
        self.dlq.start()
        return self

    def down(self):
        for name in self.names:
            self.resume(name)
            self.signal(name, signal.SIGTERM)
        until = time.monotonic() + 40 * SLOWNESS
        ends = {}
        for name in self.names:
            process = self.processes.get(name)
            if not process:
                continue
            try:
                ends[name] = process.wait(max(0.1, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                self.kill(name)
                ends[name] = "killed"
        self.state.ended = self.dlq.ended = True
        self.producer.close()
        self.state.join()
        self.dlq.join()
        self.proxy.close()
        if self.own_services:
            self.services("down")
        if not (os.environ.get("KEEP_LOGS") or getattr(self, "keep", False)):
            shutil.rmtree(self.dir, ignore_errors=True)
        return ends

    # ---- programs ----

    def command(self, name):
        common = ["--name", name, "--models", str(self.models)]
        if name.startswith("coordinator"):
            return [str(BUILD / "coordinator" / "atelier-coordinator"), *common,
                    "--policy", str(self.policy), *self.coordinator_options]
        device_class = self.classes[(int(name.removeprefix("worker")) - 1) % len(self.classes)]
        return [str(BUILD / "worker" / "atelier-worker"), *common, "--device-class", device_class,
                "--threads", "1", *self.worker_options]

    def write_policy(self, policy):
        """The coordinators read it again by themselves."""
        fresh = self.policy.with_suffix(".new")
        fresh.write_text(json.dumps(policy))
        fresh.replace(self.policy)

    def environment(self):
        clean = {key: value for key, value in os.environ.items()
                 if not key.startswith(("ATELIER_", "AWS_"))}
        return {**clean, **self.settings, "ATELIER_CELL": self.topic,
                "ATELIER_S3_ENDPOINT": self.proxy.url, "ATELIER_S3_PREFIX": self.prefix,
                "OMP_WAIT_POLICY": "passive", "UBSAN_OPTIONS": "halt_on_error=1"}

    def start(self, name):
        if self.runs(name):
            return
        self.commands.setdefault(name, self.command(name))
        if name not in self.names:
            self.names.append(name)
        with open(self.dir / f"{name}.log", "ab") as log:
            self.processes[name] = subprocess.Popen(
                self.commands[name], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env={**self.environment(), **self.extra.get(name, {})}, start_new_session=True)

    def runs(self, name):
        process = self.processes.get(name)
        return process is not None and process.poll() is None

    def signal(self, name, number):
        if self.runs(name):
            os.killpg(self.processes[name].pid, number)

    def kill(self, name):
        self.signal(name, signal.SIGKILL)
        self.processes[name].wait()

    def pause(self, name):
        self.signal(name, signal.SIGSTOP)

    def resume(self, name):
        self.signal(name, signal.SIGCONT)

    def log(self, name):
        return (self.dir / f"{name}.log").read_text(errors="replace")

    def leader(self):
        """The name of who leads by Redis, or None."""
        try:
            return self.redis.hget("cell", "leader")
        except redis.RedisError:
            return None

    def epoch(self):
        return int(self.redis.hget("cell", "epoch") or 0)

    def workers(self):
        return [name for name in self.names if name.startswith("worker")]

    def is_up(self):
        leader, since = self.leader(), time.time() * 1000 - 4000
        if not leader or not self.runs(leader):
            return False
        try:
            live = set(self.redis.zrangebyscore("workers", since, "+inf"))
        except redis.RedisError:
            return False
        return set(name for name in self.workers() if self.runs(name)) <= live

    def await_up(self, timeout=60):
        self.until(self.is_up, timeout, "the fleet to be up")

    def mend(self):
        """Everything that a fault may have ended runs again."""
        self.proxy.faults.clear()
        for service in ("kafka", "redis", "s3"):
            self.services("resume", service)
            self.services("start", service)
        for name in self.names:
            self.resume(name)
            self.start(name)
        self.await_up()

    # ---- doing and waiting ----

    def until(self, condition, timeout, what):
        deadline = time.monotonic() + timeout * SLOWNESS
        while True:
            found = condition()
            if found:
                return found
            if time.monotonic() > deadline:
                raise AuditError(f"waited {timeout * SLOWNESS} s for {what}")
            time.sleep(0.02)

    def produce(self, jobs, topic="jobs"):
        """Sends jobs that are to be accepted, again and again until Kafka has them, as a producer
        does; returns their ids."""
        left = list(jobs)
        while left:
            sent = [(each, self.send(json.dumps(each).encode(), each["id"].encode(), topic))
                    for each in left]
            left = []
            for each, future in sent:
                try:
                    future.get(timeout=60)
                    self.sent[each["id"]] = each
                except kafka.errors.KafkaError:
                    left.append(each)
        return [each["id"] for each in jobs]

    def send(self, value, key, topic="jobs", headers=None):
        return self.producer.send(f"{self.topic}.{topic}", value, key=key, headers=headers or [])

    def control(self, **order):
        key = order.get("job") or order.get("batch") or order.get("worker")
        self.send(json.dumps(order).encode(), key.encode(), "control").get(timeout=60)

    def ends(self, name):
        return [value for value in self.state.values(name) if value and value["state"] in TERMINAL]

    def end(self, name):
        ends = self.ends(name)
        return ends[-1]["state"] if ends else None

    def wait(self, ids, timeout=60, drives=1):
        def done():
            return all(len(self.ends(name)) >= drives for name in ids)
        try:
            self.until(done, timeout, f"the end of {len(ids)} jobs")
        except AuditError as error:
            missing = [name for name in ids if len(self.ends(name)) < drives]
            shown = {name: self.status(name) for name in missing[:5]}
            raise AuditError(f"{error}; {len(missing)} are not ended, such as {shown}") from None

    def status(self, name):
        try:
            return self.redis.hgetall(f"job:{name}")
        except redis.RedisError as error:
            return {"status": f"({error})"}

    def await_status(self, name, *wanted, timeout=60):
        """Until Redis shows the job in one of these states; returns its hash."""
        def shown():
            status = self.status(name)
            return status if status.get("status") in wanted else None
        return self.until(shown, timeout, f"{name} to be {' or '.join(wanted)}")

    def lasting(self, seconds=4, model=MODEL):
        """Size and steps of a job that takes about so long on this machine, to be found running."""
        if self.step_s is None:
            for i in range(4):  # one after the other, and the first ones load the model
                self.produce([job(id=f"how-fast-{i}", model=model, steps=100)])
                self.wait([f"how-fast-{i}"])
            self.step_s = min(self.ends(f"how-fast-{i}")[0]["seconds"] for i in range(4)) / 100
        for side in (64, 96, 128, 192, 256):
            steps = math.ceil(seconds / (self.step_s * (side / 64) ** 2))
            if steps <= STEPS_MAX:
                break
        return {"width": side, "height": side, "steps": min(steps, STEPS_MAX)}

    def await_step(self, name, step=1, timeout=60):
        def shown():
            status = self.status(name)
            return status if status.get("status") == "running" and \
                int(status.get("step", 0)) >= step else None
        return self.until(shown, timeout, f"step {step} of {name}")

    # ---- auditing ----

    def objects(self, folder):
        found = {}
        pages = self.s3.get_paginator("list_objects_v2").paginate(
            Bucket=self.bucket, Prefix=self.prefix + folder)
        for page in pages:
            for item in page.get("Contents", []):
                key = item["Key"].removeprefix(self.prefix)
                found.setdefault(key.split("/")[1], {})[key.split("/", 2)[2]] = item["Size"]
        return found

    def fetch(self, key):
        return self.s3.get_object(Bucket=self.bucket, Key=self.prefix + key)["Body"].read()

    def audit(self, allow=("succeeded",), others=None, settle=25):
        """Demands that nothing was lost, doubled or forgotten. `allow`: ends that jobs may have had;
        `others`: {id: end} of those that had to end otherwise. What follows the journal (Redis, the
        sweeping of objects) has a few seconds to do so."""
        others = others or {}
        deadline = time.monotonic() + settle * SLOWNESS
        while True:
            problems = self.find_problems(allow, others)
            if not problems or time.monotonic() > deadline:
                break
            time.sleep(0.5)
        if problems:
            raise AuditError(f"{len(problems)} problems:\n  " + "\n  ".join(problems[:25]))

    def find_problems(self, allow, others):
        problems, last = [], {}
        for name in self.state.keys():
            if name.startswith("@"):
                continue
            values = [value for value in self.state.values(name) if value]
            last[name] = values[-1]
            self.check_records(name, values, problems)
        for name in self.sent:
            if name not in last:
                problems.append(f"{name}: was sent and is unknown")
        for name, value in last.items():
            end = value["state"]
            wanted = (others[name],) if name in others else allow
            if end in TERMINAL and end not in wanted:
                problems.append(f"{name}: {end}, not {' or '.join(wanted)}: {value.get('error')}")
        self.check_store(last, problems)
        self.check_redis(last, problems)
        return problems

    def check_records(self, name, values, problems):
        live, epoch = False, 0
        for value in values:
            state = value["state"]
            if value["epoch"] < epoch:
                problems.append(f"{name}: epoch {value['epoch']} wrote after {epoch}")
            epoch = value["epoch"]
            if state == "queued" and live:
                problems.append(f"{name}: accepted twice")
            if state != "queued" and not live:
                problems.append(f"{name}: {state} after its end")
            live = state not in TERMINAL
        if live:
            problems.append(f"{name}: {values[-1]['state']}, not ended ({self.status(name)})")

    def check_store(self, last, problems):
        results, checked = self.objects("results/"), getattr(self, "checked", {})
        self.checked = checked
        for name in results.keys() - last.keys():
            problems.append(f"{name}: has objects and is unknown")
        for name, value in last.items():
            objects = dict(results.get(name, {}))
            has_manifest = objects.pop("manifest.json", None) is not None
            if value["state"] == "succeeded" and not has_manifest:
                problems.append(f"{name}: succeeded without a manifest")
            if not has_manifest:
                problems += [f"{name}: {key} without a manifest" for key in objects
                             if value["state"] in TERMINAL]
                continue
            if checked.get(name) == objects:
                continue
            manifest = json.loads(self.fetch(f"results/{name}/manifest.json"))
            before = len(problems)
            named = {file["name"]: file for file in manifest["files"]}
            if value["state"] == "succeeded" and \
                    {file["name"] for file in value["files"]} != named.keys():
                problems.append(f"{name}: the journal names other files than the manifest")
            if len(named) != manifest["request"]["images"]:
                problems.append(f"{name}: {len(named)} files for {manifest['request']['images']}")
            problems += [f"{name}: no manifest names {key}" for key in objects.keys() - named.keys()]
            for key, file in named.items():
                if key not in objects:
                    problems.append(f"{name}: {key} is missing")
                    continue
                data = self.fetch(f"results/{name}/{key}")
                if hashlib.sha256(data).hexdigest() != file["sha256"] or len(data) != file["bytes"]:
                    problems.append(f"{name}: {key} is damaged")
            if before == len(problems):
                checked[name] = objects
        for name in self.objects("checkpoints/"):
            if name not in last or last[name]["state"] in TERMINAL:
                problems.append(f"{name}: ended, and a checkpoint is left")

    def check_redis(self, last, problems):
        batches = {}
        for name, value in last.items():
            status = self.status(name)
            if value["state"] in TERMINAL and status.get("status") != value["state"]:
                problems.append(f"{name}: {value['state']}, but Redis says {status.get('status')}")
            if value.get("batch"):
                counts = batches.setdefault(value["batch"], {})
                state = value["state"] if value["state"] in TERMINAL else "live"
                counts[state] = counts.get(state, 0) + 1
                counts["jobs"] = counts.get("jobs", 0) + 1
        for batch, counts in batches.items():
            shown = self.redis.hgetall(f"batch:{batch}")
            for key in ("jobs", "live", *TERMINAL):
                if int(shown.get(key, -1)) != counts.get(key, 0):
                    problems.append(f"batch {batch}: {key} is {counts.get(key, 0)}, "
                                    f"Redis says {shown.get(key)}")
        for key in self.redis.scan_iter("job:*"):
            if key.removeprefix("job:") not in last:
                problems.append(f"{key}: Redis knows a job that the journal does not")


class Watch(threading.Thread):
    """A dashboard: polls the statuses of jobs, and notes every step back within an attempt."""

    ORDER = {name: i for i, name in enumerate(("assigned", "running", "publishing", *TERMINAL))}

    def __init__(self, fleet, ids, every_s=0.1):
        super().__init__(daemon=True)
        self.fleet, self.ids, self.every_s = fleet, list(ids), every_s
        self.seen, self.problems, self.polls, self.ended = {}, [], 0, False

    def run(self):
        while not self.ended:
            try:
                pipe = self.fleet.redis.pipeline(transaction=False)
                for name in self.ids:
                    pipe.hmget(f"job:{name}", "status", "attempt", "step")
                for name, (status, attempt, step) in zip(self.ids, pipe.execute()):
                    self.look(name, status, int(attempt or 0), int(step or 0))
                self.polls += 1
            except redis.RedisError:
                pass
            time.sleep(self.every_s)

    def look(self, name, status, attempt, step):
        before = self.seen.get(name)
        if before and before[0] in TERMINAL and status != before[0]:
            self.problems.append(f"{name}: {status} after {before[0]}")
        if status not in self.ORDER:
            return
        if before and attempt == before[1] and (
                self.ORDER[status] < self.ORDER[before[0]] or
                (status == before[0] and step < before[2])):
            self.problems.append(f"{name}: {status} {step} after {before} in attempt {attempt}")
        self.seen[name] = (status, attempt, step)


def policy_route(policy, facts):
    """The classes that may draw a job, by deploy/routing.json's rules; written from docs/routing.md
    alone."""
    def holds(condition):
        pixels = facts["width"] * facts["height"]
        for key, wanted in condition.items():
            if key == "min_pixels":
                good = pixels >= wanted
            elif key == "max_pixels":
                good = pixels <= wanted
            elif key == "confidential":
                good = facts.get("confidential", False) == wanted
            else:
                good = facts.get(key) in (wanted if isinstance(wanted, list) else [wanted])
            if not good:
                return False
        return True
    for rule in policy["rules"]:
        if holds(rule.get("if", {})):
            return rule["route"]
    return []


def read_policy():
    return json.loads((ROOT / "deploy" / "routing.json").read_text())


def times(log, event):
    """When a program logged an event, in seconds since 1970."""
    import datetime
    found = re.findall(r"time=(\S+).* event=%s|^(\S+) \S+ %s" % (event, event), log, re.M)
    return [datetime.datetime.fromisoformat((a or b).replace("Z", "+00:00")).timestamp()
            for a, b in found]
