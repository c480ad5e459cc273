"""From embeddings to scores: classifiers, retrieval, slices, intervals."""
