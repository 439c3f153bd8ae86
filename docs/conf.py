"""Sphinx settings: Markdown pages through MyST, the furo theme."""

project = "voxray"
extensions = ["myst_parser"]
html_theme = "furo"
html_title = "voxray"
exclude_patterns = ["_build", "schemas"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 2
