"""The DSL's types of the elements that specs name."""

import cutlass

__all__ = ["DTYPES"]

DTYPES = {"bf16": cutlass.BFloat16, "fp16": cutlass.Float16}
