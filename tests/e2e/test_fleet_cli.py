"""The commands that speak to a fleet, against a real one: a coordinator, a worker, Kafka, Redis, S3.

Every command is looked at with clients that are not Atelier's; what goes over the wire meanwhile is
held against the JSON Schemas, what lies in Redis against docs/contracts.md. Starts services and a
fleet of its own; exit status 77 where there is no Java, Maven or Redis.
"""

import codecs
import hashlib
import http.server
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("ATELIER_BUILD", ROOT / "build" / "release")).resolve()
PROGRAM = os.environ.get("ATELIER", str(BUILD / "cli" / "atelier"))
SLOWNESS = int(os.environ.get("SLOWNESS", "1"))
MODEL = "sd1-small"

missing = [word for word in ("java", "mvn", "redis-server", "redis-cli") if not shutil.which(word)]
if missing:
    print("SKIP: needs", ", ".join(missing), "; scripts/test and scripts/fleet install them")
    sys.exit(77)
python = subprocess.run([str(ROOT / "scripts" / "clients-env")], stdout=subprocess.PIPE,
                        check=True, text=True).stdout.strip()
if pathlib.Path(sys.prefix) != pathlib.Path(python).parents[1]:
    os.execv(python, [python, *sys.argv])

import jsonschema  # noqa: E402
import kafka  # noqa: E402
import redis  # noqa: E402
import referencing  # noqa: E402

FOLDER = BUILD / "tests" / "fleet-cli"
base = {name: value for name, value in os.environ.items()
        if not re.match("(ATELIER|AWS)_", name) or name == "ATELIER_TOOLS"}
base.update(ATELIER_SERVICES_DIR=str(FOLDER / "services"), ATELIER_FLEET_DIR=str(FOLDER / "fleet"),
            ATELIER_BUILD=str(BUILD), OMP_WAIT_POLICY="passive")
env = {}
monitor = None


def script(name, *words):
    result = subprocess.run([str(ROOT / "scripts" / name), *words], capture_output=True, text=True,
                            env={**base, **env})
    if result.returncode != 0:
        raise RuntimeError(f"scripts/{name} {words}: {result.stdout}{result.stderr}")
    return result.stdout


class Monitor(threading.Thread):
    """Sees every order and report on its way through Redis, by MONITOR on a socket of its own."""

    def __init__(self, port):
        super().__init__(daemon=True)
        self.orders, self.reports = [], []
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.sendall(b"MONITOR\r\n")
        self.start()

    def run(self):
        word = re.compile(rb'"((?:[^"\\]|\\.)*)"')
        for line in self.socket.makefile("rb"):
            words = [codecs.escape_decode(text)[0] for text in word.findall(line)]
            name = words[0].upper() if words else b""
            if name == b"RPUSH" and words[1].startswith(b"q:"):
                self.orders.append(json.loads(words[2]))
            elif name == b"XADD" and words[1] == b"reports":
                self.reports.append(json.loads(words[-1]))


def setUpModule():
    global monitor
    tearDownModule()
    script("services", "up")
    for line in script("services", "env").splitlines():
        name, _, value = line.removeprefix("export ").partition("=")
        env[name] = value
    try:
        monitor = Monitor(int(env["ATELIER_REDIS_URL"].rsplit(":", 1)[1]))
        script("fleet", "up", "--models", str(ROOT / "tests" / "golden" / "models"), "--",
               "--threads", "1")
    except Exception:
        tearDownModule()
        raise


def tearDownModule():
    script("fleet", "down")
    script("services", "down")


# ---- what the tests have in common ----

def job(**fields):
    return {"model": MODEL, "prompt": "a red cat", "width": 64, "height": 64, "steps": 2, **fields}


def records(topic):
    """All of a topic, by a client that is not Atelier's."""
    consumer = kafka.KafkaConsumer(bootstrap_servers=env["ATELIER_KAFKA_BROKERS"],
                                   auto_offset_reset="earliest", enable_auto_commit=False,
                                   isolation_level="read_committed")
    name = "atelier." + topic
    parts = [kafka.TopicPartition(name, i) for i in consumer.partitions_for_topic(name)]
    consumer.assign(parts)
    consumer.seek_to_beginning(*parts)
    ends = consumer.end_offsets(parts)
    found = []
    while any(consumer.position(part) < ends[part] for part in parts):
        for batch in consumer.poll(timeout_ms=500).values():
            found += batch
    consumer.close()
    return found


