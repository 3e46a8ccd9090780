"""Model cards, markdown tables and drawing helpers that take plain data; cards without private information."""
