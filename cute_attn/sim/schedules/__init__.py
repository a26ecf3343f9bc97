"""What happens next: which lanes run, when copies and products happen, what is wrong when nothing can."""
