"""All interleavings of what the warps of a launch do to synchronise: its skeleton, without times and without data."""
