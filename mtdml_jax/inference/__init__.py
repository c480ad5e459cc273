"""From a trained run to use: images in, expressions and embeddings out; without TensorFlow or Orbax."""
