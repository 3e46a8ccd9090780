"""The verdict, the figures and the page of an audit."""
