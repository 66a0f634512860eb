"""Callbacks: who is told of a job's end, by receivers that are slow, broken, hostile or down, and
under a leader that dies. Signatures are checked by the standard library alone.

    tests/fault/test_callbacks.py
"""

import base64
import hashlib
import hmac
import http.server
import json
import os
import pathlib
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

from fleet import BUILD, SLOWNESS, Fleet, job
from test_secure import expect, make_certificates

TIMEOUT_S = 15 * SLOWNESS
OLD, NEW = (base64.b64encode(os.urandom(size)).decode() for size in (24, 32))


class Receiver(threading.Thread):
    """Notes every call and answers by the path: /503/2 fails twice, /hang says nothing, /shut
    refuses until it is opened, /301 redirects, /410 is gone, anything else is content."""

    def __init__(self, folder=None):
        super().__init__(daemon=True)
        self.calls, self.open, self.ended = [], threading.Event(), threading.Event()
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                status = receiver.answer(self.path, dict(self.headers), body)
                self.send_response(status)
                self.send_header("content-length", "0")
                if status == 301:
                    self.send_header("location", "/moved")
                self.end_headers()

            def log_message(self, *words):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        if folder:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(folder / "server.pem", folder / "server.key")
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
            self.url = self.url.replace("http:", "https:")

    def run(self):
        self.server.serve_forever()

    def answer(self, path, headers, body):
        self.calls.append((path, headers, body, time.time()))
        word, *rest = path.removeprefix("/").split("/")
        if word == "hang":
            self.ended.wait(60)
        if word == "shut":
            return 200 if self.open.is_set() else 503
        if word == "503":
            return 503 if len(self.to(path)) <= int(rest[0]) else 204
        return int(word) if word.isdigit() else 204

    def to(self, path):
        return [call for call in list(self.calls) if call[0] == path]


def verify(call, secrets):
    """As the specification has it."""
    _, headers, body, at = call
    headers = {name.lower(): value for name, value in headers.items()}
    expect(headers["content-type"] == "application/json", f"sent as {headers['content-type']}")
    stamp, name = headers["webhook-timestamp"], headers["webhook-id"]
    expect(abs(int(stamp) - at) < 5, f"stamped {stamp} at {at}")
    expect("." not in name, f"a full stop in {name}")
    signed = f"{name}.{stamp}.".encode() + body
    given = [text.partition(",") for text in headers["webhook-signature"].split(" ")]
    made = [("v1", ",", base64.b64encode(hmac.new(base64.b64decode(secret), signed,
                                                  hashlib.sha256).digest()).decode())
            for secret in secrets]
    expect(given == made, f"signed {given}, not {made}")
    return name


def check_call(fleet, call, name, state, secrets=(NEW, OLD)):
    """Whole and signed: the very bytes of the terminal record. Returns the webhook's id."""
    records = [record.value for record in fleet.state.records[name.encode()]]
    expect(call[2] in records, f"{name}: told {call[2]}, the journal has {records}")
    expect(json.loads(call[2])["state"] == state, f"{name}: told {call[2]}, not {state}")
    return verify(call, secrets)


def owed(fleet):
    """What the journal has as owed: job to record."""
    last = [fleet.state.records[key.encode()][-1] for key in fleet.state.keys()
            if key.startswith("@callback:")]
    return {json.loads(record.value)["id"]: record for record in last if record.value}


def metric(fleet, name):
    text = urllib.request.urlopen(f"http://{fleet.redis.hget('cell', 'api')}/metrics",
                                  timeout=10).read().decode()
    return next(float(line.split()[1]) for line in text.splitlines()
                if line.startswith(f"{name} "))


def check_refusals(fleet):
    for i, (url, word) in enumerate((
            ("http://example.org/x", "https://"), ("https://10.0.0.1/x", "private"),
            ("https://user:secret@example.org/x", "password"), ("not a url", "https://"))):
        name = f"refused{i}"
        fleet.send(json.dumps(job(id=name, callback=url)).encode(), name.encode())
        letter = fleet.until(lambda: fleet.dlq.records.get(name.encode()), 30, f"refusal of {url}")
        problems = json.loads(dict(letter[0].headers)["atelier-problems"])
        expect([problem["field"] for problem in problems] == ["callback"] and
               word in problems[0]["problem"], f"{url}: {problems}")


