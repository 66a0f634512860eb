"""The object store's adapter against a real S3 server, through a proxy that spoils exchanges.

What it did is looked at with another client, boto3. Starts a server of its own with
scripts/services; exit status 77 where there is no Java to run one.
"""

import hashlib
import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
import time
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROBE = os.environ.get("S3_PROBE", str(ROOT / "build" / "release" / "tests" / "s3_probe"))
SLOWNESS = int(os.environ.get("SLOWNESS", "1"))
SERVICES = str(ROOT / "scripts" / "services")
PART = 5 << 20  # s3_probe's

if not (shutil.which("java") and shutil.which("mvn")):
    print("SKIP: needs Java and Maven; scripts/test installs them")
    sys.exit(77)
python = subprocess.run([str(ROOT / "scripts" / "clients-env")], stdout=subprocess.PIPE,
                        check=True, text=True).stdout.strip()
if pathlib.Path(sys.prefix) != pathlib.Path(python).parents[1]:
    os.execv(python, [python, *sys.argv])

import boto3  # noqa: E402
import botocore.config  # noqa: E402
import botocore.exceptions  # noqa: E402

import fault_proxy  # noqa: E402

folder = None
settings = {}


def services(*words):
    return subprocess.run([SERVICES, *words], check=True, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True,
                          env={**os.environ, "ATELIER_SERVICES_DIR": folder}).stdout


def setUpModule():
    global folder
    folder = tempfile.mkdtemp(prefix="atelier-s3-")
    try:
        services("up", "s3")
    except subprocess.CalledProcessError as error:
        print(error.stderr)
        tearDownModule()
        raise
    for line in services("env").splitlines():
        name, _, value = line.removeprefix("export ").partition("=")
        settings[name] = value


def tearDownModule():
    services("down")
    shutil.rmtree(folder, ignore_errors=True)


class Case(unittest.TestCase):
    def setUp(self):
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="atelier-e2e-"))
        self.addCleanup(shutil.rmtree, self.dir, ignore_errors=True)
        self.endpoint = settings["ATELIER_S3_ENDPOINT"]
        self.bucket = settings["ATELIER_S3_BUCKET"]
        self.prefix = self.id().split(".")[-1] + "/"
        host, port = self.endpoint.removeprefix("http://").split(":")
        self.proxy = fault_proxy.FaultProxy((host, int(port)))
        self.addCleanup(self.proxy.close)
        self.client = boto3.client(
            "s3", endpoint_url=self.endpoint, region_name="us-east-1",
            aws_access_key_id=settings["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=settings["AWS_SECRET_ACCESS_KEY"],
            config=botocore.config.Config(request_checksum_calculation="when_required",
                                          response_checksum_validation="when_required"))

    def environment(self, **changes):
        return {**os.environ, **settings, "ATELIER_S3_ENDPOINT": self.proxy.url,
                "S3_PREFIX": self.prefix, **changes}

    def probe(self, *words, expect=0, **changes):
        result = subprocess.run([PROBE, *map(str, words)], capture_output=True, text=True,
                                stdin=subprocess.DEVNULL, timeout=120 * SLOWNESS,
                                env=self.environment(**changes))
        self.assertEqual(result.returncode, expect, result.stdout + result.stderr)
        self.assertNotIn(settings["AWS_SECRET_ACCESS_KEY"], result.stdout + result.stderr)
        return result.stdout

    def file(self, data, name="in"):
        path = self.dir / name
        path.write_bytes(data)
        return path

    def stored(self, key):
        return self.client.get_object(Bucket=self.bucket, Key=self.prefix + key)["Body"].read()

    def store(self, key, data):
        self.client.put_object(Bucket=self.bucket, Key=self.prefix + key, Body=data)

    def keys(self):
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket,
                                                                      Prefix=self.prefix)
        return sorted(item["Key"].removeprefix(self.prefix)
                      for page in pages for item in page.get("Contents", []))


