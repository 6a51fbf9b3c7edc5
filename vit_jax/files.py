"""Files that are replaced whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from vit_jax.errors import UserError


def write_json(file: Path, values: Any) -> None:
    """Writes indented JSON; the file appears whole or not at all."""
    partial = file.with_name(file.name + ".partial")
    partial.write_text(json.dumps(values, indent=2) + "\n")
    os.replace(partial, file)


def read_json(file: Path) -> Any:
    """The content of a JSON file; None if there is no such file.

    Raises:
      UserError: it cannot be read or is not JSON.
    """
    try:
        return json.loads(file.read_text())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}).") from error
    except ValueError as error:
        raise UserError(f"{file} is not JSON ({error}).") from error
