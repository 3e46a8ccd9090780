"""The objective: losses, block pairs, teacher input, student features, distillers."""
