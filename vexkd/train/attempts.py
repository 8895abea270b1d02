"""The attempts at one training: what code ran on which machine, and when. They lie beside the resumable state."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from vexkd import code, provenance

NAME = "attempts.json"


def begin(folder: Path) -> None:
    """Add this process's attempt to those that brought the state in `folder` where it is."""
    resumes = any(folder.glob("state*.safetensors"))
    attempt = {
        **code.version(),
        "hardware": provenance.hardware(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    provenance.write_json(folder / NAME, [*(of(folder) if resumes else []), attempt])


def of(folder: Path) -> list[dict[str, Any]]:
    """The attempts so far, the first one first; none are known of a state saved by an earlier version of this code."""
    try:
        return json.loads((folder / NAME).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return []
