"""Nothing that the backward stores can be left out unseen: a later kernel misses it, or the report does."""

import types

import pytest
from backward_case import make_problem, run
from cases import Case

from cute_attn import sim
from cute_attn.launch import run as launch
from cute_attn.mask import causal
from cute_attn.sim.errors import UninitializedRead


def stores(ptx):
    """The numbers of the lines that store to global memory."""
    copies = "cp.async.bulk", "global.shared"
    lines = enumerate(ptx.splitlines())
    return [i for i, text in lines if "st.global" in text or all(part in text for part in copies)]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["eager", "late"])
def test_a_store_that_is_left_out_is_missed(mode, monkeypatch):
    case, load, findings = Case(causal(300), mode=mode), launch.kernel, []
    problem = make_problem(case)
    whole = []

    def crippled(spec, backend):
        """The kernels without the next of their stores."""
        function = load(spec, backend)
        whole.append(function.ptx)
        lines = function.ptx.splitlines()
        lines[stores(function.ptx)[len(findings)]] = ""
        return types.SimpleNamespace(function=function.function, ptx="\n".join(lines))

    monkeypatch.setattr(launch, "kernel", crippled)
    while not whole or len(findings) < len(stores(whole[0])):
        with sim.simulated() as reports:
            try:
                run(case, "sim", problem)
                findings.append(reports[0].unwritten)
            except UninitializedRead as error:
                findings.append(error)
    assert all(findings)
    assert {type(finding) for finding in findings} == {dict, UninitializedRead}
