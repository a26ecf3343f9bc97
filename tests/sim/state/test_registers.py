"""setmaxnreg: a CTA has the registers that it was launched with, and who asks for more waits for ever."""

import numpy as np
import pytest
from snippet import frame, run

from cute_attn.sim.code.program import program_of
from cute_attn.sim.errors import Deadlock, RegistersExceeded, UnsupportedInstruction

every_mode = pytest.mark.parametrize("mode", ["eager", "late", "random", "starve"])


def handed_out(producer, consumer, groups=3, *, mode="eager", directives=None, before="", behind=""):
    """The first warpgroup gives registers back, the others take more and store; which of their threads came by."""
    threads = 128 * groups
    out = np.zeros(threads, np.uint32)
    directives = f".reqntid {threads}, 1, 1\n.minnctapersm 1" if directives is None else directives
    body = f"""
    setp.lt.u32 %p1, %t, 128; @!%p1 bra CONSUMER; {before}
    setmaxnreg.dec.sync.aligned.u32 {producer}; bra.uni END;
    CONSUMER: setmaxnreg.inc.sync.aligned.u32 {consumer};
    mad.wide.u32 %o, %t, 4, %a0; st.global.u32 [%o], 1; {behind} END:"""
    run(body, out, block=threads, directives=directives, mode=mode)
    return out[128:]


@every_mode
@pytest.mark.parametrize(("producer", "consumer", "groups"), [(24, 240, 3), (40, 232, 3), (32, 160, 4), (24, 240, 2)])
def test_registers_that_others_give_back_may_be_taken(producer, consumer, groups, mode):
    assert handed_out(producer, consumer, groups, mode=mode).all()


@every_mode
def test_more_registers_than_the_launch_got_are_waited_for_in_vain(mode):
    """32 + 2 * 240 are 8 a thread of a warpgroup more than 3 * 168, though fewer than a multiprocessor has."""
    with pytest.raises(RegistersExceeded, match=r"240 registers a thread .* launched with \(168 a thread\)") as caught:
        handed_out(32, 240, mode=mode)
    assert "setmaxnreg.inc.sync.aligned.u32 240" in caught.value.place.text
    assert set(caught.value.place.warps) <= set(range(4, 12))
    with pytest.raises(RegistersExceeded, match=r"launched with \(128 a thread\)"):
        handed_out(40, 160, 4, mode=mode)


def test_registers_that_are_given_back_only_behind_who_waits_for_them_are_a_deadlock():
    with pytest.raises(Deadlock, match="waits for ever"):
        handed_out(24, 240, before="bar.sync 1, 384;", behind="bar.sync 1, 384;")
    assert handed_out(24, 240, before="bar.sync 1, 384;", behind="bar.arrive 1, 384;", directives="").all()


@pytest.mark.parametrize(
    ("directives", "entry"),  # as ptxas 13.0 says, for a kernel that asks for at most 240
    [
        *((f".maxntid {threads}, 1, 1 .minnctapersm 1", n) for threads, n in ((256, 240), (320, 168), (384, 168))),
        *((f".maxntid {threads}, 1, 1 .minnctapersm 1", n) for threads, n in ((512, 128), (640, 96), (1024, 64))),
        *((f".reqntid {threads}, 1, 1\n.minnctapersm 2", n) for threads, n in ((192, 168), (256, 128), (640, 48))),
        (".maxntid 16, 8, 3 .minnctapersm 1", 168),
        (".maxntid 384, 1, 1 .maxnreg 96 .minnctapersm 1", 96),
        (".maxnreg 96", 96),
        (".maxntid 384, 1, 1", None),  # ptxas cannot tell, and ignores setmaxnreg
        (".minnctapersm 1", None),
        ("", None),
    ],
)
def test_the_directives_of_the_entry_say_how_many_registers_there_are(directives, entry):
    text = frame("setmaxnreg.inc.sync.aligned.u32 240;", [], directives=directives)
    assert program_of(text, "kernel").registers_at_entry == entry


def test_no_more_registers_are_taken_at_entry_than_are_asked_for_later():
    text = frame("setmaxnreg.inc.sync.aligned.u32 160;", [], directives=".maxntid 384, 1, 1 .minnctapersm 1")
    assert program_of(text, "kernel").registers_at_entry == 160


def test_where_setmaxnreg_is_ignored_nobody_waits():
    assert handed_out(32, 240, directives=".maxntid 384, 1, 1").all()


def test_an_inc_that_gives_back_and_a_dec_that_takes_are_refused():
    with pytest.raises(UnsupportedInstruction, match="dec to 200 registers a thread by warps with 168"):
        handed_out(200, 240)
    with pytest.raises(UnsupportedInstruction, match="inc to 64 registers a thread by warps with 96"):
        handed_out(24, 64, directives=".maxnreg 96", before="setmaxnreg.inc.sync.aligned.u32 96;")
