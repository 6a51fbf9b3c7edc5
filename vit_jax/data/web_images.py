"""Images at http(s) URLs, with limits on size and time; web pages are refused."""

from __future__ import annotations

import http.client
import re
import time
import urllib.error
import urllib.request
from typing import NamedTuple

from vit_jax.data.image_files import shown
from vit_jax.errors import UserError


class Limits(NamedTuple):
    """Limits for one image: bytes and seconds."""

    max_bytes: int = 50 * 2**20
    seconds: float = 30.0


PAGE = re.compile(rb"(?:\xef\xbb\xbf)?\s*<(?:!doctype html|html)", re.IGNORECASE)
#: Some servers refuse Python's default user agent.
HEADERS = {"User-Agent": "vit_jax", "Accept": "image/*"}


def is_address(place: object) -> bool:
    return isinstance(place, str) and place.lower().startswith(("http://", "https://"))


def fetch(address: str, limits: Limits = Limits()) -> bytes:  # noqa: B008 (never changed)
    """The bytes of the image at a URL.

    Raises:
      UserError: an error, a web page or an empty response, too large, or too slow.
    """
    name, deadline = shown(address), time.monotonic() + limits.seconds
    too_long = f"{name} took more than {limits.seconds:g} s; download it, or set --timeout=SECONDS."
    try:
        request = urllib.request.Request(address, headers=HEADERS)
        with urllib.request.urlopen(request, timeout=limits.seconds) as answer:
            if not is_address(answer.geturl()):
                raise UserError(f"{name} redirects to {shown(answer.geturl())}; not fetched.")
            said = int(answer.headers.get("Content-Length") or 0)
            kind = answer.headers.get_content_type()
            parts, size = [], 0
            while size <= limits.max_bytes and said <= limits.max_bytes:
                if time.monotonic() > deadline:
                    raise UserError(too_long)
                part = answer.read1(2**16)
                if not part:
                    break
                parts.append(part)
                size += len(part)
    except UserError:  # a ValueError, already reported
        raise
    except urllib.error.HTTPError as error:
        error.close()
        raise UserError(f"{name} returns {error.code} {error.reason}.") from error
    except TimeoutError as error:
        raise UserError(too_long) from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        if isinstance(reason, TimeoutError):
            raise UserError(too_long) from error
        raise UserError(f"{name} cannot be fetched ({reason}).") from error
    if max(said, size) > limits.max_bytes:
        raise UserError(
            f"{name} has more than {limits.max_bytes:,} bytes; download it, or set --max_bytes=N."
        )
    found = b"".join(parts)
    if size < said:
        raise UserError(f"{name} ended after {size:,} of {said:,} bytes; try again.")
    if kind == "text/html" or PAGE.match(found):
        raise UserError(f"{name} is a web page, not an image; give the URL of the image itself.")
    if not found:
        raise UserError(f"{name} is empty.")
    return found
