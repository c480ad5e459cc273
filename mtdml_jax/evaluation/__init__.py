"""Embeddings of whole splits, classifiers and retrieval on them, and the report."""
