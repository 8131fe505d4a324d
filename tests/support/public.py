"""The public names of the package."""

import importlib.util
import pkgutil
from pathlib import Path

import cgc_kernels


def exported(module: str) -> set[str]:
    """What a module says it exports, by full names; one that says nothing is not imported."""
    if "\n__all__ = " not in Path(importlib.util.find_spec(module).origin).read_text():
        return set()
    return {f"{module}.{name}" for name in importlib.import_module(module).__all__}


def public_names() -> list[str]:
    """Those of the package; and of its modules what the package does not export as well."""
    package = exported("cgc_kernels")
    modules = {module.name for module in pkgutil.iter_modules(cgc_kernels.__path__) if not module.name.startswith("_")}
    modules.discard("ops")  # which exports to backends
    names = {name for module in modules for name in exported(f"cgc_kernels.{module}")}
    return sorted(package | {name for name in names if f"cgc_kernels.{name.split('.')[-1]}" not in package})
