"""The shipped command with a promise that it does not make: another ``PRAGMA synchronous``.

    python -m benchmarks.unsynced OFF run ...

There is no setting for it, on purpose. The control of ``durability.py``.
"""

import sys
from functools import partial

from collector.buffer import Buffer
from collector.cli import main

if __name__ == "__main__":
    Buffer.open = partial(Buffer.open, synchronous=sys.argv.pop(1))  # type: ignore[method-assign,arg-type]
    main(prog_name="tillpost")