class Case(unittest.TestCase):
    def setUp(self):
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="atelier-e2e-"))
        self.addCleanup(shutil.rmtree, self.dir, ignore_errors=True)
        self.redis = redis.Redis.from_url(env["ATELIER_REDIS_URL"], decode_responses=True)
        self.addCleanup(self.redis.close)

    def call(self, *words, expect=0, stdin=None, timeout=60, **changes):
        result = subprocess.run([PROGRAM, *map(str, words)], input=stdin, capture_output=True,
                                text=True, timeout=timeout * SLOWNESS,
                                env={**base, **env, **changes})
        self.assertEqual(result.returncode, expect, (words, result.stdout, result.stderr))
        self.assertNotIn(env["AWS_SECRET_ACCESS_KEY"], result.stdout + result.stderr)
        return result

    def lines(self, *words, **options):
        """What a command says with --json."""
        return [json.loads(line) for line in
                self.call(*words, "--json", **options).stdout.splitlines()]

    def write(self, *jobs):
        path = self.dir / "jobs.jsonl"
        path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n"
                                for line in jobs), encoding="utf-8")
        return path

    def submit(self, *jobs, **options):
        words = options.pop("words", ())
        return self.call("submit", self.write(*jobs), *words, **options)

    def wait_for(self, what, seconds=20):
        until = time.monotonic() + seconds * SLOWNESS
        while not what():
            self.assertLess(time.monotonic(), until, "it did not come about")
            time.sleep(0.05)

    def status(self, name):
        return self.redis.hget("job:" + name, "status")


