"""Secrets and encryption: S3, Kafka and, where hiredis can, Redis over TLS with an authority of our
own, Kafka and Redis with passwords, nothing secret in logs or command lines.

    tests/fault/test_secure.py
"""

import os
import pathlib
import socket
import ssl
import subprocess
import sys
import tempfile
import threading

from fleet import BUILD, Fleet, job

PASSWORD = "correct-horse-battery-staple"


def expect(condition, message):
    if not condition:
        raise AssertionError(message)


def run(*words):
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def make_certificates(folder):
    """ca.pem, and server.pem and server.key that it has signed for 127.0.0.1."""
    at = lambda name: str(folder / name)    # noqa: E731
    run("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj",
        "/CN=test authority", "-keyout", at("ca.key"), "-out", at("ca.pem"))
    run("openssl", "req", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=127.0.0.1", "-keyout",
        at("server.key"), "-out", at("server.csr"))
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1")
    run("openssl", "x509", "-req", "-in", at("server.csr"), "-CA", at("ca.pem"), "-CAkey",
        at("ca.key"), "-CAcreateserial", "-days", "2", "-extfile", at("names"), "-out",
        at("server.pem"))


class TlsProxy(threading.Thread):
    """Ends TLS before a plain server."""

    def __init__(self, folder, target):
        super().__init__(daemon=True)
        self.target = target
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(folder / "server.pem", folder / "server.key")
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"https://127.0.0.1:{self.socket.getsockname()[1]}"

    def run(self):
        while True:
            client, _ = self.socket.accept()
            threading.Thread(target=self.serve, args=(client,), daemon=True).start()

    def serve(self, client):
        try:
            with self.context.wrap_socket(client, server_side=True) as inner, \
                    socket.create_connection(self.target) as outer:
                back = threading.Thread(target=self.pump, args=(outer, inner), daemon=True)
                back.start()
                self.pump(inner, outer)
                back.join()
        except OSError:
            pass    # a client that does not trust us, or has gone

    @staticmethod
    def pump(source, sink):
        try:
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass


def refused(fleet, program, **settings):
    """What a program says that cannot start like this."""
    done = subprocess.run([str(BUILD / program / f"atelier-{program}"), "--models",
                           str(fleet.models)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True, timeout=60, env={**fleet.environment(), **settings})
    expect(done.returncode != 0, f"{program} starts with {settings}")
    return done.stdout


def has_redis_tls():
    said = subprocess.run([str(BUILD / "cli" / "atelier"), "workers", "--redis-url",
                           "rediss://127.0.0.1:1"], stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True).stdout
    return "hiredis does not have" not in said


def cli(fleet, **settings):
    """What the client says that cannot reach Redis like this."""
    done = subprocess.run([str(BUILD / "cli" / "atelier"), "workers"], stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, timeout=60,
                          env={**fleet.environment(), **settings})
    expect(done.returncode != 0, f"workers are shown with {settings}")
    return done.stdout


def command_lines(fleet):
    return "".join(pathlib.Path(f"/proc/{p.pid}/cmdline").read_text() for p in
                   fleet.processes.values())


def main():
    fleet = Fleet(cell="secure", coordinators=1, classes=("g8i",))
    with tempfile.TemporaryDirectory() as temp:
        folder = pathlib.Path(temp)
        make_certificates(folder)
        os.environ["ATELIER_SERVICES_TLS"] = temp
        fleet.services("up")
        settings = dict(line.removeprefix("export ").split("=", 1)
                        for line in fleet.services("env").splitlines())
        hidden = dict(line.split("=", 1) for line in
                      pathlib.Path(fleet.services_dir, "settings").read_text().splitlines())
        port = int(settings["ATELIER_S3_ENDPOINT"].rsplit(":", 1)[1])
        proxy = TlsProxy(folder, ("127.0.0.1", port))
        proxy.start()
        address = settings["ATELIER_REDIS_URL"].removeprefix("redis://")
        redis_proxy = TlsProxy(folder, ("127.0.0.1", int(address.split(":")[1])))
        redis_proxy.start()
        scheme = "redis://"
        if has_redis_tls():
            scheme, address = "rediss://", redis_proxy.url.removeprefix("https://")
        properties = (f"security.protocol=SASL_SSL;ssl.ca.location={folder}/ca.pem;"
                      f"sasl.mechanism=PLAIN;sasl.username=atelier;sasl.password=")
        plain = fleet.environment

        def environment():
            return {**plain(), "ATELIER_S3_ENDPOINT": proxy.url,
                    "ATELIER_S3_CA_FILE": str(folder / "ca.pem"),
                    "ATELIER_KAFKA_BROKERS": f"127.0.0.1:{hidden['kafka_tls_port']}",
                    "ATELIER_KAFKA_PROPERTIES": properties + hidden["kafka_password"],
                    "ATELIER_REDIS_CA_FILE": str(folder / "ca.pem"),
                    "ATELIER_REDIS_URL": f"{scheme}atelier:{PASSWORD}@{address}"}

        fleet.environment = environment
        first = Fleet.start

        def start(name):    # the user must be there before the first program
            fleet.redis.execute_command("ACL", "SETUSER", "atelier", "on", f">{PASSWORD}", "~*",
                                        "&*", "+@all")
            first(fleet, name)

        fleet.start = start
        fleet.up()
        try:
            fleet.produce([job(id=f"tls{i}") for i in range(4)])
            fleet.wait([f"tls{i}" for i in range(4)])
            fleet.audit()

            said = refused(fleet, "worker", ATELIER_S3_CA_FILE="")
            expect("certificate" in said, f"without the authority: {said}")
            said = refused(fleet, "worker", AWS_SECRET_ACCESS_KEY="wrong")
            expect("s3" in said.lower() and "wrong" not in said, f"with a wrong key: {said}")
            said = refused(fleet, "coordinator", ATELIER_KAFKA_PROPERTIES=properties + "wrong")
            expect("uthentication" in said and "wrong" not in said, f"with a wrong password: {said}")
            for program in ("worker", "coordinator") if scheme == "redis://" else ():
                said = refused(fleet, program, ATELIER_REDIS_URL=f"rediss://u:{PASSWORD}@localhost")
                expect("TLS" in said, f"{program} with rediss: {said}")
                expect(PASSWORD not in said, f"{program} shows the password: {said}")
            if scheme == "rediss://":
                said = cli(fleet, ATELIER_REDIS_CA_FILE="/etc/hostname")
                expect("/etc/hostname" in said, f"with an authority that is none: {said}")
                said = cli(fleet, ATELIER_REDIS_CA_FILE="")
                expect("certificate" in said, f"without the authority: {said}")
                host = address.replace("127.0.0.1", "localhost")
                said = cli(fleet, ATELIER_REDIS_URL=f"rediss://atelier:{PASSWORD}@{host}")
                expect("certificate" in said, f"under another name: {said}")

            logs = "".join(fleet.log(name) for name in fleet.names)
            for secret in (PASSWORD, hidden["kafka_password"],
                           fleet.settings["AWS_SECRET_ACCESS_KEY"]):
                expect(secret not in logs, "a log shows a secret")
                expect(secret not in command_lines(fleet), "a command line shows a secret")
        finally:
            fleet.redis.execute_command("ACL", "DELUSER", "atelier")
            fleet.down()
    print(f"S3 and Kafka{' and Redis' if scheme == 'rediss://' else ''} over TLS with our own "
          "authority, Kafka and Redis with users, no secret shown")


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    sys.exit(main())
