"""Ways into other libraries: each an extra of its own, none of which does anything before it is asked to."""
