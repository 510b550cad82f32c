"""A proxy before an S3 server that does what stores and networks do on a bad day, and counts what it lets through."""

import http.client
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

ERROR = b"<?xml version='1.0'?><Error><Code>%s</Code><Message>Please reduce your request rate.</Message></Error>"
STATUS = {"SlowDown": 503, "TooManyRequests": 429, "InternalError": 500, "NoXML": 503}
PIECES = 10  # of a slow answer
BETWEEN = 0.02  # seconds


@dataclass
class Proxy:
    """A proxy; `fault` says what befalls a request, by method, path and how often that has come: "" is nothing.

    "SlowDown" and the other STATUS: an error; "drop": no answer; "cut": the connection ends within the body; "short":
    half of the body, as if that were all; "slow": in pieces.
    """

    port: int
    """Of the server."""
    fault: Callable[[str, str, int], str] = lambda method, path, number: ""
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    """Method, path and range of each."""
    served: int = 0
    """Bytes of bodies of objects."""

    def start(self) -> str:
        """Return the URL."""
        handler = type("_Handler", (_Handler,), {"proxy": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        Thread(target=self.server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def stop(self) -> None:
        """End it."""
        self.server.shutdown()
        self.server.server_close()

    def reset(self) -> None:
        """Forget all."""
        self.fault = lambda method, path, number: ""
        self.requests, self.served = [], 0

    def reads(self) -> list[str]:
        """Return the ranges of the reads of objects."""
        return [given for method, _, given in self.requests if method == "GET" and given]


class _Handler(BaseHTTPRequestHandler):
    proxy: Proxy
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        proxy, given = self.proxy, self.headers.get("Range", "")
        number = sum(method == self.command and path == self.path for method, path, _ in proxy.requests)
        proxy.requests.append((self.command, self.path, given))
        fault = proxy.fault(self.command, self.path, number)
        if fault == "drop":
            self.close_connection = True
            return
        if fault in STATUS:
            body = b"<html>busy" if fault == "NoXML" else ERROR % fault.encode()
            self.answer(STATUS[fault], {"Content-Type": "application/xml"}, body)
            return
        server = http.client.HTTPConnection("127.0.0.1", proxy.port)
        headers = {name: value for name, value in self.headers.items() if name.lower() != "connection"}
        server.request(self.command, self.path, headers=headers)
        reply = server.getresponse()
        body = reply.read()
        kept = {
            name: value for name, value in reply.getheaders() if re.match("etag|last-mod|content-(ty|ra)", name, re.I)
        }
        length = reply.getheader("Content-Length", "0") if self.command == "HEAD" else ""
        server.close()
        if given:
            proxy.served += len(body)
        self.answer(reply.status, kept, body, fault, length)

    do_HEAD = do_GET  # noqa: N815

    def answer(self, status: int, headers: dict[str, str], body: bytes, fault: str = "", length: str = "") -> None:
        body = body[: len(body) // 2] if fault == "short" else body
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", length or str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault == "cut":
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
        elif fault == "slow":
            step = -(-len(body) // PIECES) or 1
            for start in range(0, len(body), step):
                self.wfile.write(body[start : start + step])
                self.wfile.flush()
                time.sleep(BETWEEN)
        else:
            self.wfile.write(body)
