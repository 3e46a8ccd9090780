"""See and measure the artifacts of any vision transformer."""

from singer_hf.inspection.audit import audit, outlier_summary
from singer_hf.inspection.results import AuditResult, BlockAudit
from singer_hf.inspection.statistics import OutlierRule

__all__ = ["AuditResult", "BlockAudit", "OutlierRule", "audit", "outlier_summary"]
