"""`python -m kern_events` is `kern-events`."""

import os
import sys

# For `-m` Python looks for every module in the current directory first, where files may lie that are not
# ours; in a checkout of this project ours lie there.
if __name__ == "__main__" and not sys.flags.safe_path and os.path.exists("."):
    _here = os.getcwd()
    if sys.path[0] == _here:
        del sys.path[0]
    if _here == os.path.dirname(os.path.dirname(__file__)):
        sys.path.append(_here)

from kern_events.cli import main

if __name__ == "__main__":
    main()
