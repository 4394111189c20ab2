"""JAX kernels under the networks, each measured."""