class A_Submit(Case):
    def test_good_and_bad_lines(self):
        path = self.write(job(), job(id="sub-1"), job(id="sub-2", priority="interactive"), "",
                          job(steps=0, widht=3), "nonsense", job(id="sub-1"),
                          job(id="sub-1", steps=3), job(init_image="cat.png", strength=0.5))
        result = self.call("submit", path, "--batch", "sub", "--wait", expect=3)
        self.assertIn("3 jobs sent to atelier.jobs", result.stdout)
        self.assertIn("1 repeated line ignored; 4 lines rejected", result.stdout)
        for part in (f"{path}:5: steps: ", f"{path}:5: widht: unknown field", f"{path}:6: JSON",
                     f"{path}:8: id: an earlier line has this id",
                     f"{path}:9: init_image: is a path on this machine"):
            self.assertIn(part, result.stderr)
        # Counters are written a few times a second, after the jobs' own hashes.
        self.wait_for(lambda: self.redis.hget("batch:sub", "succeeded") == "3")
        self.assertEqual(self.status("sub-1"), "succeeded")
        # Once more: nothing is drawn again, and the waiting finds all of them done.
        again = self.lines("submit", path, "--batch", "sub", "--wait", expect=3)
        self.assertEqual([line["event"] for line in again].count("ended"), 3)
        self.assertEqual(self.redis.hget("batch:sub", "jobs"), "3")
        self.wait_for(lambda: self.redis.hget("batch:sub", "repeated") == "3")
        self.assertEqual([len(line["problems"]) for line in again if line["event"] == "rejected"],
                         [2, 1, 1, 1])

    def test_records(self):
        trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        self.submit(job(id="rec-1"))
        self.submit(job(id="rec-2", priority="interactive"), TRACEPARENT=trace)
        plain = {record.key: record for record in records("jobs")}
        urgent = {record.key: record for record in records("interactive")}
        headers = [dict(plain[b"rec-1"].headers), dict(urgent[b"rec-2"].headers)]
        self.assertNotIn(b"rec-2", plain)
        for name, seen in zip(("rec-1", "rec-2"), headers):
            self.assertEqual(seen["ce_id"], name.encode())
            self.assertEqual(seen["ce_type"], b"atelier.job.v1")
            self.assertEqual(seen["ce_specversion"], b"1.0")
            self.assertEqual(seen["content-type"], b"application/json")
            self.assertTrue(seen["ce_source"])
            self.assertRegex(seen["traceparent"], rb"^00-[0-9a-f]{32}-[0-9a-f]{16}-01$")
        self.assertEqual(headers[1]["traceparent"].decode(), trace)
        self.assertNotEqual(headers[0]["traceparent"].decode(), trace)
        self.wait_for(lambda: self.status("rec-2") == "succeeded")
        states = [json.loads(record.value) for record in records("state")
                  if record.key == b"rec-2"]
        self.assertEqual({state["traceparent"] for state in states}, {trace})

    def test_standard_input_and_dead_letters(self):
        text = json.dumps(job(id="in-1")) + "\n" + json.dumps(job(id="in-2", model="nope"))
        result = self.call("submit", "-", "--wait", stdin=text, expect=3)
        self.assertIn('line 2, in-2: dead letter: model: is not in the catalogue', result.stderr)
        self.assertEqual(self.status("in-1"), "succeeded")

    def test_jobs_that_do_not_succeed(self):
        """One whose picture is not there, beside one whose picture is."""
        self.submit(job(id="bad-0"), words=("--wait",))
        self.call("get", "bad-0", "--out", self.dir / "out")
        name = next((self.dir / "out" / "bad-0").glob("*.png")).name
        start = f"s3://atelier/results/bad-0/{name}"
        result = self.submit(job(id="bad-1", init_image="s3://atelier/no-such.png", strength=0.5),
                             job(id="bad-2", init_image=start, strength=0.5),
                             job(id="bad-3", init_image="https://127.0.0.1:1/a.png", strength=0.5),
                             words=("--wait",), expect=4)
        self.assertRegex(result.stderr, "bad-1: failed: .*no-such.png")
        self.assertIn("no-such.png", self.redis.hget("job:bad-1", "error"))
        self.assertEqual(self.status("bad-2"), "succeeded")
        self.assertEqual(self.status("bad-3"), "failed")
        ended = {line["id"]: line for line in self.lines("submit", self.dir / "jobs.jsonl", "--wait", expect=4)
                 if line["event"] == "ended"}
        self.assertEqual(ended["bad-1"]["error"], self.redis.hget("job:bad-1", "error"))
        self.assertNotIn("error", ended["bad-2"])

    def test_what_is_wrong(self):
        self.assertIn("which jobs file?", self.call("submit", expect=2).stderr)
        self.assertIn("no/such", self.call("submit", "no/such", expect=5).stderr)
        self.assertIn("--batch", self.call("submit", "-", "--batch", "a b", expect=2).stderr)
        result = self.call("status", "--redis-url", "redis://127.0.0.1:1", expect=5)
        self.assertIn("--redis-url", result.stderr)


    def test_what_no_worker_takes_is_a_dead_letter(self):
        """From a producer that checks nothing, and with a worker that computes in f32 alone."""
        self.wait_for(lambda: self.redis.hget("worker:worker1", "precisions"))
        mine = self.redis.hget("worker:worker1", "precisions")
        other = {"f32": "bf16", "bf16": "f32"}[mine]
        wrong = {"schedule": ({"sampler": "ddim", "schedule": "karras"}, "it has normal, sgm_uniform"),
                 "sampler": ({"sampler": "dpm++2m"}, 'did you mean "dpm++ 2m"'),
                 "output.prefix": ({"output": {"prefix": "a"}}, "leave it out"),
                 "precision": ({"precision": other}, f"leave it out for {mine}")}
        cases = {f"unfit-{field}": (job(id=f"unfit-{field}", **fields), field, part)
                 for field, (fields, part) in wrong.items()}
        cases["unfit-f16"] = (job(id="unfit-f16", precision="f16"), "precision", "f32 or bf16")
        cases["unfit-callback"] = (job(id="unfit-callback", callback="https://example.org/"),
                                   "callback", "callback-secrets-file")
        producer = kafka.KafkaProducer(bootstrap_servers=env["ATELIER_KAFKA_BROKERS"])
        for name, (line, _, _) in cases.items():
            producer.send("atelier.jobs", key=name.encode(), value=json.dumps(line).encode())
        good = job(id="fit-1", precision=mine)
        producer.send("atelier.jobs", key=b"fit-1", value=json.dumps(good).encode())
        producer.close()
        self.wait_for(lambda: self.status("fit-1") == "succeeded")
        letters = {}

        def all_there():
            letters.update({record.key.decode(): dict(record.headers) for record in records("dlq")})
            return letters.keys() >= cases.keys()

        self.wait_for(all_there)
        for name, (_, field, part) in cases.items():
            problem, = json.loads(letters[name]["atelier-problems"])
            self.assertEqual(problem["field"], field)
            self.assertIn(part, problem["problem"])
            self.assertIsNone(self.status(name))


