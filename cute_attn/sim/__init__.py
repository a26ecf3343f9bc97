"""Runs kernels compiled for sm_90a on the CPU, through their real host code: exact in function, hostile in timing."""

from cute_attn.sim.errors import SimError
from cute_attn.sim.host.calls import load, run, simulated
from cute_attn.sim.host.strict import ScheduleDependence, strict
from cute_attn.sim.host.verify import Verified, verify
from cute_attn.sim.launch import Report

__all__ = ["Report", "ScheduleDependence", "SimError", "Verified", "load", "run", "simulated", "strict", "verify"]
