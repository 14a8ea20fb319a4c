"""HTML reports of runs, datasets and sweeps."""

from factory.report.page import collect, page, write_page

__all__ = ["collect", "page", "write_page"]