class B_Looking(Case):
    def setUp(self):
        super().setUp()
        self.submit(job(id="look-1"), words=("--batch", "look", "--wait"))

    def test_status(self):
        self.assertRegex(self.call("status", "look-1").stdout, "status +succeeded")
        self.assertEqual(self.lines("status", "look-1")[0]["status"], "succeeded")
        self.assertEqual(self.lines("status", "--batch", "look")[0]["succeeded"], 1)
        self.assertIn("no job", self.call("status", "nope", expect=1).stderr)
        cell = self.lines("status")[0]
        self.assertEqual((cell["leader"], cell["workers"]), ("coordinator1", 1))
        self.assertGreater(cell["counts"]["accepted"], 0)
        self.assertRegex(self.call("status").stdout, "leader +coordinator1, epoch 1")

    def test_workers(self):
        worker = self.lines("workers")[0]
        self.assertEqual((worker["worker"], worker["device_class"], worker["state"]),
                         ("worker1", "g8i", "serving"))
        self.assertLess(worker["silent_s"], 5)
        self.assertIn(MODEL, worker["models"])
        self.assertRegex(self.call("workers").stdout, "worker1 +g8i +serving")

    def test_watch(self):
        self.assertIn("batch look: complete, 1/1 succeeded",
                      self.call("watch", "--batch", "look").stdout)
        with subprocess.Popen([PROGRAM, "watch", "--json"], env={**base, **env}, text=True,
                              stdout=subprocess.PIPE) as program:
            self.assertEqual(json.loads(program.stdout.readline())["workers"], 1)
            program.send_signal(signal.SIGINT)
            program.stdout.read()
            self.assertEqual(program.wait(timeout=10), 0)

    def test_a_configuration_file(self):
        path = self.dir / "atelier.conf"
        secret = self.dir / "redis"
        secret.write_text(env["ATELIER_REDIS_URL"] + "\n")
        path.write_text(f"redis-url-file = {secret}\n[atelier-worker]\nthreads = 9\n"
                        "[atelier]\njson = yes\n")
        result = self.call("status", ATELIER_CONFIG=str(path), ATELIER_REDIS_URL="")
        self.assertEqual(json.loads(result.stdout)["leader"], "coordinator1")
        path.write_text("redis-ulr = x\n")
        result = self.call("status", "--config", path, expect=2)
        self.assertIn(f'{path}:1: unknown key "redis-ulr"; did you mean "redis-url"', result.stderr)

    def test_explain(self):
        """In a database of its own, whose `cell` names a coordinator that is made up here."""
        answer = {"job": "e-1", "why": "class_busy", "start_s": 12.5, "seconds": {"g8i": 3}}

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                known = self.path == "/explain/e-1"
                self.send_response(200 if known else 404)
                self.end_headers()
                self.wfile.write(json.dumps(answer).encode() if known else b"{}")

            def log_message(self, *words):
                pass

        url = env["ATELIER_REDIS_URL"] + "/5"
        store = redis.Redis.from_url(url)
        self.addCleanup(store.close)
        self.addCleanup(store.flushdb)
        store.hset("job:e-1", "status", "queued")
        server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        store.hset("cell", "api", f"127.0.0.1:{server.server_port}")
        text = self.call("explain", "e-1", "--redis-url", url).stdout
        self.assertRegex(text, "why +class_busy")
        self.assertRegex(text, r"seconds\n +g8i +3")
        self.assertEqual(self.lines("explain", "e-1", "--redis-url", url), [answer])
        self.call("explain", "e-2", "--redis-url", url, expect=1)
        server.shutdown()
        server.server_close()
        result = self.call("explain", "e-1", "--redis-url", url)
        self.assertIn("could not be asked", result.stderr)
        self.assertRegex(result.stdout, "status +queued")
        self.assertRegex(self.call("explain", "look-1").stdout, "status +succeeded")


