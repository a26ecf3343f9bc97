"""From PTX to NumPy: a kernel's text becomes a graph of nodes, its straight runs become functions."""