class Start(Case):
    def test_a_good_store(self):
        self.assertIn("creates only: yes", self.probe("check"))
        self.assertEqual(self.keys(), [])

    def test_a_store_without_conditional_writes(self):
        self.proxy.add("PUT", "If-None-Match", times=99, status=501, code="NotImplemented")
        self.assertIn("creates only: no", self.probe("check"))
        self.probe("check-put", "k", self.file(b"one"), "new")
        self.probe("check-put", "k", self.file(b"one"), "new")
        self.assertIn("error conflict", self.probe("check-put", "k", self.file(b"two"), "new",
                                                   expect=1))
        self.assertEqual(self.stored("k"), b"one")

    def test_a_store_that_ignores_conditions(self):
        self.proxy.add("PUT", "If-None-Match", times=2, status=200)
        self.assertIn("creates only: no", self.probe("check"))

    def test_what_is_wrong_with_the_settings(self):
        for changes, parts in (
                ({"ATELIER_S3_BUCKET": "nowhere"}, ("fatal", "nowhere", "404", "NoSuchBucket")),
                ({"AWS_SECRET_ACCESS_KEY": "wrong"}, ("fatal", "403", "SignatureDoesNotMatch")),
                ({"AWS_ACCESS_KEY_ID": "wrong"}, ("fatal", "403", "InvalidAccessKeyId")),
                ({"ATELIER_S3_ENDPOINT": "127.0.0.1"}, ("fatal", "https://")),
                ({"ATELIER_S3_BUCKET": ""}, ("fatal", "no bucket")),
                ({"ATELIER_S3_ENDPOINT": "http://127.0.0.1:1", "RETRY_TOTAL_MS": "300"},
                 ("retry", "http://127.0.0.1:1", "tried"))):
            output = self.probe("check", expect=1, **changes)
            for part in parts:
                self.assertIn(part, output)

    def test_wrong_settings_are_not_tried_again(self):
        self.probe("check", expect=1, AWS_SECRET_ACCESS_KEY="wrong")
        self.assertEqual(len(self.proxy.log), 1)


class Objects(Case):
    def test_bytes_and_type_arrive(self):
        for data in (b"", b"x", random.randbytes(100_000)):
            self.probe("put", "k", self.file(data), "replace")
            self.assertEqual(self.stored("k"), data)
            self.probe("get", "k", self.dir / "out", 1 << 20)
            self.assertEqual((self.dir / "out").read_bytes(), data)
        head = self.client.head_object(Bucket=self.bucket, Key=self.prefix + "k")
        self.assertEqual(head["ContentType"], "image/png")
        self.assertIn(head["ETag"], self.probe("head", "k"))

    def test_odd_keys(self):
        names = ["a b", "a+b", "50%", "é–日本", "~tilde", "q?x=1&y=2", "#", "it's(1)!*", "a=b;c,d:e@f",
                 "<&>\""]
        for name in names:
            self.probe("put", "odd/" + name, self.file(name.encode()), "new")
            self.assertEqual(self.stored("odd/" + name), name.encode())
            self.probe("get", "odd/" + name, self.dir / "out", 100)
            self.assertEqual((self.dir / "out").read_bytes(), name.encode())
        listed = self.probe("list", "odd/").splitlines()[:-1]
        self.assertEqual(sorted(line.split(" ", 1)[1] for line in listed),
                         sorted("odd/" + name for name in names))
        for name in names:
            self.probe("delete", "odd/" + name)
        self.assertEqual(self.keys(), [])
        for name in ("..", "a/../b", "./a", "a/."):  # no URL can carry them
            said = self.probe("put", "odd/" + name, self.file(b"x"), "new", expect=1)
            self.assertIn("between its slashes", said)

    def test_create_only(self):
        self.probe("put", "k", self.file(b"one"), "new")
        self.probe("put", "k", self.file(b"one"), "new")
        for other in (b"two", b"longer"):
            self.assertIn("error conflict", self.probe("put", "k", self.file(other), "new",
                                                       expect=1))
        self.assertEqual(self.stored("k"), b"one")
        self.probe("put", "k", self.file(b"two"), "replace")
        self.assertEqual(self.stored("k"), b"two")

    def test_one_of_many_creators_wins(self):
        children = []
        for i in range(8):
            path = self.file(b"attempt %d" % i, f"in{i}")
            children.append(subprocess.Popen([PROBE, "put", "k", str(path), "new"],
                                             stdout=subprocess.PIPE, text=True,
                                             env=self.environment()))
        outputs = [child.communicate()[0] for child in children]
        winners = [i for i, child in enumerate(children) if child.returncode == 0]
        self.assertEqual(len(winners), 1, outputs)
        self.assertEqual(self.stored("k"), b"attempt %d" % winners[0])
        self.assertEqual(sum("error conflict" in output for output in outputs), 7)

    def test_limits_and_absence(self):
        self.store("k", b"12345")
        self.probe("get", "k", self.dir / "out", 5)
        self.assertIn("error limit reject", self.probe("get", "k", self.dir / "out", 4, expect=1))
        output = self.probe("get", "none", self.dir / "out", 4, expect=1)
        for part in ("error not_found reject", self.prefix + "none", "404", "NoSuchKey"):
            self.assertIn(part, output)
        self.assertEqual(self.probe("head", "none"), "0 0 \nok\n")
        self.probe("delete", "none")

    def test_a_list_of_several_pages(self):
        self.probe("many", 12, 90, ATELIER_S3_ENDPOINT=self.endpoint)
        keys = sorted(f"many/{i}/{j}" for i in range(12) for j in range(90))
        lines = self.probe("list", "many/").splitlines()
        self.assertEqual([line.split(" ", 1)[1] for line in lines[:-1]], keys)
        self.assertEqual(self.proxy.count("GET", "continuation-token"), 1)
        self.assertEqual(self.probe("list", "many/11/8").count("many/11/8"), 11)


