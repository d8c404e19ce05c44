"""Ctrl-C while a command still imports ends it at once, without a traceback; ``terminal.run_command`` takes over from there.

Imported by each package before anything else, for imports of Pandas and the like take seconds.
"""

import signal
import sys

# "-m": Python is on its way to a module of the package that it will run. Where Ctrl-C is ignored, it stays so.
if sys.argv[0] == "-m" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