class C_Orders(Case):
    def test_pause_cancel_resume(self):
        said = self.call("pause", "--batch", "held").stdout
        self.assertIn("paused; no job of this batch has been accepted yet", said)
        self.submit(job(id="held-1"), job(id="held-2"), words=("--batch", "held"))
        self.wait_for(lambda: self.redis.hget("batch:held", "live") == "2")
        self.assertEqual(self.redis.hget("batch:held", "status"), "paused")
        self.assertIn("cancelled", self.call("cancel", "held-1").stdout)
        self.assertEqual(self.status("held-1"), "cancelled")
        self.assertEqual(self.status("held-2"), "queued")
        self.assertIn("paused; 1 live job: what runs", self.call("pause", "--batch", "held").stdout)
        result = self.lines("resume", "--batch", "held")[0]
        self.assertEqual((result["action"], result["done"]), ("resume", True))
        self.assertIn("batch held: complete, 1/2 succeeded",
                      self.call("watch", "--batch", "held", expect=4).stdout)
        self.assertIn("it had ended before: succeeded", self.call("cancel", "held-2").stdout)
        self.assertIn("nothing was left to cancel", self.call("cancel", "--batch", "held").stdout)
        self.call("cancel", "nope", "--no-wait")
        for words in (("cancel",), ("cancel", "a", "--batch", "b"), ("pause",), ("drain",)):
            self.call(*words, expect=2)

    def test_running_jobs_are_cancelled(self):
        names = [f"run-{i}" for i in range(3)]
        self.submit(*(job(id=name, width=256, height=256, steps=500, images=4) for name in names),
                    words=("--batch", "running"))
        self.addCleanup(self.call, "cancel", "--batch", "running", "--no-wait")
        self.wait_for(lambda: "running" in map(self.status, names))
        name = next(name for name in names if self.status(name) == "running")
        self.assertGreater(int(self.redis.hget("job:" + name, "steps")), 0)
        self.assertIn("cancelled", self.call("cancel", name).stdout)
        self.wait_for(lambda: self.redis.hget("batch:running", "cancelled") == "1")
        self.assertIn("2 jobs cancelled; of the batch, none is live", self.call("cancel", "--batch", "running").stdout)
        self.assertEqual(self.redis.hget("batch:running", "cancelled"), "3")

    def test_a_deadline_that_passes(self):
        self.call("pause", "--batch", "late")
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 2))
        result = self.submit(job(id="late-1", deadline=at), words=("--batch", "late", "--wait"),
                             expect=4)
        self.assertIn("late-1: expired", result.stderr)

    def test_redrive(self):
        self.call("pause", "--batch", "again")
        self.submit(job(id="again-1"), job(id="again-2"), words=("--batch", "again"))
        self.wait_for(lambda: self.redis.hget("batch:again", "live") == "2")
        self.call("cancel", "--batch", "again")
        self.call("resume", "--batch", "again")
        listed = self.lines("redrive", "--batch", "again", "--dry-run")
        self.assertEqual([line.get("job") for line in sorted(listed[:2], key=lambda line: line["job"])],
                         ["again-1", "again-2"])
        self.assertEqual(self.status("again-1"), "cancelled")
        self.call("redrive", "again-1")
        self.wait_for(lambda: self.status("again-1") == "succeeded")
        self.assertEqual(self.status("again-2"), "cancelled")
        self.assertIn("1 job sent", self.call("redrive", "--batch", "again").stdout)
        self.wait_for(lambda: self.status("again-2") == "succeeded")
        self.assertIn("nothing to send", self.call("redrive", "again-1", expect=1).stderr)

    def test_redriving_dead_letters(self):
        self.submit(job(id="dead-1", model="nope", prompt="ä"), words=("--wait",), expect=3)

        def letters():
            return [record for record in records("dlq") if record.key == b"dead-1"]

        first = letters()
        self.assertEqual(len(first), 1)
        result = self.call("redrive", "dead-1", "--dlq", "--dry-run")
        self.assertIn("would send dead-1 to atelier.jobs", result.stdout)
        self.assertEqual(len(letters()), 1)
        result = self.call("redrive", "dead-1", "--dlq", expect=3)
        self.assertIn("dead-1 was refused again for [", result.stderr)
        self.assertEqual(len(letters()), 2)
        again = letters()[1]
        self.assertEqual(again.value, first[0].value)
        self.assertEqual([name for name, _ in again.headers if name == "atelier-problems"],
                         ["atelier-problems"])
        self.assertEqual(dict(again.headers)["ce_id"], b"dead-1")
        events = self.lines("redrive", "dead-1", "--dlq", expect=3)  # the same bytes: once, not twice
        self.assertEqual([event["event"] for event in events], ["sent", "refused", "end"])
        self.assertEqual(events[1]["problems"][0]["field"], "model")
        self.assertEqual(len(letters()), 3)
        self.call("redrive", "dead-1", "--dlq", "--no-wait")
        self.wait_for(lambda: len(letters()) == 4)

    def test_dead_letters_that_are_good_by_now(self):
        """As if what was wrong with them had been put right since."""
        headers = [("atelier-problems", b'[{"field":"tenant","value":"","problem":"had its quota"}]'),
                   ("atelier-topic", b"atelier.jobs"), ("atelier-partition", b"0"),
                   ("atelier-offset", b"0"), ("atelier-time", b"2026-01-01T00:00:00.000Z")]
        producer = kafka.KafkaProducer(bootstrap_servers=env["ATELIER_KAFKA_BROKERS"])
        producer.send("atelier.dlq", key=b"risen-1", value=json.dumps(job(id="risen-1")).encode(),
                      headers=headers)
        producer.close()
        result = self.call("redrive", "risen-1", "--dlq")
        self.assertIn("1 dead letter sent", result.stdout)
        self.assertEqual(result.stderr, "")
        self.wait_for(lambda: self.status("risen-1") == "succeeded")


