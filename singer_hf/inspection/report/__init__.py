"""Verdict, figures, tables and page of an audit."""
