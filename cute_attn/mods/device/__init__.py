"""Graphs of score_mods as device code; a source of those kernels alone whose specs carry one."""
