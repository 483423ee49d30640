"""Options of the program itself, taken off the command line before Lightning reads it, and what may
be imported."""

import importlib
import os
import sys
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import yaml
from jsonargparse import set_parsing_settings
from jsonargparse._common import parsing_settings

IMPORTABLE = (
    "mhmoe_mm",
    "datamodules",
    "lightning",
    "torch.nn",
    "torch.optim",
    "torchmetrics",
    "torchvision.transforms",
)
"""Where a configuration may take classes from; everything else is refused before it is imported."""
YAML = (".yaml", ".yml")


class Options(NamedTuple):
    """What the program was told about itself."""

    debug: bool
    """Show tracebacks of errors that are otherwise one line."""
    plugins: tuple[str, ...]
    """Packages outside the library that configurations may name."""
    rest: list[str]
    """The command line without these options, nulls folded (see `folded`)."""


def split_options(argv: Sequence[str]) -> Options:
    """Take `--debug` and `--plugin PKG` off the command line; MHMOE_DEBUG and MHMOE_PLUGINS say the
    same."""
    parser = ArgumentParser(prog="mhmoe-mm", add_help=False, allow_abbrev=False)
    parser.add_argument("--debug", action="store_true")
    parser.add_argument("--plugin", action="append", default=[])
    known, rest = parser.parse_known_args(list(argv))
    named = [*os.environ.get("MHMOE_PLUGINS", "").replace(",", " ").split(), *known.plugin]
    debug = known.debug or os.environ.get("MHMOE_DEBUG", "0") not in ("", "0")
    return Options(debug, tuple(dict.fromkeys(named)), folded(rest))


def restrict_imports(plugins: Sequence[str]) -> None:
    """Let configurations import from `IMPORTABLE` and from the plugins, which are imported here;
    nothing else.

    jsonargparse imports the module that a configuration names before it checks the type, so a
    denied import must be stopped by name. The setting is global to jsonargparse, hence made by the
    program and not on import.
    """
    if plugins and "" not in sys.path:
        sys.path.insert(0, "")  # plugins may lie in the working directory, as with `python -m`
    for plugin in plugins:
        try:
            importlib.import_module(plugin)
        except ModuleNotFoundError as error:
            raise ValueError(f"The plugin {plugin} cannot be imported: {error}.") from error
    set_parsing_settings(
        omegaconf_absolute_to_relative_paths=True,
        instantiate_subclass_spec_in_any=False,
        config_read_mode_fsspec_enabled=False,
        config_read_mode_urls_enabled=False,
        import_path_denylist=["*"],
        import_path_allowlist=[*IMPORTABLE, *plugins],
    )


@contextmanager
def restricted_imports(plugins: Sequence[str]) -> Iterator[None]:
    """`restrict_imports` for a while, where jsonargparse belongs to somebody else's program."""
    before = dict(parsing_settings)
    try:
        restrict_imports(plugins)
        yield
    finally:
        parsing_settings.update(before)


def folded(argv: Sequence[str]) -> list[str]:
    """The same command line with nulls, mappings, lists and `${...}` for nested keys written as a
    piece of configuration, and objects that a file describes emptied first.

    jsonargparse passes the value of a nested option on as text, so that `--model.net.layout.sparse
    null` would look for a class named "None"; as `--config '{"model": {"net": ...}}'` at the same
    place it means what it says. It also mixes `--model.net FILE` with the net that was there if
    both are of one class, so that a dense net would keep the experts of the one before.
    """
    result: list[str] = []
    rest = list(argv)
    while rest:
        token = rest.pop(0)
        name, equals, value = token.partition("=")
        file = value if equals else next(iter(rest), "")
        if file.endswith(YAML) and name.startswith("--") and "." in name and name[-1] != "+":
            result += folded([name, "null"])
        if not token.startswith("--") or name.count(".") < 2 or name.endswith("+"):
            result.append(token)
            continue
        if not equals:
            if not rest:
                result.append(token)
                continue
            value = rest.pop(0)
        try:
            loaded = yaml.safe_load(value)
        except yaml.YAMLError:
            loaded = value
        if loaded is None or isinstance(loaded, dict | list) or "${" in value:
            keys = name[2:].split(".")
            for key in reversed(_written_out(keys) if "${" in value else keys):
                loaded = {key: loaded}
            result += ["--config", yaml.safe_dump(loaded, default_flow_style=True, width=2**31)]
        else:
            result += [token] if equals else [token, value]
    return result


def _written_out(keys: Sequence[str]) -> list[str]:
    """The path with the `init_args` that were left out: interpolations are resolved by counting
    levels. A path that has some is taken to have them all (dataclasses have none)."""
    if keys[0] not in ("model", "data") or "init_args" in keys:
        return list(keys)
    return [part for key in keys for part in (key, "init_args")][:-1]
