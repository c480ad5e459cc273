"""Computes scores from embeddings: classification, retrieval, slices, and intervals."""
