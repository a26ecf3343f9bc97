"""Device pieces that the Hopper kernels share."""
