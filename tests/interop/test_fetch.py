"""Downloads from a real local server: resumed, checked, kept; and what is said when it fails."""

import base64
import contextlib
import hashlib
import http.server
import math
import os
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import numpy as np
import pytest

from vit_jax import models
from vit_jax.errors import UserError
from vit_jax.interop import fetch, huggingface, load, published

CONTENT = bytes(range(256)) * 5000


class Server(http.server.BaseHTTPRequestHandler):
    """/busy answers 503 twice; /page is a web page; /slow sends a byte at a time, for ever.

    /file is sent whole or from a range; /cut breaks off after half, twice; /chunks has no length
    and breaks off once; /403, /404, /bad.
    """

    requests: list = []  # noqa: RUF012 (shared by the handlers on purpose)

    def do_GET(self):
        start = int((self.headers.get("Range") or "bytes=0-")[6:-1])
        Server.requests.append((self.path, start))
        if self.path in ("/403", "/404"):
            self.send_error(int(self.path[1:]))
            return
        if self.path == "/busy" and len(Server.requests) < 3:
            self.send_error(503)
            return
        if self.path.startswith("/page"):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"\n<!DOCTYPE html><title>Log in</title>")
            return
        if self.path == "/slow":
            self.send_response(200)
            self.end_headers()
            with contextlib.suppress(OSError):
                while True:
                    self.wfile.write(b"x")
                    time.sleep(0.01)
        if self.path == "/chunks":
            self.protocol_version = "HTTP/1.1"
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"3\r\nabc\r\n" + b"0\r\n\r\n" * (len(Server.requests) > 1))
            self.close_connection = True
            return
        digest = hashlib.md5(b"other" if self.path == "/bad" else CONTENT).digest()
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.send_header("x-goog-hash", f"md5={base64.b64encode(digest).decode()}")
        self.end_headers()
        body = CONTENT[start:]
        broken = self.path == "/cut" and len(Server.requests) < 3
        self.wfile.write(body[: len(body) // 2] if broken else body)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch, tmp_path):
    Server.requests = []
    monkeypatch.setenv("VIT_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fetch, "time", types.SimpleNamespace(**vars(time) | {"sleep": lambda _: 0}))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def test_a_file_is_downloaded_once(server):
    path = fetch.fetch(f"{server}/file")
    assert path.read_bytes() == CONTENT
    assert fetch.fetch(f"{server}/file") == path
    assert len(Server.requests) == 1


def test_a_broken_download_goes_on_where_it_stopped(server):
    assert fetch.fetch(f"{server}/cut").read_bytes() == CONTENT
    starts = [start for _, start in Server.requests]
    assert len(starts) == 3 and starts[0] == 0 < starts[1] < starts[2]


def test_a_download_in_chunks_is_tried_again(server):
    assert fetch.fetch(f"{server}/chunks").read_bytes() == b"abc"
    assert len(Server.requests) == 2


def test_processes_of_a_job_download_a_file_once(monkeypatch, tmp_path):
    monkeypatch.setenv("VIT_JAX_CACHE", str(tmp_path))
    calls = []

    def download(url, target, source):
        calls.append(url)
        time.sleep(0.1)
        target.write_bytes(b"")

    monkeypatch.setattr(fetch, "download", download)
    threads = [threading.Thread(target=fetch.fetch, args=("http://host/x",)) for _ in range(3)]
    for step in (threading.Thread.start, threading.Thread.join):
        for thread in threads:
            step(thread)
    assert len(calls) == 1 and [path.name[-2:] for path in tmp_path.iterdir()] == ["-x"]


def test_after_a_failed_download_the_others_try_one_at_a_time(monkeypatch, tmp_path):
    monkeypatch.setenv("VIT_JAX_CACHE", str(tmp_path))
    running, most, late = [], [], []

    def download(url, target, source):
        running.append(url)
        if not late:  # one comes after the first has failed, which the others were waiting for
            late.append(threading.Timer(0.15, attempt))
            late[0].start()
        time.sleep(0.1)
        most.append(len(running))
        running.pop()
        raise UserError("it cannot be downloaded")

    def attempt():
        with pytest.raises(UserError):
            fetch.fetch("http://host/x")

    monkeypatch.setattr(fetch, "download", download)
    threads = [threading.Thread(target=attempt) for _ in range(3)]
    for step in (threading.Thread.start, threading.Thread.join):
        for thread in threads:
            step(thread)
    late[0].join()
    assert most == [1, 1, 1, 1] and not list(tmp_path.iterdir())


def test_the_time_of_a_stopped_process_is_no_slow_download(monkeypatch):
    class Response:
        """Ten kilobytes a second, and the process is stopped for an hour before each part."""

        now, chunks = 0, 5

        def read1(self, size):
            self.now, self.chunks = self.now + 3601, self.chunks - 1
            return b"x" * 10_000 if self.chunks else b""

    response = Response()
    clock = types.SimpleNamespace(monotonic=lambda: response.now)
    monkeypatch.setattr(fetch, "time", clock)
    assert len(list(fetch._chunks(response, "x"))) == 4


def test_a_wrong_checksum_is_not_kept(server, tmp_path):
    with pytest.raises(UserError, match="arrived damaged"):
        fetch.fetch(f"{server}/bad")
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    "path", ["../../x.npz", "a/../../x.npz", "%2e%2e/x.npz", "..", "a\\..\\x.npz"]
)
def test_no_url_names_a_file_outside_the_cache(monkeypatch, tmp_path, path):
    monkeypatch.setenv("VIT_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fetch, "download", lambda url, target, source: target.write_bytes(b""))
    (tmp_path / "cache").mkdir()
    found = fetch.fetch(f"http://host/{path}")
    assert found.resolve().parent == (tmp_path / "cache").resolve()
    assert found.name.endswith(path[-3:]) and found != fetch.fetch("http://other/x.npz")


def test_a_busy_server_is_retried(server):
    assert fetch.fetch(f"{server}/busy").read_bytes() == CONTENT
    assert len(Server.requests) == 3


@pytest.mark.parametrize("path", ["page", "page.npz"])
def test_a_web_page_is_refused_and_not_kept(server, tmp_path, path):
    with pytest.raises(UserError, match="the server sent a web page with that name"):
        fetch.fetch(f"{server}/{path}")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_file_that_is_not_an_archive_is_not_kept(server, tmp_path):
    with pytest.raises(UserError, match="the server sent something else"):
        fetch.fetch(f"{server}/file.npz")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_very_slow_download_is_given_up(server, monkeypatch):
    monkeypatch.setattr(fetch, "WINDOW", 0.1)
    with pytest.raises(UserError, match=r"only \d+ bytes per second"):
        fetch.fetch(f"{server}/slow")


def test_an_endless_download_is_refused(server, monkeypatch):
    monkeypatch.setattr(fetch, "LARGEST", 10)
    with pytest.raises(UserError, match="does not end"):
        fetch.fetch(f"{server}/slow")


@pytest.mark.parametrize("code, reason", [(403, "access is denied"), (404, "does not exist")])
def test_refusals_are_explained(server, code, reason, monkeypatch):
    source = f"{server}/{code}"
    entry = published.Published("B/16", 224, 21_843, (source, "hf:org/name"), "", 1)
    monkeypatch.setitem(published.PUBLISHED, "some-weights", entry)
    with pytest.raises(UserError, match=rf"{reason} \(HTTP {code}\).*some-weights.*hf:org/name"):
        fetch.fetch(source)


def test_no_network_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("VIT_JAX_CACHE", str(tmp_path))
    monkeypatch.setattr(fetch.time, "sleep", lambda seconds: None)
    with pytest.raises(UserError, match="cannot be downloaded") as error:
        fetch.fetch("http://127.0.0.1:9/nothing.npz")
    assert "\n" not in str(error.value)


def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("VIT_JAX_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UserError, match=r"cannot be written .*; set VIT_JAX_CACHE to another"):
        fetch.fetch("http://host/x")


def test_published_names(monkeypatch, tmp_path):
    for name, entry in published.PUBLISHED.items():
        assert name.startswith(entry.variant) and entry.sources
        assert all(fetch.is_remote(source) for source in entry.sources)
    assert published.PUBLISHED["R50+B/16-imagenet21k"].sources == (
        "gs://vit_models/imagenet21k/R50+ViT-B_16.npz",
    )
    with pytest.raises(UserError, match="Did you mean 'B/16-imagenet21k'"):
        load.read("B/16-imagenet21")
    monkeypatch.setattr(fetch, "fetch", lambda source: tmp_path / source.split("/")[-1])
    assert load.local_path("B/16-imagenet21k") == tmp_path / "ViT-B_16.npz"


def test_the_table_of_the_guide_is_ours():
    guide = (Path(__file__).parents[2] / "docs" / "weights.md").read_text()
    assert "\n".join(published.table()) in guide


@pytest.mark.parametrize("name", ["B/16-imagenet21k", "R50+B/16-imagenet", "R101x3-bit-m"])
def test_sizes_of_published_weights(name):
    """The pre-trained ViTs have a representation layer before their head (section 3.1)."""
    entry = published.PUBLISHED[name]
    config = models.get_config(entry.variant, num_classes=entry.num_classes)
    if name.startswith("B/16"):
        config = models.replace(config, representation_size=config.hidden_size)
    config = models.replace(config, image_size=(entry.image_size,) * 2)
    shapes = [leaf.shape for leaf in models.abstract_params(config).values()]
    assert round(4 * sum(map(math.prod, shapes)) / 1e6) == entry.megabytes


def test_gs_addresses_become_https(monkeypatch, tmp_path):
    monkeypatch.setenv("VIT_JAX_CACHE", str(tmp_path))
    seen = []
    monkeypatch.setattr(fetch, "download", lambda url, target, source: seen.append(url))
    fetch.fetch("gs://vit_models/imagenet21k/R50+ViT-B_16.npz")
    assert seen == ["https://storage.googleapis.com/vit_models/imagenet21k/R50%2BViT-B_16.npz"]
    fetch.fetch("https://host/my weights/\u00e4%20b.npz")
    assert seen[1] == "https://host/my%20weights/%C3%A4%20b.npz"


def test_the_hubs_cache_serves_offline(tmp_path):
    """A real huggingface_hub, with a repository in its cache and no network."""
    pytest.importorskip("huggingface_hub")
    config = models.get_config("debug", num_classes=3, labels=("a", "b", "c"))
    params = {
        path: np.full(leaf.shape, 0.01, np.float32)
        for path, leaf in models.abstract_params(config).items()
    }
    repository = tmp_path / "hub" / "models--org--tiny"
    huggingface.save(repository / "snapshots" / "0123", config, params)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123")
    code = (
        "from vit_jax.interop import load\n"
        "config, params = load.read('hf:org/tiny')\n"
        "print(config.labels, len(params))\n"
        "load.read('hf:org/other')\n"
    )
    environment = {
        **os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.stdout == f"('a', 'b', 'c') {len(params)}\n", done.stderr
    assert "UserError: hf:org/other cannot be downloaded" in done.stderr
