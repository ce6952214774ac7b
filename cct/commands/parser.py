"""argparse with short errors that name the nearest valid flag."""

import argparse
import re
import sys

from cct.training.config import nearest


class Parser(argparse.ArgumentParser):
    """An ArgumentParser without abbreviations, whose errors are two lines and exit with 2."""

    def __init__(self, **kwargs):
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(**kwargs)

    def parse_args(self, args=None, namespace=None):
        """As in argparse; flags that no parser knows are reported with the nearest one of the sub-command."""
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            parser = getattr(parsed, "parser", self)
            flag = next((word for word in unknown if word.startswith("-")), unknown[0]).partition("=")[0]
            kind = "flag" if flag.startswith("-") else "argument"
            parser.error(f"unknown {kind} {flag!r}{nearest(flag, parser.flags())}")
        return parsed

    def flags(self):
        """Every flag of this parser."""
        return [flag for action in self._actions for flag in action.option_strings]

    def error(self, message):
        if found := re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message):
            kind, got, names = message.split()[1].strip(":"), found[1], found[2].replace("'", "").split(", ")
            message = f"unknown {kind.lower()} {got!r}{nearest(got, names)} (there are {', '.join(names)})"
        print(f"{self.prog}: {message}\ntry: {self.prog} --help", file=sys.stderr)
        raise SystemExit(2)


def add_command(subparsers, name, run, help, epilog):
    """A sub-command whose help ends with examples; `run(args)` carries it out and returns the exit code or None."""
    parser = subparsers.add_parser(
        name, help=help, description=help[0].upper() + help[1:] + ".", epilog=epilog, formatter_class=Formatter
    )
    parser.set_defaults(run=run, parser=parser)
    return parser


class Formatter(argparse.RawDescriptionHelpFormatter):
    """Help texts in one column from character 34 on, lines as they are in the epilog."""

    def __init__(self, prog):
        super().__init__(prog, max_help_position=34, width=120)
