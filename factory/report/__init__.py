"""The HTML report of a run or a dataset."""

from factory.report.page import collect, page, write_page

__all__ = ["collect", "page", "write_page"]
