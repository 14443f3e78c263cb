"""Renders the room's templates, and numbers in them."""

from importlib import resources
from types import ModuleType
from typing import Any

from rdvla.errors import MissingExtraError


def render_template(name: str, /, **values: Any) -> str:
    """Return the template `name` of this room, filled with `values` and the shared style sheet as `style`.

    Raises:
        MissingExtraError: Jinja2 is not installed.
    """
    jinja2 = _jinja()
    package = resources.files("rdvla.report")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["pct"] = lambda share: f"{share * 100:.0f}"
    template = environment.from_string((package / name).read_text(encoding="utf-8"))
    return str(template.render(style=(package / "page.css").read_text(encoding="utf-8"), **values))


def _jinja() -> ModuleType:
    try:
        import jinja2
    except ImportError:
        raise MissingExtraError("jinja2", "report") from None
    module: ModuleType = jinja2
    return module