class D_Results(Case):
    def audit(self, out, name):
        manifest = json.loads((out / name / "manifest.json").read_text(encoding="utf-8"))
        for file in manifest["files"]:
            digest = hashlib.sha256((out / name / file["name"]).read_bytes()).hexdigest()
            self.assertEqual(digest, file["sha256"])
        self.assertEqual(len(list((out / name).iterdir())), len(manifest["files"]) + 1)
        return manifest["files"]

    def test_get(self):
        out = self.dir / "out"
        self.submit(job(id="get-1", images=2), job(id="get-2"), words=("--batch", "get", "--wait"))
        self.assertIn("2 files fetched, 0 were there", self.call("get", "get-1", "--out", out).stdout)
        files = self.audit(out, "get-1")
        self.assertEqual(len(files), 2)
        # A file that was spoilt, and one that is gone, are fetched again; nothing else is.
        (out / "get-1" / files[0]["name"]).write_bytes(b"spoilt")
        result = self.lines("get", "--batch", "get", "--out", out)[-1]
        self.assertEqual((result["jobs"], result["files"], result["there"]), (2, 2, 1))
        self.audit(out, "get-1")
        self.audit(out, "get-2")
        self.assertIn("has not succeeded", self.call("get", "nope", "--out", out, expect=1).stderr)
        self.call("get", "--batch", "nope", "--out", out, expect=1)
        self.assertIn("--out", self.call("get", "get-1", expect=2).stderr)
        result = self.call("get", "get-1", "--out", out, expect=5, AWS_ACCESS_KEY_ID="")
        self.assertNotIn("were there", result.stdout)


