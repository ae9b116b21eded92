"""Self-contained HTML: pages that fetch nothing and run no script, from templates that escape every text.

Jinja2 escapes every value; it is imported when the first page is rendered.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup


def render(template: str, **values: Any) -> str:
    """Render a file of `templates/`. Values are plain text unless they are `Markup`."""
    return _environment().get_template(template).render(**values)


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("medret.html"),
        autoescape=True,
        undefined=StrictUndefined,  # a misspelt name is an error, not a gap in the page
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["breakable"] = breakable
    return environment


def breakable(name: str) -> Markup:
    """Escape a path or file name and let lines break after its slashes and underscores."""
    from markupsafe import Markup, escape

    return escape(name).replace("/", Markup("/<wbr>")).replace("_", Markup("_<wbr>"))
