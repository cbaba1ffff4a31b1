"""Templates in which no text becomes markup, and pages that run nothing but their own script."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

from saelens_lite.text_table import cell, number

from ..latents.text_windows import visible

if TYPE_CHECKING:
    from jinja2 import Environment

_HERE = Path(__file__).parent
_LEVELS = "▁▂▃▄▅▆▇█"


def rendered(template: str, **values: Any) -> Markup:
    """A file of templates/ with these values, whose texts are escaped, on one line with nothing hidden."""
    return Markup(_environment().get_template(template).render(values))


def escaped(text: str) -> Markup:
    """Text for an element or a quoted attribute, on one line with nothing hidden."""
    return escape(_shown(text))


def inert_json(data: Any) -> Markup:
    """JSON, all ASCII, that cannot end the element it stands in, whatever its strings hold."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def style(name: str) -> Markup:
    """The style that all pages share, and that of one of them: base.css and <name>.css."""
    return Markup("".join((_HERE / f"{file}.css").read_text(encoding="utf-8") for file in ("base", name)))


def policy(style: str, script: str | None = None, *scripts: str, connect: str = "") -> str:
    """The content security policy of a page: this style, this script, no network.

    scripts: further sources of scripts, such as "'self'"; connect: where requests may go
    """
    allowed = f"style-src {_source(style)}"
    if script is not None:
        allowed = f"script-src {' '.join([_source(script), *scripts])}; {allowed}"
    if connect:
        allowed += f"; connect-src {connect}"
    return f"default-src 'none'; base-uri 'none'; form-action 'none'; {allowed}"


def sparkline(counts: Sequence[int]) -> str:
    """Counts as blocks on a logarithmic scale; a space for none."""
    most = math.log1p(max(counts))
    return "".join(_LEVELS[min(7, int(8 * math.log1p(n) / most))] if n else " " for n in counts)


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.tests["known"] = lambda value: not math.isnan(value)
    environment.filters |= {"cell": cell, "number": number, "sparkline": sparkline}
    return environment


def _shown(value: Any) -> Any:
    """Text with its hidden characters shown; markup and what is no text as it is."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _source(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
