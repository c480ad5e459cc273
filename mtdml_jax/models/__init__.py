"""Backbones, and the network that adds a sliced embedding to a backbone."""

from mtdml_jax.models.network import Network, Outputs, make_network

__all__ = ['Network', 'Outputs', 'make_network']
