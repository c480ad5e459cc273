"""The method: pure functions of arrays that need jax alone."""
