"""The process that compiles: reads a request on standard input, writes text or JSON to standard output.

Exit code 0: it fits (or nothing is known of the memory), 1: it does not, 2: bad input, 70: a bug. `bertjax plan` starts
it with the environment that the topology needs (topologies.environment).
"""

import json
import sys
import traceback

from bertjax.errors import BertjaxError


def main() -> int:
    try:
        from bertjax.plan.handle_request import handle_request

        text, good = handle_request(json.load(sys.stdin))
    except BertjaxError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:  # `bertjax plan` got it too, and says so
        return 130
    except Exception as error:  # Python's own code for it, 1, says that something does not fit
        traceback.print_exception(error)
        return BertjaxError.exit_code
    print(text, flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
