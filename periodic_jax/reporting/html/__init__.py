"""A run as one HTML file that needs no network: words, the regime map, and every configuration's trajectories.

The page holds plotly's script, its own script and style, and the run as JSON with base64 arrays. Curves are decimated
to the extremes of each stretch of steps, so that jumps stay visible.
"""

from periodic_jax.reporting.html.contents import report_contents
from periodic_jax.reporting.html.page import render, write
from periodic_jax.reporting.html.server import serve

__all__ = ["render", "report_contents", "serve", "write"]
