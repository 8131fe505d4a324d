"""Where settings are read: the parser of the command line, and YAML files."""

import argparse
import difflib
from dataclasses import Field
from pathlib import Path

import yaml

from .methods import METHODS
from .presets import PRESETS, SUMMARIES


def read(config: Path, fields: dict[str, Field]) -> dict:
    """The settings of a YAML file, checked as flags are."""
    try:
        saved = yaml.safe_load(config.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"--config must be a readable YAML file, got {config}: {error}") from None
    if not isinstance(saved, dict):
        raise ValueError(f"--config must be a YAML file of settings, name: value, got {config}")
    return {(name := str(key).replace("-", "_")): _value(name, value, config, fields) for key, value in saved.items()}


def _value(name: str, value, config: Path, fields: dict[str, Field]):
    if name not in fields or name in ("output", "resume", "check"):
        near = difflib.get_close_matches(name, fields, n=3)
        raise ValueError(
            f"{config} must hold settings only, got {name!r}" + (f"; near it: {', '.join(near)}" * bool(near))
        )
    kind = fields[name].metadata["kind"]
    if any(isinstance(one, list | dict | set) for one in (value if isinstance(value, list) else [value])):
        raise ValueError(f"{name} in {config} must be a value or a list of values, got one that nests")  # may be huge
    if kind is bool:
        if not isinstance(value, bool):
            raise ValueError(f"{name} in {config} must be true or false, got {value!r}")
        return value
    try:
        return kind(",".join(map(str, value)) if isinstance(value, list) else str(value))
    except argparse.ArgumentTypeError as error:
        raise ValueError(f"{name} in {config} {error}") from None


def parser(fields: dict[str, Field]) -> argparse.ArgumentParser:
    """That of train.py: a flag for each field of the settings, in the groups of --help."""
    parser = argparse.ArgumentParser(
        prog="train.py",
        usage="train.py [--flag [value]] ...",
        description="Train a classifier whose Grad-CAM heatmaps are consistent. Without flags: a demo of a few minutes "
        "on digits pasted on photographs, made on the spot.",
        epilog="Methods: " + "; ".join(f"{name}: {method.summary}" for name, method in METHODS.items()) + ".",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    groups = {}
    for name, field in fields.items():
        title = field.metadata["group"]
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
            if len(groups) == 1:
                _add_sources(groups[title])
                groups[title] = groups[title].add_mutually_exclusive_group()
        _add(groups[title], name, field)
    return parser


def _add_sources(group) -> None:
    recipes = "; ".join(f"{name}: {text}" for name, text in SUMMARIES.items())
    group.add_argument("--preset", choices=PRESETS, metavar="NAME", help=f"recipe (default: that of --data). {recipes}")
    group.add_argument("--config", metavar="FILE", help="settings as YAML, such as a run folder's; flags override them")


def _add(group, name: str, field) -> None:
    kind, text = field.metadata["kind"], field.metadata["help"]
    text = text.replace("%", "%%") + ("" if field.default in ("", ()) else f" (default: {_shown(field.default)})")
    if kind is not bool:
        group.add_argument(flag(name), type=kind, metavar=kind.metavar, help=text)
    elif name in ("compare", "resume", "check"):
        group.add_argument(flag(name), action="store_true", help=text)
    else:
        group.add_argument(flag(name), action=argparse.BooleanOptionalAction, help=text)


def _shown(default) -> str:
    return {True: "on", False: "off"}[default] if isinstance(default, bool) else str(default)


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")
