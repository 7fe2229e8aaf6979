"""Read by mypy alone: a wrong name or value is an error of types, and so is an ignored error that does not come."""

import frozen_kernels as fk

WRONG = (
    fk.freeze_model,  # type: ignore[attr-defined]
    fk.nn.FrozenLinaer,  # type: ignore[attr-defined]
    fk.FreezeConfig(code="signed"),  # type: ignore[arg-type]
    fk.FreezeConfig(scope="layer"),  # type: ignore[arg-type]
)
