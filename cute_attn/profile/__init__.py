"""What kernels cost, read off their machine code."""
