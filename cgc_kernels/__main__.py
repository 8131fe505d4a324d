"""``python -m cgc_kernels``: what this installation has, what is missing, and how to get it."""

import sys

from . import info


def report(found: dict) -> str:
    """The text for :func:`cgc_kernels.info`'s dictionary."""
    lines = ["  ".join(f"{name} {version}" for name, version in found["versions"].items()), ""]
    for name, backend in found["backends"].items():
        lines.append(f"{name:10} {'yes' if backend['available'] else 'no   ' + backend['reason']}")
    if found["cpp"]:
        lines.append(f"\ncpp runs {found['cpp']['instruction_set']} code on {found['cpp']['threads']} threads")
    lines.append("\n".join(f"backend='auto' on {device} tensors: {name}" for device, name in found["auto"].items()))
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(report(info()) + "\n")
