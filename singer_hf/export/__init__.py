"""Models for use elsewhere: programs of ``torch.export`` and ONNX files."""

from singer_hf.export.onnx_file import export_onnx
from singer_hf.export.program import export_program

__all__ = ["export_onnx", "export_program"]
