"""The report of a run: one file to read on a laptop, offline, and the same in short as JSON.

`write_report` and `summary` read a run folder as it is, whether the run has finished, is under
way or was killed. No torch.
"""

from armillary.train.report.figures import save_figures
from armillary.train.report.page import write_report
from armillary.train.report.summary import summary

__all__ = ["save_figures", "summary", "write_report"]
