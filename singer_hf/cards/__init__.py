"""What a reader gets: model cards and tables from plain data, without anything private."""
