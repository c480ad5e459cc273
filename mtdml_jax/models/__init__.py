"""Backbones and the network with a sliced embedding on top of one."""

from mtdml_jax.models.network import Network, Outputs, make_network

__all__ = ['Network', 'Outputs', 'make_network']
