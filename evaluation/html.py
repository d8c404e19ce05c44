"""Pages in one HTML file: no network, no server; readable by eye, ear, keyboard and phone, light or dark. A local tool.

Python computes what a page shows; the Jinja2 templates in templates/ show it. Charts are Matplotlib's, set into the page as
SVG. The script, page.js, only sorts and filters what the page holds; the page's policy lets no other script run and nothing
be fetched.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from io import BytesIO, StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from inference.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEMPLATES = Path(__file__).parent / "templates"
STYLE = (TEMPLATES / "page.css").read_text(encoding="utf-8")
SCRIPT = (TEMPLATES / "page.js").read_text(encoding="utf-8")
#: What stands near pictures of crops.
SCALE = "A crop of SLICE-3D shows 15 x 15 mm of skin."


def data_uri(content: bytes, kind: str = "jpeg") -> str:
    """The bytes of an image file as an address that holds them; ``kind`` is "jpeg" or "png"."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _environment() -> Environment:
    """Templates of ``TEMPLATES``: every value is escaped, and an unknown name is an error."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Callable[..., Any]] = {
        "data_uri": data_uri,
        "thousands": lambda number: f"{number:,}",
        "signed": lambda number, digits=2: f"{round(number, digits) + 0.0:+.{digits}f}",
        "interval": lambda estimate, digits=4: f"{estimate.low:.{digits}f} to {estimate.high:.{digits}f}",
        # Three that mean something, zeros at the end too: 8.50, 10.0, 100.
        "digits": lambda value: f"{value:#.3g}".rstrip("."),
        # NaN is a dash.
        "number": lambda value, form=",.0f": "-" if value != value else format(value, form),
        "percent": lambda share, digits=1: "-" if share != share else f"{100 * share:.{digits}f} %",
    }
    environment.filters |= filters
    # Only this very script may run, by its hash.
    script_hash = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    environment.globals |= {"scale": SCALE, "style": Markup(STYLE), "script": Markup(SCRIPT), "script_hash": script_hash}
    return environment


ENVIRONMENT = _environment()


def render(template: str, **context: Any) -> Markup:
    """A template of ``TEMPLATES`` filled in; other templates do not escape it again."""
    return Markup(ENVIRONMENT.get_template(template).render(**context))


@dataclass(frozen=True)
class Section:
    """A part of a page: its heading, its template and what the template names."""

    heading: str
    template: str
    context: Mapping[str, Any]

    def html(self) -> Markup:
        """What stands below the heading."""
        return render(self.template, **self.context)


def write_page(path: Path, template: str, **context: Any) -> None:
    """Writes one self-contained page; it is replaced in one step.

    Args:
        path: the HTML file.
        template: extends base.html.
        context: ``title``, of the page and its heading, and what else the template names.

    Raises:
        InputError: ``path`` cannot be written.
    """
    page = render(template, **context)
    with replacing(path) as temporary:
        temporary.write_text(page + "\n", encoding="utf-8")


def jpeg_of(pixels: np.ndarray) -> bytes:
    """RGB, uint8 or float in [0, 1], shape (height, width, 3), as a JPEG file."""
    from PIL import Image

    if pixels.dtype != np.uint8:
        pixels = np.round(255 * pixels).astype("uint8")
    file = BytesIO()
    Image.fromarray(pixels).save(file, format="JPEG", quality=88, subsampling=0)
    return file.getvalue()


def chart(figure: Figure, description: str, names: Sequence[str] = ()) -> Markup:
    """A Matplotlib figure as SVG whose text stays text.

    Args:
        figure: of Matplotlib.
        description: what it shows, read aloud.
        names: what the parts with the gid "curve 0", "curve 1", ... are called.
    """
    from matplotlib import rc_context
    from matplotlib.text import Text

    for text in figure.findobj(Text):  # a dollar sign in a name from the data is one
        text.set_parse_math(False)
    # Ids depend on the salt and not on chance; what a curve deviates by less than half a point is left out.
    style = {"svg.fonttype": "none", "svg.hashsalt": description, "path.simplify_threshold": 0.5}
    file = StringIO()
    with rc_context(style):
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    groups = [f"<g><title>{escape(name)}</title>" for name in names]
    drawing = file.getvalue().split("<svg", 1)[1].split(">", 1)[1]
    drawing = re.sub(r'<g id="curve (\d+)">', lambda found: groups[int(found[1])], drawing)
    drawing = re.sub(r'<g id="[^"]*"', "<g", drawing)  # nothing refers to them, and two charts may have the same
    width, height = figure.get_size_inches() * 72
    return Markup(f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(description)}">{drawing}')
