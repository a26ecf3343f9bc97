"""Where what a kernel names lies: registers in rows, variables in memory; instructions have numbers, their sites."""

from __future__ import annotations

from ..addresses import PARAM_BASE, SHARED_START
from .arithmetic import special_register
from .ptx import Kernel
from .rows import Rows


class Layout:
    """What the translation of an instruction needs to know of its kernel."""

    def __init__(self, kernel: Kernel):
        self.kernel = kernel
        self.rows = Rows()
        self.sites = {id(i): n for n, i in enumerate(kernel.instructions)}
        self.shared_offset: dict[str, int] = {}
        self.local_offset: dict[str, int] = {}
        self._lay_out_shared()
        self._lay_out_local()

    def _lay_out_shared(self) -> None:
        offset, dynamic_align = SHARED_START, 16
        for variable in self.kernel.shared.values():
            if variable.size:
                offset = -(-offset // variable.align) * variable.align
                self.shared_offset[variable.name] = offset
                offset += variable.size
            else:
                dynamic_align = max(dynamic_align, variable.align)
        self.dynamic_start = -(-offset // dynamic_align) * dynamic_align
        for variable in self.kernel.shared.values():
            if not variable.size:
                self.shared_offset[variable.name] = self.dynamic_start

    def _lay_out_local(self) -> None:
        offset = 0
        for variable in self.kernel.local.values():
            offset = -(-offset // variable.align) * variable.align
            self.local_offset[variable.name] = offset
            offset += variable.size
        self.local_bytes = offset

    def symbol(self, name: str, kind: str) -> str:
        """The expression of a name that is no register, as a type of integers.

        Raises:
            ValueError: for a name of nothing, or of what does not fit the type.
        """
        if kind[0] not in "bus" or kind[1:] not in ("16", "32", "64"):
            raise ValueError(f"the name {name} as {kind}")
        expression = self._unsigned(name, int(kind[1:]))
        return f"{expression}.view(np.int{kind[1:]})" if kind[0] == "s" else expression

    def _unsigned(self, name: str, width: int) -> str:
        special = special_register(name)
        wide = width == 64
        if special:
            return special if width == 32 else f"{special}.astype(np.uint{width})"
        if width < (64 if name in self.kernel.params else 32):
            raise ValueError(f"the address {name} in {width} bits")
        if name in self.shared_offset:
            return f"c.shared_address({self.shared_offset[name]}, {wide})"
        if name in self.local_offset:
            return f"c.local_address({self.local_offset[name]}, {wide})"
        if name in self.kernel.params:
            return f"np.array([{PARAM_BASE + self.kernel.params[name].offset}], np.uint64)"
        raise ValueError(f"the name {name} is not known")
