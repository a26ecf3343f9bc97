"""What carries out a plan: keys come to queries in blocks, and their gradients return."""
