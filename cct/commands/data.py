"""`cct data check`."""

from .parser import add_command

EPILOG = """
examples:
  cct data check ~/photos                    an image folder: what was found, what is wrong with it
  cct data check cifar10 --data-dir ~/data   the files of a known data set, with their checksums
"""


def add(subparsers):
    """Declare the sub-command."""
    parser = add_command(subparsers, "data", _help, "look at data sets", EPILOG)
    actions = parser.add_subparsers(metavar="ACTION", parser_class=type(parser))
    check = add_command(actions, "check", run, "print what a data set holds and what is wrong with it", EPILOG)
    check.add_argument("what", metavar="DIR|NAME", help="an image folder, or the name of a data set")
    check.add_argument("--data-dir", metavar="DIR", help="folder with the files of the named data set")


def _help(args):
    args.parser.print_help()


def run(args):
    """Print the report of `cct.data.check`; exit code 2 when something is wrong."""
    from rich.console import Console

    import cct.data

    report = cct.data.check(args.what, args.data_dir)
    Console(highlight=False).print(report, soft_wrap=True)
    return 0 if report.ok else 2