class Faults(Case):
    def test_passing_refusals(self):
        for status, code in ((500, "InternalError"), (503, "SlowDown"), (429, "TooManyRequests"),
                             (409, "ConditionalRequestConflict")):
            self.proxy.log.clear()
            self.proxy.add("PUT", "/k", times=3, status=status, code=code)
            self.probe("put", "k", self.file(code.encode()), "replace")
            self.assertEqual(self.proxy.count("PUT"), 4)
            self.assertEqual(self.stored("k"), code.encode())

    def test_giving_up(self):
        self.proxy.add("PUT", "/k", times=10 ** 6, status=503, code="SlowDown")
        begin = time.monotonic()
        output = self.probe("put", "k", self.file(b"x"), "new", expect=1, RETRY_TOTAL_MS="2000")
        self.assertLess(time.monotonic() - begin, 3 * SLOWNESS)
        for part in ("error io retry", self.bucket, self.prefix + "k", "503", "SlowDown", "tried"):
            self.assertIn(part, output)
        self.assertGreater(self.proxy.count("PUT"), 2)

    def test_refusals_that_stay(self):
        self.proxy.add("PUT", "/k", status=403, code="AccessDenied")
        output = self.probe("put", "k", self.file(b"x"), "new", expect=1)
        self.assertIn("fatal", output)
        self.proxy.add("GET", "/k", status=403, code="AccessDenied")
        output = self.probe("get", "k", self.dir / "out", 9, expect=1)
        self.assertIn("reject", output)
        self.assertEqual(len(self.proxy.log), 2)

    def test_a_lost_answer_is_no_conflict(self):
        data = random.randbytes(3000)
        self.proxy.add("PUT", "/k", drop_answer=True)
        self.probe("put", "k", self.file(data), "new")
        self.assertEqual(self.proxy.count("PUT"), 2)
        self.assertEqual(self.stored("k"), data)

    def test_a_lost_answer_does_not_hide_a_conflict(self):
        data = random.randbytes(3000)
        self.store("k", data)
        self.proxy.add("PUT", "/k", drop_answer=True)
        output = self.probe("put", "k", self.file(data[::-1]), "new", expect=1)
        self.assertIn("error conflict", output)
        self.assertEqual(self.stored("k"), data)

    def test_cut_uploads(self):
        data = random.randbytes(2_000_000)
        self.proxy.add("PUT", "/k", times=2, cut_request=700_000)
        self.probe("put", "k", self.file(data), "new")
        self.assertEqual(self.proxy.count("PUT"), 3)
        self.assertEqual(self.stored("k"), data)

    def test_cut_answers(self):
        data = random.randbytes(300_000)
        self.store("k", data)
        self.proxy.add("GET", "/k", times=2, cut_answer=100_000)
        self.proxy.add("GET", "/k", times=1, cut_answer=0)
        self.probe("get", "k", self.dir / "out", 300_000)
        self.assertEqual((self.dir / "out").read_bytes(), data)
        self.assertEqual(self.proxy.count("GET"), 4)

    def test_silence(self):
        self.proxy.add("PUT", "/k", delay=20)
        begin = time.monotonic()
        self.probe("put", "k", self.file(b"x"), "new", IDLE_MS="1000")
        self.assertLess(time.monotonic() - begin, 10)
        self.assertEqual(self.stored("k"), b"x")

    def test_many_at_once(self):
        for method in ("PUT", "GET"):
            for last in "37":
                self.proxy.add(method, f"{last} HTTP/1.1", times=20, status=500)
            self.proxy.add(method, "5 HTTP/1.1", times=10, drop_answer=True)
        self.probe("many", 12, 20)
        self.assertEqual(len(self.keys()), 240)
        for i in range(12):
            self.assertEqual(self.stored(f"many/{i}/7"), b"writer %d, object 7" % i)


