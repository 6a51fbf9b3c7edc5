"""Files from the network: gs:// and https:// through one cache, and the Hugging Face hub.

A download goes to a `.partial` file, resumes where it stopped, and is renamed only when its size,
its first bytes, and its checksum if known, are correct. Its name begins with a hash of the URL, so
that no URL can escape the cache.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import hashlib
import http.client
import os
import re
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from vit_jax import files
from vit_jax.errors import UserError, need
from vit_jax.interop import published, weight_files

CHUNK = 1 << 20
TRIES = 4
TURNS = 1000  # attempts to lock a file, each after another process has failed to download it
TIMEOUT = 30  # seconds without a byte
WINDOW, SLOWEST = 60, 10_000  # fewer bytes per second than this for a minute are a failure
LARGEST = 64 * 2**30  # limit in bytes if the server does not give a length
AGAIN = (408, 425, 429, 500, 502, 503, 504)  # temporary server errors
#: Magic bytes.
BEGINNINGS = {".npz": b"PK", ".onnx": b"\x08", ".safetensors": b""}


def cache_directory() -> Path:
    """The cache of downloads: $VIT_JAX_CACHE, or vit_jax/weights in the user's cache."""
    if given := os.environ.get("VIT_JAX_CACHE"):
        return Path(given).expanduser()
    return files.user_cache() / "vit_jax" / "weights"


def is_remote(source: str) -> bool:
    """Whether `source` is on the network."""
    return source.startswith(("gs://", "https://", "http://", "hf:"))


def fetch(source: str) -> Path:
    """A local path for `gs://...`, `https://...` or `hf:ORG/NAME`; downloaded once.

    Raises:
      UserError: not found, forbidden, or no network; names other sources of the same weights.
    """
    if source.startswith("hf:"):
        return _from_hub(source)
    url, target = place(source)
    if not target.exists():
        with alone(target):
            if not target.exists():
                download(urllib.parse.quote(url, safe="%/:?&=#@!$~'()*,;[]"), target, source)
    return target


@contextlib.contextmanager
def alone(target: Path) -> Iterator[None]:
    """Waits for other processes that download `target`, such as those of the same job.

    Raises:
      UserError: nothing can be written beside it.
    """
    lock = target.with_name(target.name + ".lock")
    with contextlib.ExitStack() as held:
        for turn in range(1, TURNS + 1):
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                opened = held.enter_context(open(lock, "w"))
            except OSError as error:
                raise UserError(
                    f"{target.parent} cannot be written ({error.strerror}); set VIT_JAX_CACHE to "
                    "another place."
                ) from error
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(opened, fcntl.LOCK_EX)
            with contextlib.suppress(OSError):  # removed by its last holder: others lock a new one
                if turn == TURNS or os.path.samestat(os.stat(lock), os.fstat(opened.fileno())):
                    break
            held.close()
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def cached(source: str) -> Path | None:
    """Where `source` already is on this machine; without network access."""
    if not source.startswith("hf:"):
        target = place(source)[1]
        return target if target.exists() else None
    try:
        import huggingface_hub
    except ImportError:
        return None
    name, _, revision = source.removeprefix("hf:").partition("@")
    try:
        found = huggingface_hub.snapshot_download(
            name,
            revision=revision or None,
            allow_patterns=["*.json", "*.safetensors"],
            local_files_only=True,
        )
    except Exception:  # of many kinds, all meaning that it is not cached
        return None
    whole = any(Path(found).glob("*.safetensors")) and (Path(found) / "config.json").exists()
    return Path(found) if whole else None


def place(source: str) -> tuple[str, Path]:
    """The URL of `gs://...` or `https://...`, and its place in the cache."""
    url = source
    if source.startswith("gs://"):
        url = "https://storage.googleapis.com/" + source.removeprefix("gs://")
    return url, cache_directory() / name_of(url)


def name_of(url: str) -> str:
    """The name of a download: a hash of its URL, and the end of the URL."""
    last = re.sub(r"[^\w.+-]", "_", url.split("?")[0].rstrip("/").rpartition("/")[2])
    return f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{last[-80:]}"


def download(url: str, target: Path, source: str) -> None:
    """Downloads `url` to `target`, resuming a partial download.

    Raises:
      UserError: the server refuses, or the file is not what the server promised.
    """
    partial = target.with_name(target.name + ".partial")
    for attempt in range(TRIES):
        try:
            expected = _append(url, partial, source)
            break
        except urllib.error.HTTPError as error:
            if error.code == 416:  # nothing left to send: the partial file is of another file
                partial.unlink(missing_ok=True)
                continue
            if error.code in AGAIN and attempt < TRIES - 1:
                time.sleep(2**attempt)
                continue
            reasons = {401: "access is denied", 403: "access is denied", 404: "it does not exist"}
            raise UserError(
                f"{source} cannot be downloaded: {reasons.get(error.code, error.reason)} "
                f"(HTTP {error.code}).{published.elsewhere(source)}"
            ) from error
        except (OSError, http.client.HTTPException) as error:
            if attempt == TRIES - 1:
                reason = getattr(error, "reason", error)
                raise UserError(
                    f"{source} cannot be downloaded ({reason}); run the same command again to "
                    f"resume.{published.elsewhere(source)}"
                ) from error
            time.sleep(2**attempt)
    else:
        raise UserError(f"{source} cannot be downloaded: the server sends only a part of it.")
    _check(partial, expected, source)
    os.replace(partial, target)


