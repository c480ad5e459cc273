"""What a run leaves for people: evaluation, report, cross-validation, export."""