class E_Contracts(Case):
    """What the tests above have left behind, and what went over the wire meanwhile."""

    @classmethod
    def setUpClass(cls):
        cls.schemas = {path.name: json.loads(path.read_text(encoding="utf-8"))
                       for path in (ROOT / "schema").glob("*.schema.json")}
        for schema in cls.schemas.values():
            jsonschema.Draft202012Validator.check_schema(schema)
            cls.make_strict(schema, schema)
        cls.registry = referencing.Registry().with_resources(
            (name, referencing.jsonschema.DRAFT202012.create_resource(schema))
            for name, schema in cls.schemas.items())

    @classmethod
    def make_strict(cls, node, top):
        """Readers pass over what they do not know; this test does not."""
        if isinstance(node, list):
            for item in node:
                cls.make_strict(item, top)
        if not isinstance(node, dict):
            return
        for item in node.values():
            cls.make_strict(item, top)
        if node.get("type") == "object" and "properties" in node:
            node.setdefault("unevaluatedProperties", False)

    def check(self, schema, value):
        name, _, pointer = schema.partition("#")
        validator = jsonschema.Draft202012Validator(
            {"$ref": schema if pointer else name}, registry=self.registry,
            format_checker=jsonschema.FormatChecker())
        problems = [f"{error.json_path}: {error.message}" for error in validator.iter_errors(value)]
        self.assertEqual(problems, [], json.dumps(value)[:2000])

    def test_the_schemas_can_refuse(self):
        for schema, value in (("state.schema.json", {"version": 1}),
                              ("control.schema.json", {"action": "pause", "job": "a"}),
                              ("order.schema.json", {"type": "drain", "worker": "w"}),
                              ("problems.schema.json", [])):
            with self.assertRaises(AssertionError):
                self.check(schema, value)

    def test_state(self):
        seen = set()
        for record in records("state"):
            key = record.key.decode()
            value = json.loads(record.value) if record.value else None
            if key.startswith("@"):
                if value:
                    self.check("state.schema.json#/$defs/" + key[1:].split(":")[0], value)
            else:
                self.check("state.schema.json", value)
                self.assertEqual(value["id"], key)
                seen.add(value["state"])
        self.assertLessEqual({"queued", "succeeded", "cancelled", "failed", "expired"}, seen)

    def test_control(self):
        seen = set()
        for record in records("control"):
            value = json.loads(record.value)
            self.check("control.schema.json", value)
            self.assertIn(record.key.decode(), value.values())
            seen.add(value["action"])
        self.assertLessEqual({"cancel", "pause", "resume", "redrive"}, seen)

    def test_dead_letters(self):
        letters = records("dlq")
        self.assertTrue(letters)
        for record in letters:
            headers = dict(record.headers)
            self.check("problems.schema.json", json.loads(headers["atelier-problems"]))
            self.assertRegex(headers["atelier-offset"], rb"^[0-9]+$")
            self.assertRegex(headers["atelier-partition"], rb"^[0-9]+$")
            self.assertEqual(headers["atelier-topic"], b"atelier.jobs")
            self.assertIn(b"T", headers["atelier-time"])

    def test_orders_and_reports(self):
        for order in list(monitor.orders):
            self.check("order.schema.json", order)
        for report in list(monitor.reports):
            self.check("report.schema.json", report)
        self.assertLessEqual({"job", "cancel", "ack"}, {order["type"] for order in monitor.orders})
        self.assertLessEqual({"beat", "done", "failed"},
                             {report["type"] for report in monitor.reports})
        self.assertTrue(any(report.get("jobs") for report in monitor.reports))

    def test_manifests(self):
        out = self.dir / "out"
        self.call("get", "--batch", "sub", "--out", out)
        found = list(out.glob("*/manifest.json"))
        self.assertEqual(len(found), 3)
        for path in found:
            self.check("manifest.schema.json", json.loads(path.read_text(encoding="utf-8")))

    def documented(self):
        """Key pattern → (type, fields) of the table in docs/contracts.md."""
        text = (ROOT / "docs" / "contracts.md").read_text(encoding="utf-8")
        table, key = {}, None
        for line in text.split("## Redis", 1)[1].split("###", 1)[0].splitlines():
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            if not line.startswith("|") or len(cells) != 5 or cells[0] in ("key", "---"):
                continue
            if cells[0]:
                key = cells[0].strip("`")
                table[key] = (cells[1], set())
            table[key][1].update(re.findall("`([a-z_]+)`", cells[2]))
        return table

    def test_redis(self):
        table, seen = self.documented(), set()
        types = {"hash": "hash", "sorted set": "zset", "list": "list", "stream": "stream"}
        for name in self.redis.scan_iter():
            pattern = re.sub("^([a-z]+):.*$", lambda match: next(
                (key for key in table if key.startswith(match[1] + ":")), match[0]), name)
            self.assertIn(pattern, table, f"{name} is not in docs/contracts.md")
            kind, fields = table[pattern]
            self.assertEqual(self.redis.type(name), types[kind], name)
            seen.add(pattern)
            if kind == "hash":
                self.assertLessEqual(set(self.redis.hkeys(name)), fields, name)
        self.assertLessEqual({"cell", "counts", "workers", "job:<id>", "batch:<id>",
                              "worker:<name>"}, seen)
        self.assertGreater(self.redis.ttl("job:sub-1"), 80000)
        self.assertGreater(self.redis.ttl("batch:sub"), 80000)
        self.assertTrue(0 < self.redis.ttl("worker:worker1") <= 30)
        self.assertEqual(self.redis.ttl("cell"), -1)

    def test_the_dashboards_user(self):
        text = (ROOT / "docs" / "contracts.md").read_text(encoding="utf-8")
        name, *rules = re.search("^user (dashboard .*)$", text, re.M)[1].split()
        self.redis.execute_command("ACL", "SETUSER", name, "reset", *rules)
        self.addCleanup(self.redis.execute_command, "ACL", "DELUSER", name)
        url = env["ATELIER_REDIS_URL"].replace("//", f"//{name}:CHANGE-ME@")
        user = redis.Redis.from_url(url, decode_responses=True)
        self.addCleanup(user.close)
        self.assertEqual(user.hget("cell", "leader"), "coordinator1")
        self.assertEqual(user.hgetall("job:sub-1")["status"], "succeeded")
        self.assertEqual(user.zrange("workers", 0, -1), ["worker1"])
        self.assertTrue(user.hgetall("counts"))
        refused = [("HSET", "job:sub-1", "status", "failed"), ("DEL", "job:sub-1"),
                   ("EXPIRE", "job:sub-1", "1"), ("RPUSH", "q:worker1", "{}"),
                   ("LRANGE", "q:worker1", "0", "-1"), ("XRANGE", "reports", "-", "+"),
                   ("XADD", "reports", "*", "m", "{}"), ("EVAL", "return 1", "0"),
                   ("FLUSHALL",), ("CONFIG", "GET", "*"), ("KEYS", "*"), ("GET", "other"),
                   ("ACL", "LIST"), ("PUBLISH", "c", "m"), ("SUBSCRIBE", "c"), ("MONITOR",)]
        for words in refused:
            with self.assertRaises(redis.exceptions.NoPermissionError, msg=words):
                user.execute_command(*words)
        self.assertEqual(self.status("sub-1"), "succeeded")
        self.assertEqual(self.lines("status", "sub-1", "--redis-url", url)[0]["status"],
                         "succeeded")
        self.assertEqual(self.lines("workers", "--redis-url", url)[0]["worker"], "worker1")

    def test_asyncapi(self):
        text = (ROOT / "schema" / "asyncapi.yaml").read_text(encoding="utf-8")
        header = (ROOT / "schema" / "topics.h").read_text(encoding="utf-8")
        self.assertEqual(set(re.findall(r'address: "\{cell\}\.([a-z]+)"', text)),
                         set(re.findall(r'#define TOPIC_[A-Z]+ "([a-z]+)"', header)))
        named = re.findall(r"\$ref: ([a-z]+\.schema\.json)(#\S+)?", text)
        self.assertGreaterEqual(len(named), 5)
        for name, pointer in named:
            self.assertIn(name, self.schemas)
            if pointer:
                self.assertIn(pointer.rsplit("/", 1)[1], self.schemas[name]["$defs"])


