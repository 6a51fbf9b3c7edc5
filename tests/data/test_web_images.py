"""Images at addresses, from a server of our own: what is no image, too large or too slow."""

import contextlib
import http.server
import io
import threading
import time

import numpy as np
import PIL.Image
import pytest

from vit_jax import models
from vit_jax.data.photos import preprocess
from vit_jax.data.web_images import Limits, fetch, is_address
from vit_jax.errors import UserError


def picture() -> bytes:
    file = io.BytesIO()
    PIL.Image.new("RGB", (20, 10), (200, 30, 30)).save(file, "PNG")
    return file.getvalue()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/cat.png")
            self.end_headers()
            return
        if self.path == "/elsewhere":
            self.send_response(302)
            self.send_header("Location", "file:///etc/passwd")
            self.end_headers()
            return
        if self.path == "/none":
            self.send_error(404)
            return
        body, kind, length = picture(), "image/png", None
        if self.path == "/page":
            body, kind = b"<html>a page</html>", "text/html; charset=utf-8"
        elif self.path == "/hidden":
            body = b"\n<!DOCTYPE HTML><p>a page that is called an image"
        elif self.path == "/empty":
            body = b""
        elif self.path == "/cut":
            length = len(body) + 7
        elif self.path == "/large":
            length = 10**9
        self.send_response(200)
        self.send_header("Content-Type", kind)
        if self.path not in ("/endless", "/slow"):
            self.send_header("Content-Length", str(length or len(body)))
        self.end_headers()
        if self.path == "/slow":
            for _ in range(30):
                self.wfile.write(b"x")
                time.sleep(0.05)
        for _ in range(1000 if self.path == "/endless" else 1):
            self.wfile.write(body * (100 if self.path == "/endless" else 1))

    def handle(self):
        with contextlib.suppress(ConnectionError):  # who asked has gone
            super().handle()

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def test_an_image_is_what_a_file_is(server):
    assert fetch(f"{server}/cat.png") == fetch(f"{server}/moved") == picture()
    config = models.get_config("debug", image_size=8, patch_size=4)
    here = preprocess(config, [picture()])
    assert np.array_equal(preprocess(config, f"{server}/cat.png"), here)
    assert is_address("HTTPS://x/y.png") and not is_address("cat.png") and not is_address("ftp://x")


@pytest.mark.parametrize(
    "path, limits, message",
    [
        ("/page", {}, "is a web page, not an image"),
        ("/hidden", {}, "is a web page, not an image"),
        ("/none", {}, "returns 404"),
        ("/empty", {}, "is empty"),
        ("/cut", {}, "ended after|cannot be fetched"),
        ("/large", {}, "has more than 52,428,800 bytes"),
        ("/endless", dict(max_bytes=5000), "has more than 5,000 bytes"),
        ("/slow", dict(seconds=0.3), "took more than 0.3 s"),
        ("/elsewhere", {}, "returns 302"),
    ],
)
def test_bad_answers_are_refused(server, path, limits, message):
    begun = time.monotonic()
    with pytest.raises(UserError, match=message) as raised:
        fetch(server + path, Limits(**limits))
    assert time.monotonic() - begun < 1.5 and str(raised.value).count("\n") == 0
    assert str(raised.value).count(server) == 1  # said once


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:1/x.png", "http://[::1/x.png", "http://", "http://no such/x"]
)
def test_unreachable_addresses_are_named(address):
    with pytest.raises(UserError, match="cannot be fetched"):
        fetch(address, Limits(seconds=2))


def test_an_image_of_exactly_the_limit_is_read(server):
    size = len(picture())
    assert fetch(f"{server}/cat.png", Limits(max_bytes=size)) == picture()
    with pytest.raises(UserError, match="has more than"):
        fetch(f"{server}/cat.png", Limits(max_bytes=size - 1))
