"""What makes an HTML file of ours inert: text that is never markup, a policy that allows its own style and
script only."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from pathlib import Path
from typing import Any

from ..latents.text_windows import visible


def escaped(text: str) -> str:
    """Text for an element or a quoted attribute, on one line with nothing hidden."""
    return html.escape(visible(text))


def inert_json(data: Any) -> str:
    """JSON, all ASCII, that cannot end the element it stands in, whatever the strings in it hold."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def style(name: str) -> str:
    """The style that all pages share, and that of one of them: base.css and <name>.css."""
    here = Path(__file__).parent
    return "".join((here / f"{file}.css").read_text(encoding="utf-8") for file in ("base", name))


def policy(style: str, script: str | None = None) -> str:
    """The content security policy of a page with this style and script: no network, nothing else that
    runs."""
    allowed = f"style-src {_source(style)}"
    if script is not None:
        allowed = f"script-src {_source(script)}; {allowed}"
    return f"default-src 'none'; base-uri 'none'; form-action 'none'; {allowed}"


def _source(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
