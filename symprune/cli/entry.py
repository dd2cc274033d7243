"""From the words on a command line to what is printed and the exit code."""

import importlib
import json
import sys
from collections.abc import Sequence

from symprune.base.errors import UserError
from symprune.cli.given import settle
from symprune.cli.parser import build_parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command: 0 if it worked, 2 and one line on stderr for bad input, 1 for all else that fails."""
    args = settle(build_parser().parse_args(argv))
    module, function = args.run.split(".")
    try:
        # late: torch takes seconds, and --help needs none of it
        command = getattr(importlib.import_module(f"symprune.cli.{module}"), function)
        answer = command(args)
        print(json.dumps(answer.facts) if args.json else answer.text)
        return 0
    except Exception as error:
        if args.debug:
            raise
        text = " ".join(str(error).split())
        if not isinstance(error, (UserError, OSError, RuntimeError)):
            text = f"{type(error).__name__}{': ' * bool(text)}{text} (--debug shows where)"
        print(f"symprune: error: {text}", file=sys.stderr)
        return 2 if isinstance(error, (UserError, OSError)) else 1
    except KeyboardInterrupt:
        print("symprune: interrupted; what was finished is kept", file=sys.stderr)
        return 130
