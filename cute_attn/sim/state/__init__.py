"""What a running kernel has: registers, memory, barriers, copies and products in flight, its place in a launch."""