class Downloads(Case):
    def setUp(self):
        super().setUp()
        self.data = random.randbytes(2_000_000)
        self.sha = hashlib.sha256(self.data).hexdigest()
        self.out = self.dir / "out"

    def assert_out(self, data):
        self.assertEqual(self.out.read_bytes(), data)
        self.assertEqual([path.name for path in self.dir.iterdir() if path.name != "in"], ["out"])

    def test_goes_on_where_it_was_cut(self):
        self.store("k", self.data)
        for _ in range(3):
            self.proxy.add("GET", "/k", cut_answer=500_000)
        self.probe("get-file", "k", self.out, self.sha)
        self.assert_out(self.data)
        self.assertEqual(self.proxy.count("GET", "Range: bytes="), 3)
        self.assertEqual(self.proxy.count("GET", "If-Match: "), 3)
        self.assertEqual(self.proxy.count("GET", "Range: bytes=1500000-"), 1)

    def test_an_object_that_changes_meanwhile(self):
        self.store("k", self.data)
        other = random.randbytes(1_500_000)
        self.proxy.add("GET", "/k", cut_answer=500_000)
        self.proxy.add("GET", "Range: ", call=lambda: self.store("k", other))
        self.probe("get-file", "k", self.out)
        self.assert_out(other)

    def test_a_later_process_goes_on(self):
        self.store("k", self.data)
        self.proxy.add("GET", "/k", cut_answer=1_200_000)
        self.proxy.add("GET", "Range: ", status=500, times=99)
        self.assertIn("retry", self.probe("get-file", "k", self.out, expect=1,
                                          RETRY_TOTAL_MS="500"))
        self.assertFalse(self.out.exists())
        self.assertEqual((self.dir / "out.part").stat().st_size, 1_200_000)
        self.proxy.faults.clear()
        self.proxy.log.clear()
        self.probe("get-file", "k", self.out)
        self.assert_out(self.data)
        self.assertEqual(self.proxy.count("GET", "Range: bytes=1200000-"), 1)

    def test_what_another_process_left_is_not_trusted(self):
        self.store("k", self.data)
        (self.dir / "out.part").write_bytes(b"something else")
        self.probe("get-file", "k", self.out)
        self.assert_out(self.data)
        self.out.unlink()
        # The right name and ETag, but other bytes: only the hash can tell.
        etag = self.client.head_object(Bucket=self.bucket, Key=self.prefix + "k")["ETag"]
        (self.dir / "out.part").write_bytes(b"something else")
        (self.dir / "out.part.tag").write_text(f"s3://{self.bucket}/{self.prefix}k\n{etag}")
        self.probe("get-file", "k", self.out, self.sha)
        self.assert_out(self.data)

    def test_a_wrong_hash(self):
        self.store("k", self.data)
        output = self.probe("get-file", "k", self.out, "0" * 64, expect=1)
        self.assertIn("error format reject", output)
        self.assertIn(self.sha, output)
        self.assertFalse(self.out.exists())

    def test_plain_http(self):
        for ranges in (True, False):
            for etags in (True, False):
                with self.subTest(ranges=ranges, etags=etags):
                    server = fault_proxy.FileServer(ranges, etags)
                    self.addCleanup(server.close)
                    server.files["/m.bin"] = self.data
                    proxy = fault_proxy.FaultProxy(server.address)
                    self.addCleanup(proxy.close)
                    proxy.add("GET", "/m.bin", times=2, cut_answer=900_000)
                    self.probe("fetch-file", proxy.url + "/m.bin?token=hidden", self.out, self.sha)
                    self.assert_out(self.data)
                    self.out.unlink()
                    output = self.probe("fetch-file", proxy.url + "/none?token=hidden", self.out,
                                        expect=1)
                    self.assertIn("error not_found reject", output)
                    self.assertNotIn("hidden", output)

    def test_presigned(self):
        self.store("k", self.data)
        url = self.client.generate_presigned_url(
            "get_object", Params={"Bucket": self.bucket, "Key": self.prefix + "k"})
        self.probe("fetch", url, self.out, 1 << 22)
        self.assertEqual(self.out.read_bytes(), self.data)
        self.assertIn("limit", self.probe("fetch", url, self.out, 1000, expect=1))
        output = self.probe("fetch", url.replace("Signature=", "Signature=0"), self.out, 1 << 22,
                            expect=1)
        self.assertIn("403", output)
        self.assertNotIn("Signature=", output)

    def test_s3_uri_of_any_bucket(self):
        self.client.create_bucket(Bucket="inputs")
        self.client.put_object(Bucket="inputs", Key="a b.png", Body=b"picture")
        self.probe("fetch", "s3://inputs/a b.png", self.out, 100)
        self.assertEqual(self.out.read_bytes(), b"picture")
        self.assertIn("error not_found reject",
                      self.probe("fetch", "s3://no-such-bucket/k", self.out, 100, expect=1))

    def test_private_addresses(self):
        server = fault_proxy.FileServer()
        self.addCleanup(server.close)
        server.files["/secret"] = b"secret"
        port = server.address[1]
        for host in ("127.0.0.1", "localhost", "127.1", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0"):
            output = self.probe("fetch", f"http://{host}:{port}/secret", self.out, 100, expect=1,
                                PUBLIC_ONLY="1")
            self.assertIn("error unsupported reject", output)
            self.assertIn("private network", output)


class Uploads(Case):
    def setUp(self):
        super().setUp()
        self.data = random.randbytes(2 * PART + 12345)

    def assert_nothing_left(self):
        uploads = self.client.list_multipart_uploads(Bucket=self.bucket)
        self.assertEqual(uploads.get("Uploads", []), [])

    def test_in_parts(self):
        self.probe("put", "k", self.file(self.data), "new")
        self.assertEqual(self.stored("k"), self.data)
        self.assertEqual(self.proxy.count("PUT", "partNumber"), 3)
        self.probe("put", "k", self.file(self.data), "new")
        self.assertIn("error conflict", self.probe("put", "k", self.file(self.data[1:]), "new",
                                                   expect=1))
        self.probe("put", "k", self.file(self.data[1:]), "replace")
        self.assertEqual(self.stored("k"), self.data[1:])
        self.assert_nothing_left()

    def test_only_the_failed_part_is_sent_again(self):
        self.proxy.add("PUT", "partNumber=2", status=500)
        self.proxy.add("PUT", "partNumber=2", cut_request=PART // 2)
        self.proxy.add("PUT", "partNumber=2", drop_answer=True)
        self.proxy.add("POST", "uploads=", status=503)
        self.probe("put", "k", self.file(self.data), "new")
        self.assertEqual(self.stored("k"), self.data)
        self.assertEqual([self.proxy.count("PUT", f"partNumber={i}") for i in (1, 2, 3)], [1, 4, 1])

    def test_a_lost_completion(self):
        self.proxy.add("POST", "uploadId=", drop_answer=True)
        self.probe("put", "k", self.file(self.data), "new")
        self.assertEqual(self.stored("k"), self.data)

    def test_giving_up_leaves_no_parts(self):
        self.proxy.add("PUT", "partNumber=2", times=999, status=500)
        output = self.probe("put", "k", self.file(self.data), "new", expect=1, RETRY_TOTAL_MS="1500")
        self.assertIn("error io retry", output)
        self.assertEqual(self.keys(), [])
        self.assertEqual(self.proxy.count("DELETE", "uploadId="), 1)
        self.assert_nothing_left()


class Store(Case):
    def manifest(self, *names):
        return json.dumps({"id": "j", "content": "1", "request": {},
                           "files": [{"name": name} for name in names]})

    def test_a_job(self):
        self.assertIn("not done", self.probe("store-is-done", "j"))
        self.probe("store-put", "j", "0-a.png", "A")
        self.probe("store-put", "j", "0-a.png", "A")
        self.probe("store-put", "j", "0-b.png", "B")
        self.probe("store-sweep", "j")  # another attempt may still want them
        self.assertEqual(self.keys(), ["results/j/0-a.png", "results/j/0-b.png"])
        self.probe("store-finish", "j", self.manifest("0-a.png"))
        self.probe("store-finish", "j", self.manifest("0-a.png"))
        self.assertIn("error conflict", self.probe("store-finish", "j", self.manifest("0-b.png"),
                                                   expect=1))
        self.assertEqual(self.probe("store-is-done", "j"), "done\nok\n")
        self.store("results/j2/0-b.png", b"another job's")
        self.probe("store-sweep", "j")
        self.assertEqual(self.keys(), ["results/j/0-a.png", "results/j/manifest.json",
                                       "results/j2/0-b.png"])
        for name, kind in (("0-a.png", "image/png"), ("manifest.json", "application/json")):
            head = self.client.head_object(Bucket=self.bucket,
                                           Key=f"{self.prefix}results/j/{name}")
            self.assertEqual(head["ContentType"], kind)

    def test_checkpoints(self):
        self.assertIn("error not_found", self.probe("store-get-blob", "j", "0", expect=1))
        self.probe("store-put-blob", "j", "0", "first")
        self.probe("store-put-blob", "j", "0", "second")
        self.assertIn("second", self.probe("store-get-blob", "j", "0"))
        self.assertEqual(self.keys(), ["checkpoints/j/0"])
        self.probe("store-remove-blob", "j", "0")
        self.probe("store-remove-blob", "j", "0")
        self.assertEqual(self.keys(), [])


class Outages(Case):
    """The server itself, not the proxy's play of it."""

    def setUp(self):
        super().setUp()
        self.written = 0  # objects of the first writer that were seen
        self.addCleanup(services, "start", "s3")  # whatever a test that fails leaves

    def writers(self, count, **changes):
        """Write and read objects until their standard input is closed."""
        child = subprocess.Popen([PROBE, "many", str(count), "0"], stdin=subprocess.PIPE,
                                 stdout=subprocess.PIPE, text=True,
                                 env=self.environment(ATELIER_S3_ENDPOINT=self.endpoint,
                                                      RETRY_TOTAL_MS="60000", **changes))
        self.addCleanup(child.stdout.close)
        self.addCleanup(child.kill)
        self.wait_for_more()
        return child

    def has(self, key):
        try:
            self.client.head_object(Bucket=self.bucket, Key=self.prefix + key)
            return True
        except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError):
            return False

    def wait_for_more(self):
        """Asks for single objects: a server that was killed may fail to list for good."""
        deadline, more = time.monotonic() + 60 * SLOWNESS, 0
        while more < 5:
            self.assertLess(time.monotonic(), deadline, "nothing more is written")
            if self.has(f"many/0/{self.written}"):
                self.written += 1
                more += 1
            else:
                time.sleep(0.05)

    def assert_written(self, child, count):
        self.wait_for_more()
        output = child.communicate(timeout=120 * SLOWNESS)[0]
        self.assertEqual(child.returncode, 0, output)
        rounds = [int(line) for line in output.splitlines() if line.isdecimal()]
        self.assertEqual(len(rounds), count, output)
        for i in range(count):
            for j in range(rounds[i]):
                self.assertTrue(self.has(f"many/{i}/{j}"), f"many/{i}/{j}")

    def test_killed_and_started_again(self):
        child = self.writers(4)
        services("kill", "s3")
        time.sleep(1)
        self.assertIsNone(child.poll())
        services("start", "s3")
        self.assert_written(child, 4)

    def test_silent_for_a_while(self):
        child = self.writers(4, IDLE_MS="1000")
        services("pause", "s3")
        time.sleep(3)
        services("resume", "s3")
        self.assert_written(child, 4)


if __name__ == "__main__":
    unittest.main()
