"""Ways into other libraries: none of which does anything before it is asked to."""
