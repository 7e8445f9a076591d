"""The compiling process, started by `bertjax plan`: request on standard input, text or JSON on standard output.

Exit code 0: fits (or the memory is unknown), 1: does not fit, 2: bad input, 70: a bug.
"""

import json
import sys
import traceback

from bertjax.errors import BertjaxError, UserError
from bertjax.progress import reporter


def main() -> int:
    if sys.argv[1:] or sys.stdin.isatty():
        print("this process serves `bertjax plan`; use that command", file=sys.stderr)
        return UserError.exit_code
    try:
        request = json.load(sys.stdin)
        with reporter.task("planning", finish=False):
            from bertjax.plan.handle_request import handle_request

            text, good = handle_request(request)
    except BertjaxError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:  # `bertjax plan` receives it too and prints a line
        return 130
    except Exception as error:  # Python would exit with 1, which means: does not fit
        traceback.print_exception(error)
        return BertjaxError.exit_code
    print(text, flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
