"""Templates of this folder, or of another package, filled by Jinja2: whatever a value says is text
and is escaped.

Templates say how a page looks, Python what its numbers are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from markupsafe import Markup


def filled(template: str, *, package: str = __package__, **values: object) -> Markup:
    """``template`` of ``package`` with ``values``; the result is markup and is not escaped again
    inside another template. A value that a template names and nobody gives is an error."""
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(package, "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return Markup(environment.get_template(template).render(**values))