def check_deliveries(fleet, plain, tls):
    """Over http and https, after failures; a receiver that hangs is no one else's trouble."""
    later = "2099-01-01T00:00:00Z"
    fleet.produce([job(id="hang", callback=f"{plain.url}/hang"),
                   job(id="flaky", callback=f"{tls.url}/503/2", images=2),
                   job(id="drawn", callback=f"{tls.url}/drawn"),
                   job(id="held", callback=f"{tls.url}/held", not_before=later),
                   job(id="moved", callback=f"{tls.url}/301"),
                   job(id="gone", callback=f"{tls.url}/410"),
                   job(id="inside", callback="https://receiver.localhost/")])
    fleet.control(action="cancel", job="held")
    others = [f"other{i}" for i in range(4)]
    fleet.until(lambda: plain.to("/hang"), 30, "the call that hangs")
    fleet.produce([job(id=name, callback=f"{tls.url}/{name}") for name in others])
    fleet.until(lambda: len(tls.to("/503/2")) == 3 and all(
        tls.to(f"/{name}") for name in (*others, "drawn", "held")), TIMEOUT_S, "the calls")
    fleet.wait([*others, "hang", "flaky", "drawn", "moved", "gone", "inside"])
    waited = max(tls.to(f"/{name}")[0][3] for name in others) - plain.to("/hang")[0][3]
    expect(waited < TIMEOUT_S, f"one that hangs has kept the others waiting, {waited} s")
    check_call(fleet, tls.to("/drawn")[0], "drawn", "succeeded")
    check_call(fleet, tls.to("/held")[0], "held", "cancelled")
    tries = [check_call(fleet, call, "flaky", "succeeded") for call in tls.to("/503/2")]
    expect(len(set(tries)) == 1, f"a repeat has another id: {tries}")
    fleet.until(lambda: list(owed(fleet)) == ["hang"], 20,
                "nothing but what hangs to be owed")
    for name in ("301", "410"):
        expect(len(tls.to(f"/{name}")) == 1, f"{name} was tried again")
    expect(not tls.to("/moved"), "a redirect was followed")
    expect(metric(fleet, "atelier_callbacks_given_up_total") == 3, "not three were given up")
    expect(metric(fleet, "atelier_callbacks_waiting") == 1, "not one waits")
    expect(metric(fleet, "atelier_callback_retries_total") >= 2, "retries are not counted")
    expect("private network" in fleet.log(fleet.leader()), "a private address was not refused")
    said = subprocess.run([str(BUILD / "cli" / "atelier"), "explain", "hang"], text=True,
                          stdout=subprocess.PIPE, env=fleet.environment(), timeout=30).stdout
    expect("callback  waiting" in said, f"explain says {said}")


def check_a_leader_that_dies(fleet, plain):
    """Between the terminal record and its delivery."""
    fleet.produce([job(id="late", callback=f"{plain.url}/shut")])
    fleet.wait(["late"])
    fleet.until(lambda: plain.to("/shut"), 20, "a first try")
    record = fleet.until(lambda: owed(fleet).get("late"), 20, "the journal to have it")
    expect(record.value == fleet.state.records[b"late"][-1].value and
           record.headers == [("atelier-callback", f"{plain.url}/shut".encode())],
           f"the journal holds {record}")
    old = fleet.leader()
    fleet.kill(old)
    before = len(plain.to("/shut"))
    fleet.redis.flushall()
    plain.open.set()
    fleet.until(lambda: len(plain.to("/shut")) > before, 40, "the next leader's call")
    names = {check_call(fleet, call, "late", "succeeded") for call in plain.to("/shut")}
    expect(len(names) == 1, f"the next leader gives it another id: {names}")
    fleet.until(lambda: "late" not in owed(fleet), 20, "it to be settled")
    fleet.start(old)


def main():
    with tempfile.TemporaryDirectory() as temp:
        folder = pathlib.Path(temp)
        make_certificates(folder)
        (folder / "secrets").write_text(f"whsec_{NEW}\nwhsec_{OLD}\n")
        plain, tls = Receiver(), Receiver(folder)
        plain.start()
        tls.start()
        fleet = Fleet(cell="callbacks", classes=("g8i", "g8i"), coordinator_options=(
            "--callback-secrets-file", str(folder / "secrets"), "--callback-allow", "127.0.0.1",
            "--callback-ca-file", str(folder / "ca.pem"), "--callback-timeout", str(TIMEOUT_S)))
        try:
            fleet.up()
            check_refusals(fleet)
            check_deliveries(fleet, plain, tls)
            check_a_leader_that_dies(fleet, plain)
            plain.ended.set()
            fleet.audit(allow=("succeeded", "cancelled"))
            for secret in (OLD, NEW, "secret@"):
                expect(secret not in "".join(map(fleet.log, fleet.names)), "a log shows a secret")
        except BaseException:
            print(f"the logs are in {fleet.dir}", file=sys.stderr)
            fleet.keep = True
            raise
        finally:
            plain.ended.set()
            fleet.down()
    print("callbacks: signed, repeated, refused, given up, made by the next leader")


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    sys.exit(main())
