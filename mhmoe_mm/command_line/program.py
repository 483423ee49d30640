"""The program: options, parsing, running, and one sentence when something is wrong."""

import sys
import traceback
from collections.abc import Sequence

from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.exceptions import SIGTERMException

from mhmoe_mm.callbacks.preemption import EXIT_STATUS
from mhmoe_mm.command_line.command import Command
from mhmoe_mm.command_line.failures import origin, sentence
from mhmoe_mm.command_line.options import Options, restrict_imports, split_options
from mhmoe_mm.command_line.quiet import silence
from mhmoe_mm.command_line.sources import Sources

HELP = """
usage: mhmoe-mm {fit,validate,test,predict} [--config FILE]... [--KEY VALUE]...
                [--plugin PKG]... [--debug]

  --plugin PKG   let configurations name classes of this package (also MHMOE_PLUGINS)
  --debug        show the traceback of an error that is otherwise one line (also MHMOE_DEBUG=1)

`mhmoe-mm fit --help` lists the keys, `mhmoe-mm fit --model.help CLASS` those of a class, and
`mhmoe-mm fit --config FILE --print_config` what a configuration comes to.
See docs/configuration.md.
""".strip()


def build(argv: Sequence[str], task: type[LightningModule]) -> Command:
    """The command with everything constructed and nothing run yet; `task` is the base class of what
    it can train."""
    options = split_options(argv)
    restrict_imports(options.plugins)
    silence()
    return Command(options.rest, task)


def run(argv: Sequence[str], task: type[LightningModule]) -> int:
    """Carry the command line out and return the exit status: 0, 2 if it was refused, 1 if it failed
    while running."""
    if not argv or argv[0] in ("-h", "--help"):
        print(HELP)
        return 0 if argv else 2
    options = split_options(argv)
    command = None
    try:
        command = build(argv, task)
        command.execute()
    except SIGTERMException as ended:  # Lightning's own, before the first step, has no status
        raise SystemExit(ended.code or EXIT_STATUS) from ended
    except Exception as error:
        if command is not None:
            command.withdraw()
        return _report(error, options, started=command is not None and command.started)
    return 0


def _report(error: Exception, options: Options, started: bool) -> int:
    ours = ("mhmoe_mm", "datamodules", *options.plugins)
    line = sentence(error, Sources(options.rest), ours)
    if options.debug:
        traceback.print_exception(error)
    elif line is None:
        traceback.print_exception(origin(error))
    if line is None:
        return 1
    print(f"mhmoe-mm: error: {line}", file=sys.stderr)
    return 1 if started else 2
