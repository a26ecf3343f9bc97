"""What moves when: from a mask and its placements to tables of one rank, and what they are predicted to cost."""
