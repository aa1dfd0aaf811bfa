"""Whatever starts the tests may ignore signals (nohup, a background job); tests must not inherit that."""

import signal

signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