class F_Transitions(Case):
    def test_a_beat_after_the_end_changes_nothing(self):
        """A worker names a job in its beats until its report is acknowledged."""
        store = redis.Redis.from_url(env["ATELIER_REDIS_URL"] + "/6", decode_responses=True)
        self.addCleanup(store.close)
        self.addCleanup(store.flushdb)
        text = (ROOT / "schema" / "redis" / "heartbeat.lua").read_text(encoding="utf-8")

        def beat(worker, attempt):
            return store.eval(text, 5, "cell", "workers", "worker:" + worker, "reports", "job:a",
                              worker, 1, 30, "{}", 1, "state", "serving", attempt, "publishing",
                              2, 2)

        store.hset("cell", "epoch", 7)
        store.hset("job:a", mapping={"status": "assigned", "worker": "w", "attempt": 1})
        self.assertEqual(beat("w", 1), [7])
        self.assertEqual(store.hget("job:a", "status"), "publishing")
        self.assertEqual(beat("v", 1), [7, 1])
        self.assertEqual(beat("w", 2), [7, 1])
        store.hset("job:a", mapping={"status": "succeeded", "finished": "2026-01-01T00:00:00Z"})
        self.assertEqual(beat("w", 1), [7])
        self.assertEqual(store.hget("job:a", "status"), "succeeded")


class F_Leaving(Case):
    def test_drain(self):
        self.assertIn("drain worker worker1: ", self.call("drain", "worker1").stdout)
        self.wait_for(lambda: not self.redis.zrange("workers", 0, -1))
        self.assertIn({"type": "drain"}, monitor.orders)
        self.assertEqual(self.call("workers").stdout.count("\n"), 1)


if __name__ == "__main__":
    unittest.main()
