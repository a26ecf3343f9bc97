"""Runs kernels compiled for sm_90a on the CPU, through their real host code: exact in function, hostile in timing."""

from cute_attn.sim.errors import SimError
from cute_attn.sim.host import load, run, simulated
from cute_attn.sim.launch import Report
from cute_attn.sim.strict import ScheduleDependence, strict

__all__ = ["Report", "ScheduleDependence", "SimError", "load", "run", "simulated", "strict"]
