"""How Sphinx builds the documentation: `python -m sphinx -W --keep-going docs build/docs`.

Nothing is fetched, at build time or by the pages: no fonts, no scripts from elsewhere. A reference to a name
that is not documented is a warning (`nitpicky`), and with -W an error.
"""

import inspect
import os
from importlib import metadata

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util.inspect import stringify_signature

os.environ.setdefault("KERAS_BACKEND", "jax")  # focaljax.keras asks for it
os.environ.setdefault("JAX_PLATFORMS", "cpu")  # nothing is computed here

project = "focaljax"
author = "The focaljax authors"
copyright = author
version = release = metadata.version(project)

extensions = [
    "myst_parser",  # pages in Markdown, README among them
    "sphinx.ext.autodoc",  # the reference from docstrings
    "sphinx.ext.autosummary",  # a page for each public name, and tables of them
    "sphinx.ext.napoleon",  # in Google's style
    "sphinx.ext.viewcode",
    "sphinxcontrib.programoutput",  # --help as the program prints it
]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
suppress_warnings = ["myst.header"]  # README's sections begin at level 2, wherever they are included
nitpicky = True
default_role = "code"  # `logits` in a docstring is code

autodoc_typehints = "none"  # shapes and dtypes are in the text; ArrayLike says neither
autodoc_member_order = "bysource"
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Attributes", "params_style")]  # those of a dataclass: its options
napoleon_use_rtype = False

templates_path = ["_templates"]

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["wide.css"]
html_title = f"focaljax {version}"
html_show_sourcelink = False
html_math_renderer = "mathml"
add_module_names = False


def _inline(translator, node):
    translator.body.append(tex2mathml(node.astext()))
    raise nodes.SkipNode


def _block(translator, node):
    translator.body.append(f'<div class="math">{tex2mathml(node.astext(), as_block=True)}</div>\n')
    raise nodes.SkipNode


def _signature(app, what, name, obj, options, signature, returns):
    """That of `__init__` where a metaclass hides it, as Flax' does."""
    if what != "class" or signature != "(*args, **kwargs)":
        return None
    found = inspect.signature(obj.__init__)
    plain = found.replace(parameters=list(found.parameters.values())[1:])
    return stringify_signature(plain, show_annotation=False, show_return_annotation=False), returns


def _skip(app, what, name, obj, skip, options):
    """Fields of a named tuple are described with the class."""
    return True if (getattr(obj, "__doc__", "") or "").startswith("Alias for field number") else None


def _linked(app, doctree, page):
    """Names of the reference are links wherever they stand as code, but in titles and on their own page."""
    objects = app.env.domains["py"].objects
    public = {name.split(".")[-1]: name for name in objects if name.count(".") == 1}
    for node in list(doctree.findall(nodes.literal)):
        name = public.get(node.astext(), node.astext())
        entry = objects.get(name)
        if entry is None or entry.docname == page or _is_inside(node, nodes.reference, nodes.title):
            continue
        target = app.builder.get_relative_uri(page, entry.docname) + "#" + entry.node_id
        link = nodes.reference("", "", internal=True, refuri=target)
        node.replace_self(link)
        link += node


def _is_inside(node, *kinds):
    while node.parent is not None:
        node = node.parent
        if isinstance(node, kinds):
            return True
    return False


def setup(app):
    """Formulas become MathML, which browsers draw themselves: docutils has the translator."""
    app.connect("autodoc-process-signature", _signature)
    app.connect("autodoc-skip-member", _skip)
    app.connect("doctree-resolved", _linked)
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
