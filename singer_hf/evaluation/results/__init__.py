"""Results of an evaluation: what a metric is stored with, tables, files that grow, the model card."""