def _append(url: str, partial: Path, source: str) -> dict[str, str]:
    """Appends the rest of `url` to `partial`; returns the promised size and hashes."""
    from tqdm import tqdm

    start = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
        resumed = response.status == 206
        left = int(response.headers.get("Content-Length") or 0)
        total = left + (start if resumed else 0)
        free = shutil.disk_usage(partial.parent).free
        if left > free:
            raise UserError(
                f"{source} needs {left / 2**30:.1f} GiB, but {partial.parent} has "
                f"{free / 2**30:.1f} GiB free; set VIT_JAX_CACHE to another place."
            )
        bar = tqdm(
            total=total or None, initial=start if resumed else 0, unit="B", unit_scale=True,
            desc=source.rsplit("/", 1)[-1], disable=None,
        )  # fmt: skip
        with bar, open(partial, "ab" if resumed else "wb") as file:
            for chunk in _chunks(response, source):
                file.write(chunk)
                bar.update(len(chunk))
        if total and partial.stat().st_size < total:
            raise OSError(f"the connection closed at {partial.stat().st_size} of {total} bytes")
        hashes = response.headers.get_all("x-goog-hash") or []
        return {"size": str(total or ""), "hashes": ",".join(hashes)}


def _chunks(response: http.client.HTTPResponse, source: str) -> Iterator[bytes]:
    """Streams a response.

    Raises:
      OSError: it is too slow.
      UserError: it does not end.
    """
    begin = last = time.monotonic()
    since = received = 0
    while chunk := response.read1(CHUNK):
        if (waited := time.monotonic() - last) > TIMEOUT:  # the socket would have given up:
            begin += waited  # this process was stopped (SIGSTOP)
        yield chunk
        last = time.monotonic()
        received, since = received + len(chunk), since + len(chunk)
        if received > LARGEST:
            raise UserError(f"{source} does not end: {received / 2**30:.0f} GiB received.")
        if (seconds := time.monotonic() - begin) >= WINDOW:
            if since < SLOWEST * seconds:
                raise OSError(f"only {since / seconds:,.0f} bytes per second")
            begin, since = time.monotonic(), 0


def _check(partial: Path, promised: dict[str, str], source: str) -> None:
    """Removes the file and raises UserError if it is not what the server promised."""
    size = partial.stat().st_size
    bad = bool(promised["size"]) and size != int(promised["size"])
    for item in promised["hashes"].split(","):
        kind, _, value = item.strip().partition("=")
        if kind == "md5":
            with open(partial, "rb") as file:
                found = hashlib.file_digest(file, "md5").digest()
            bad = bad or base64.b64encode(found).decode() != value
    if bad:
        partial.unlink()
        raise UserError(f"{source} arrived damaged (size or checksum); run the same command again.")
    with open(partial, "rb") as file:
        start = file.read(64)
    wanted = BEGINNINGS.get(PurePosixPath(source.split("?")[0]).suffix, b"")
    if not start or start.lstrip().startswith(b"<") or not start.startswith(wanted):
        partial.unlink()
        what = "a web page" if start.lstrip().startswith(b"<") else "something else"
        raise UserError(
            f"{source} cannot be downloaded: the server sent {what} with that name "
            f"({start[:20]!r}); open the URL in a browser.{published.elsewhere(source)}"
        )


def _from_hub(source: str) -> Path:
    """A snapshot of a Hugging Face repository; the hub's cache serves it offline."""
    need("hf:", "huggingface_hub")
    import huggingface_hub
    from huggingface_hub import errors

    name, _, revision = source.removeprefix("hf:").partition("@")

    def snapshot(*patterns: str) -> Path:
        return Path(
            huggingface_hub.snapshot_download(
                name, revision=revision or None, allow_patterns=["*.json", *patterns]
            )
        )

    try:
        path = snapshot("*.safetensors")
        if any(path.glob("*.safetensors")):
            return path
        if not weight_files.has_torch():
            raise UserError(
                f"{source} has no .safetensors, and a pytorch_model.bin is read by torch, which "
                f"is not installed: {weight_files.PIP}."
            )
        return snapshot("pytorch_model*.bin")
    except UserError:
        raise
    except errors.GatedRepoError as error:
        raise UserError(
            f"{source} requires a login: accept its terms on the hub and run `hf auth login`."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(f"{source} does not exist on the hub, or is private.") from error
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"{source} cannot be downloaded ({reason}).{published.elsewhere(source)}"
        ) from error
