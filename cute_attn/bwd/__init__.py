"""The backward: preprocess, the main kernel, postprocess."""
