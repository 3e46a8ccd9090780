"""The measures of an audit."""
