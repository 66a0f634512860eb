"""An HTTP proxy that spoils chosen exchanges, and a file server to put behind it.

    proxy = FaultProxy(("127.0.0.1", port))
    proxy.add("PUT", "manifest", status=503, times=2)

Faults, each for the first `times` requests that match a method and a part of the request's head:
    status=503          answers that without asking the server (code: S3's error code)
    cut_request=1000    closes the connection after so many bytes of the request's body
    drop_answer=True    lets the server do it and closes the connection instead of answering
    cut_answer=1000     closes the connection after so many bytes of the answer's body
    delay=1.5           seconds before the request goes on
    call=function       before the request goes on
`log` has every request's method, head and what became of it. Standard library only.
"""

import contextlib
import hashlib
import http.server
import re
import socket
import socketserver
import struct
import threading
import time


class Fault:
    def __init__(self, method, part, times, status=None, code="InternalError", cut_request=None,
                 drop_answer=False, cut_answer=None, delay=0, call=None):
        self.method, self.part, self.times = method, part, times
        self.status, self.code = status, code
        self.cut_request, self.drop_answer, self.cut_answer = cut_request, drop_answer, cut_answer
        self.delay, self.call = delay, call


class Cut(Exception):
    """The connection is to be closed now."""


class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        try:
            while self.exchange():
                pass
        except (Cut, ConnectionError, socket.timeout):
            # A reset, so that the client cannot take it for a proper end.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def finish(self):
        try:
            super().finish()
        except OSError:
            pass

    def exchange(self):
        head = self.read_head()
        if head is None:
            return False
        method = head.split(b" ", 1)[0].decode()
        fault = self.server.proxy.pick(method, head.decode("latin-1"))
        if fault and fault.delay:
            time.sleep(fault.delay)
        if fault and fault.call:
            fault.call()
        length = int((re.findall(rb"(?i)\r\ncontent-length: *(\d+)", head) or [b"0"])[0])
        if re.search(rb"(?i)\r\nexpect: *100", head):
            self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if fault and fault.cut_request is not None:
            self.rfile.read(min(length, fault.cut_request))
            raise Cut
        body = self.rfile.read(length)
        if len(body) < length:
            return False
        if fault and fault.status:
            self.refuse(method, fault)
            return True
        # One write at a time: s3proxy looks whether the object exists and then writes it, so that two
        # creators at the same moment may both succeed, which no S3 service allows.
        with self.server.proxy.writing if method == "PUT" else contextlib.nullcontext():
            answer = self.forward(head, body)
        if fault and fault.drop_answer:
            raise Cut
        begin = answer.index(b"\r\n\r\n") + 4
        if fault and fault.cut_answer is not None:
            self.wfile.write(answer[:begin + fault.cut_answer])
            self.wfile.flush()
            time.sleep(0.1)  # a reset would take away what is not read yet
            raise Cut
        self.wfile.write(answer)
        return True

    def read_head(self):
        lines = []
        while True:
            line = self.rfile.readline()
            if not line:
                return None
            lines.append(line)
            if line == b"\r\n":
                return b"".join(lines)

    def refuse(self, method, fault):
        text = (f'<?xml version="1.0"?><Error><Code>{fault.code}</Code>'
                f"<Message>by the fault proxy</Message></Error>").encode()
        head = f"HTTP/1.1 {fault.status} Fault\r\nContent-Length: {len(text)}\r\n\r\n"
        self.wfile.write(head.encode() + (b"" if method == "HEAD" else text))

    def forward(self, head, body):
        head = re.sub(rb"(?i)\r\nexpect:[^\r]*", b"", head)
        head = head[:-2] + b"Connection: close\r\n\r\n"
        with socket.create_connection(self.server.proxy.upstream) as upstream:
            upstream.sendall(head + body)
            answer = b""
            while block := upstream.recv(1 << 16):
                answer += block
        # What ended with the connection needs a length where the connection stays.
        begin = answer.index(b"\r\n\r\n") + 4
        if not re.search(rb"(?i)\r\n(content-length|transfer-encoding):", answer[:begin]) and \
                not head.startswith(b"HEAD ") and answer.split(b" ", 2)[1] != b"204":
            length = b"Content-Length: %d\r\n\r\n" % (len(answer) - begin)
            answer = answer[:begin - 2] + length + answer[begin:]
        return re.sub(rb"(?i)\r\nconnection: *close", b"", answer, count=1)


class Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 64

    def handle_error(self, request, client_address):
        pass  # an upstream that is down is part of some tests


class FaultProxy:
    def __init__(self, upstream):
        self.upstream = upstream
        self.faults, self.log = [], []
        self.lock, self.writing = threading.Lock(), threading.Lock()
        self.server = Server(("127.0.0.1", 0), Handler)
        self.server.proxy = self
        self.url = "http://127.0.0.1:%d" % self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def add(self, method, part, times=1, **what):
        self.faults.append(Fault(method, part, times, **what))

    def pick(self, method, head):
        with self.lock:
            self.log.append((method, head))
            for fault in self.faults:
                if fault.times > 0 and fault.method == method and fault.part in head:
                    fault.times -= 1
                    return fault
        return None

    def count(self, method, part=""):
        """How many requests of that method had that in their head."""
        with self.lock:
            return sum(1 for name, head in self.log if name == method and part in head)


class FileHandler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        data = self.server.files.get(self.path.split("?")[0])
        if data is None:
            self.send_error(404)
            return
        etag = '"%s"' % hashlib.md5(data).hexdigest()
        if self.headers.get("If-Match", etag) != etag:
            self.send_error(412)
            return
        begin = 0
        wanted = re.match(r"bytes=(\d+)-$", self.headers.get("Range", ""))
        if wanted and self.server.ranges:
            begin = int(wanted[1])
            if begin >= len(data):
                self.send_error(416)
                return
        self.send_response(206 if begin else 200)
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(data) - 1}/{len(data)}")
        if self.server.etags:
            self.send_header("ETag", etag)
        self.send_header("Content-Length", str(len(data) - begin))
        self.end_headers()
        self.wfile.write(data[begin:])

    def log_message(self, *args):
        pass


class FileServer:
    """Serves `files`, bytes by path, with or without ranges and ETags."""

    def __init__(self, ranges=True, etags=True):
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), FileHandler)
        self.server.daemon_threads = True
        self.server.files, self.server.ranges, self.server.etags = {}, ranges, etags
        self.files = self.server.files
        self.address = self.server.server_address
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()
