"""One HTML file to browse traces: no network, and no way for the text of a trace to become code."""

from w2sr.trace_page.page import render_page

__all__ = ["render_page"]
