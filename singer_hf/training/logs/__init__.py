"""What a run shows while it trains and at its end: lines on the console, artifact metrics, closing lines."""
