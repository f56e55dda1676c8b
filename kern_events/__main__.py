"""`python -m kern_events` is `kern-events`."""

import os
import sys


def _forget_where_we_are() -> None:
    """For `-m` Python looks for every module in the current directory first, where others' files may lie."""
    # It is not there if it was deleted.
    if sys.flags.safe_path or not os.path.isdir(sys.path[0]) or not os.path.samefile(sys.path[0], "."):
        return
    here = sys.path.pop(0)
    if here == os.path.dirname(os.path.dirname(__file__)):
        sys.path.append(here)  # A checkout of this project: ours lie there.


if __name__ == "__main__":
    _forget_where_we_are()
    from kern_events.cli import main

    main()
