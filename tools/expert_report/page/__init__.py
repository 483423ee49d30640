"""The expert report as one HTML file that opens from disk and asks nothing of any network."""

from tools.expert_report.page.writing import write_page

__all__ = ["write_page"]
