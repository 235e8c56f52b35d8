"""Errors that are neither ValueError nor TypeError."""

from __future__ import annotations


class UnsupportedError(RuntimeError):
    """The call is well formed, but no kernel serves it: an architecture, a head_dim or a feature."""


class CompileError(RuntimeError):
    """NVRTC refused a kernel. `log` is its log, `spec` the text of the specialisation that was asked for."""

    def __init__(self, spec: str, log: str) -> None:
        super().__init__(f"{spec}: NVRTC failed\n{log}")
        self.spec = spec
        self.log = log

    def __reduce__(self) -> tuple[type[CompileError], tuple[str, str]]:
        return type(self), (self.spec, self.log)
