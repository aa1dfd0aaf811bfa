"""Passes on a Ray cluster. The only place where `ray` is touched, and imported only for ``--launcher ray``.

The driver decides what is measured where and is the only one that writes; a pass runs on its node in the very
child process that a local run would start.
"""
